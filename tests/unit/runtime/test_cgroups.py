"""Control groups: version 2 on a pretended tree, whatever this kernel mounts on a real one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dwcp.runtime import cgroups
from dwcp.runtime.cgroups import Cgroups, GroupLimits

LIMITS = GroupLimits(cpu_milli=1500, memory_bytes=64 << 20, processes=32)
FILES = (
    "pids.max",
    "memory.max",
    "memory.swap.max",
    "memory.oom.group",
    "memory.events",
    "cpu.max",
    "cgroup.procs",
)


def version_2_tree(root: Path, controllers: str = "cpuset cpu io memory pids") -> None:
    """Files as a kernel with cgroup v2 shows them; folders made later do not fill themselves here."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "cgroup.controllers").write_text(controllers)
    (root / "cgroup.subtree_control").write_text("")


def test_version_2_is_preferred_where_its_controllers_are(tmp_path: Path) -> None:
    """Goal: a modern host uses v2. Method: a tree with the controllers; the parent enables all three."""
    version_2_tree(tmp_path)
    found = cgroups._version_2("dwcp-agent-x", tmp_path, tmp_path / "none")
    assert found == Cgroups(cgroups.V2, {"": tmp_path / "dwcp-agent-x"})
    for folder in (tmp_path, tmp_path / "dwcp-agent-x"):
        assert (folder / "cgroup.subtree_control").read_text() == "+pids +memory +cpu"


def test_a_delegated_group_is_used_when_the_root_is_not_ours(tmp_path: Path) -> None:
    """Goal: agents under systemd with delegation.
    Method: a root without controllers, an own group with them."""
    version_2_tree(tmp_path, controllers="")
    version_2_tree(tmp_path / "system.slice" / "agent.service")
    own = tmp_path / "own"
    own.write_text("0::/system.slice/agent.service\n")
    found = cgroups._version_2("dwcp", tmp_path, own)
    assert found is not None
    assert found.parents[""] == tmp_path / "system.slice" / "agent.service" / "dwcp"


def test_limits_in_the_words_of_version_2(tmp_path: Path) -> None:
    """Goal: the right number in the right file. Method: a folder with v2's files; read them back."""
    for name in FILES:
        (tmp_path / name).write_text("")
    cgroups._write_limits(tmp_path, LIMITS)
    read = {name: (tmp_path / name).read_text() for name in FILES}
    assert (read["pids.max"], read["memory.max"], read["cpu.max"]) == ("32", str(64 << 20), "150000 100000")
    assert (read["memory.swap.max"], read["memory.oom.group"]) == ("0", "1")
    group = cgroups.Group((tmp_path,))
    assert group.procs == (str(tmp_path / "cgroup.procs"),)
    assert group.oom_files == (str(tmp_path / "memory.events"),)


def test_nothing_writable_means_rlimits(tmp_path: Path) -> None:
    """Goal: the agent says what is in force instead of failing. Method: an empty tree."""
    found = cgroups.detect("dwcp", root=tmp_path, own=tmp_path / "none")
    assert found == Cgroups(cgroups.NONE, {})
    assert found.names() == set()


@pytest.mark.process
def test_a_group_of_this_kernel_is_made_filled_killed_and_removed() -> None:
    """Goal: no orphan groups, no orphan processes. Method: a sleeper joins a real group, which is removed."""
    found = cgroups.detect(f"dwcp-test-cg-{os.getpid()}")
    if found.version == cgroups.NONE:
        pytest.skip("no writable cgroups: run as root where /sys/fs/cgroup is writable")
    try:
        group = found.create("one", LIMITS)
        with subprocess.Popen(["sleep", "300"]) as sleeper:
            for procs in group.procs:
                Path(procs).write_text(str(sleeper.pid))
            assert found.names() == {"one"}
            cgroups.remove(found.find("one"))
            assert sleeper.wait(5) == -9
        assert found.names() == set()
        cgroups.remove(found.find("one"))  # gone already: fine
    finally:
        found.close()
    assert not any(parent.exists() for parent in found.parents.values())
