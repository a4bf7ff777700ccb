"""What commands really use: rates between looks, from groups of either version, or from processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dwcp.api.agent import RealUse
from dwcp.runtime.cgroups import Group
from dwcp.runtime.usage import Meter, Taken, of_group, of_processes


def test_a_rate_needs_two_looks_and_new_attempts_count_whole() -> None:
    """Goal: nothing is told that was not measured. Method: three looks ten seconds apart; one command ends, one
    comes."""
    meter = Meter()
    meter.look({"a": Taken(100.0, 2**20)}, at_s=0.0)
    assert meter.now is None
    meter.look({"a": Taken(105.0, 2**20), "b": Taken(10.0, 1)}, at_s=10.0)
    assert meter.now == RealUse(cpu_milli=1500, memory_mib=2)
    meter.look({"b": Taken(10.0, 1)}, at_s=20.0)
    assert meter.now == RealUse(cpu_milli=0, memory_mib=1)


def test_groups_of_both_versions(tmp_path: Path) -> None:
    """Goal: the kernel's own figures. Method: files as version 2 and 1 have them; a group that counts no CPU."""
    second, cpu, memory = (tmp_path / name for name in ("v2", "cpu", "memory"))
    for directory in (second, cpu, memory):
        directory.mkdir()
    (second / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (second / "memory.current").write_text("4096\n")
    (cpu / "cpuacct.usage").write_text("1500000000\n")
    (memory / "memory.usage_in_bytes").write_text("8192\n")

    assert of_group(Group((second,))) == Taken(2.5, 4096)
    assert of_group(Group((cpu, memory))) == Taken(1.5, 8192)
    assert of_group(Group((memory,))) is None
    assert of_group(Group((tmp_path / "gone",))) is None


def test_processes_are_summed_and_the_gone_do_not_matter() -> None:
    """Goal: the way without groups. Method: this process, which has worked, and one that is not there."""
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    found = of_processes([os.getpid(), 2**22 + 1])

    assert found.cpu_s >= 0.05
    assert found.memory_bytes > 2**20
