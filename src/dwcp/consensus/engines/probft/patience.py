"""The view timer: notices that there is work and that it does not move.

Looks twice per timeout instead of restarting a timer with every slot: a look that
finds the same oldest payload, or the same undecided slot, twice in a row gives up on
the view. Counting looks makes it indifferent to jumps of the clock.
"""

from __future__ import annotations

from dwcp.consensus.core.machine import SetTimer
from dwcp.consensus.core.pacemaker import Pacemaker
from dwcp.consensus.core.views.slotlog import SlotLog
from dwcp.consensus.engines.probft.pool import Pool
from dwcp.consensus.engines.probft.standing import Standing
from dwcp.consensus.engines.probft.voice import Voice

VIEW_TIMER = "view"
LOOKS = 2  # unchanged looks until the view has failed


class Patience:
    """Per payload, not per batch: a leader that censors one client runs out of it too."""

    __slots__ = (
        "_armed",
        "_log",
        "_pace",
        "_pool",
        "_same_payload",
        "_same_slot",
        "_seen",
        "_standing",
        "_uninstalled",
        "_voice",
    )

    def __init__(
        self, *, pool: Pool, log: SlotLog, standing: Standing, pace: Pacemaker, voice: Voice
    ) -> None:
        self._pool = pool
        self._log = log
        self._standing = standing
        self._pace = pace
        self._voice = voice
        self._armed = False
        self._reset()

    def _reset(self) -> None:
        self._seen: tuple[bytes | None, int] = (None, -1)
        self._same_payload = self._same_slot = self._uninstalled = 0

    def has_work(self) -> bool:
        """Whether anything is expected of the current view's leader."""
        return len(self._pool) > 0 or self._log.top > self._log.decided or not self._standing.installed

    def arm(self) -> None:
        """Start looking if there is work and nobody looks yet."""
        if not self._armed and self._voice.speaks and self.has_work():
            self._remember()
            self._set()

    def restart(self) -> None:
        """A view was entered or installed: its leader gets the full time."""
        self._reset()
        self._armed = False
        self.arm()

    def _remember(self) -> None:
        undecided = self._log.decided if self._log.top > self._log.decided else -1
        self._seen = (self._pool.oldest(), undecided)

    def _set(self) -> None:
        self._armed = True
        after_ms = max(1, self._pace.timeout_ms // LOOKS)
        self._voice.effects.append(SetTimer(VIEW_TIMER, after_ms))

    def fired(self) -> bool:
        """One look; True where the view has failed. Goes on looking while there is work."""
        self._armed = False
        if not self._voice.speaks or not self.has_work():
            self._reset()
            return False
        payload, undecided = self._seen
        self._remember()
        same_payload = payload is not None and payload == self._seen[0]
        same_slot = undecided >= 0 and undecided == self._seen[1]
        self._same_payload = self._same_payload + 1 if same_payload else 0
        self._same_slot = self._same_slot + 1 if same_slot else 0
        self._uninstalled = self._uninstalled + 1 if not self._standing.installed else 0
        failed = max(self._same_payload, self._same_slot, self._uninstalled) >= LOOKS
        if self._same_payload >= LOOKS and self._pool.blame_oldest():
            self._voice.note("payload.abandoned", pending=len(self._pool))
        if failed:
            self._same_payload = self._same_slot = self._uninstalled = 0
        self._set()
        return failed
