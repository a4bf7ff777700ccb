"""Where this replica stands among the views."""

from __future__ import annotations

from dataclasses import dataclass

from dwcp.consensus.core.committee import Committee, leader_of


@dataclass(slots=True)
class Standing:
    """`current` is the view entered; it is worked in once `installed` (view 1 at once, others by NEWVIEW).

    `blocked`: its leader was caught with two headers for one slot, so nothing more is
    voted or decided in it. `frame` is the NEWVIEW that installed it.
    """

    committee: Committee
    current: int = 1
    installed: bool = True
    blocked: bool = False
    frame: bytes = b""

    @property
    def leader(self) -> int:
        return leader_of(self.current, self.committee.n)

    @property
    def leading(self) -> bool:
        return self.leader == self.committee.me

    @property
    def works(self) -> bool:
        return self.installed and not self.blocked

    def enter(self, view: int) -> None:
        self.current, self.installed, self.blocked, self.frame = view, view == 1, False, b""

    def install(self, frame: bytes) -> None:
        self.installed, self.frame = True, frame
