"""What commands really use of a machine: CPU and memory of their control groups, or of their processes.

Several agents may share one machine, so each counts its own commands and not the machine. A command's group tells
exactly; without groups the shim's session is summed up from /proc, with what its members' ended children took.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dwcp.api.agent import RealUse
from dwcp.runtime.cgroups import Group

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CPU_FIELDS = slice(11, 15)  # of /proc/PID/stat behind the name: utime, stime, cutime, cstime
_RSS_FIELD = 21


@dataclass(frozen=True, slots=True)
class Taken:
    """By one command so far, and its memory now."""

    cpu_s: float
    memory_bytes: int


@dataclass(slots=True)
class Meter:
    """Rates between two looks. `look` is told everything that runs, by attempt; seconds are monotonic."""

    now: RealUse | None = None  # until the second look nothing is known
    _at_s: float | None = None
    _cpu_s: dict[str, float] = field(default_factory=dict)

    def look(self, running: Mapping[str, Taken], *, at_s: float) -> None:
        """An attempt that is new since the last look took all of its CPU since then."""
        if self._at_s is not None and at_s > self._at_s:
            spent = sum(max(0.0, taken.cpu_s - self._cpu_s.get(name, 0.0)) for name, taken in running.items())
            memory = sum(taken.memory_bytes for taken in running.values())
            self.now = RealUse(
                cpu_milli=round(spent / (at_s - self._at_s) * 1000), memory_mib=-(-memory // 2**20)
            )
        self._at_s = at_s
        self._cpu_s = {name: taken.cpu_s for name, taken in running.items()}


def of_group(group: Group) -> Taken | None:
    """From either version's files; None where the group has none that counts CPU."""
    cpu_s = memory = None
    for directory in group.directories:
        for line in _lines(directory / "cpu.stat"):
            if line.startswith("usage_usec "):
                cpu_s = int(line.split()[1]) / 1e6
        for line in _lines(directory / "cpuacct.usage"):
            cpu_s = int(line) / 1e9
        for name in ("memory.current", "memory.usage_in_bytes"):
            for line in _lines(directory / name):
                memory = int(line)
    return None if cpu_s is None or memory is None else Taken(cpu_s, memory)


def of_processes(pids: list[int], *, proc: Path = PROC) -> Taken:
    """The sum over those that are still there."""
    ticks = pages = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(one) for one in fields[_CPU_FIELDS])
            pages += int(fields[_RSS_FIELD])
    return Taken(ticks / _TICKS, pages * _PAGE)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
