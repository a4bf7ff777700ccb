"""A chooser that is loaded when it is expected or asked: a process that sends nothing never holds it.

The selector, the arrays it computes with and this host's speeds are 20 MB and half a second of a start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what this module is there to put off
    from dwcp.runtime.choosing import HostChooser
    from dwcp.runtime.packflow import Choice


class LateChooser:
    """`load` blocks and is called in a thread, once unless it raises; `loaded` is told what came of it."""

    def __init__(self, load: Callable[[], HostChooser], *, loaded: Callable[[HostChooser], None]) -> None:
        self._load = load
        self._loaded = loaded
        self._found: HostChooser | None = None
        self._turn = asyncio.Lock()
        self._expected: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str:
        """Why the table has to do; "" where it need not, or where nothing was sent yet."""
        return "" if self._found is None else self._found.trouble

    @property
    def basis(self) -> str:
        """What choices rest on, for people."""
        return "nothing was sent yet" if self._found is None else self._found.basis

    def begin(self, *, peer: str = "", allowed: frozenset[str] = frozenset()) -> Choice:
        if self._found is not None:
            return self._found.begin(peer=peer, allowed=allowed)
        return _LateChoice(self, peer, allowed)

    def expect(self) -> None:
        """Something has come that will travel on: loads beside what happens until then."""
        if self._found is None and self._expected is None:
            self._expected = asyncio.get_running_loop().create_task(self._prepare())

    async def _prepare(self) -> None:
        try:
            await self.chooser()
        except OSError:  # the transfer will try again, and say so
            self._expected = None

    async def chooser(self) -> HostChooser:
        """The chooser itself."""
        async with self._turn:
            if self._found is None:
                self._found = await asyncio.to_thread(self._load)
                self._loaded(self._found)
        return self._found


class _LateChoice:
    """One transfer that began before the chooser was there."""

    def __init__(self, late: LateChooser, peer: str, allowed: frozenset[str]) -> None:
        self._late = late
        self._peer = peer
        self._allowed = allowed
        self._choice: Choice | None = None

    async def pack(
        self, raw: bytes, *, stream_id: bytes, index: int, left_bytes: int, rate_bps: float
    ) -> bytes:
        if self._choice is None:
            chooser = await self._late.chooser()
            if self._choice is None:  # packs of several connections come here at once
                self._choice = chooser.begin(peer=self._peer, allowed=self._allowed)
        return await self._choice.pack(
            raw, stream_id=stream_id, index=index, left_bytes=left_bytes, rate_bps=rate_bps
        )
