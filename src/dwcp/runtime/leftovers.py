"""Ends what outlives the services on purpose: the attempts whose shims run without their agent.

A shim notes its pid, start time and boot in `started`, and ends its command when a file
`stop` appears; only a shim that does not react is killed, by that identity.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dwcp.runtime.layout import Layout

_GRACE_SECONDS = 5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_TICKS_FIELD = 19  # of /proc/PID/stat, counted after the command's name


class _Started(msgspec.Struct, frozen=True):
    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class _Attempt:
    folder: Path
    started: _Started

    def alive(self) -> bool:
        if self.started.boot_id != _BOOT_ID.read_text().strip():
            return False
        try:
            fields = Path(f"/proc/{self.started.pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return False
        return int(fields[_START_TICKS_FIELD]) == self.started.start_ticks and fields[0] != b"Z"


def stop_attempts(layout: Layout) -> list[str]:
    """Stops every attempt that still runs; returns a line for each."""
    running = [attempt for attempt in _attempts(layout) if attempt.alive()]
    for attempt in running:
        (attempt.folder / "stop").touch(mode=0o600)
    late = _wait(running, _GRACE_SECONDS)
    for attempt in late:
        os.kill(attempt.started.pid, signal.SIGKILL)
    _wait(late, _GRACE_SECONDS)
    return [f"{attempt.started.pid} attempt {attempt.folder.name}" for attempt in running]


def _wait(attempts: list[_Attempt], seconds: float) -> list[_Attempt]:
    deadline = time.monotonic() + seconds
    left = [attempt for attempt in attempts if attempt.alive()]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [attempt for attempt in left if attempt.alive()]
    return left


def _attempts(layout: Layout) -> list[_Attempt]:
    found = []
    for file in sorted((layout.root / "data").glob("*/attempts/*/started")):
        try:
            found.append(_Attempt(file.parent, msgspec.json.decode(file.read_bytes(), type=_Started)))
        except (OSError, msgspec.DecodeError):
            continue  # torn at a crash: the shim died with it
    return found
