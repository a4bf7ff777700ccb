"""The day's placements outlive the process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.unit.services.allocator.desks import Bench, nodes, wanted

from dwcp.services.allocator import keeping


def test_another_process_knows_the_day(tmp_path: Path) -> None:
    """Goal: the report replays what was placed before a restart. Method: more placements than are written together;
    saved by one desk, taken up by another."""
    path = tmp_path / keeping.FILE
    first, second = Bench(), Bench()
    fleet = first.tell(nodes(cpu=10**6, memory=10**7))
    for number in range(keeping.TOGETHER + 3):
        first.desk.place(wanted(f"w{number}", cpu=10, memory=1, fleet=fleet, commit=True))
    assert asyncio.run(keeping.save(first.desk, path))

    assert keeping.take_up(second.desk, path, now_ms=second.clock.now_ms()) == ""
    whole = first.desk.told_day()
    assert len(whole.dealt) == keeping.TOGETHER + 3
    assert second.desk.told_day().dealt == whole.dealt


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"since_ms":1}\n{}\n', b'{"since_ms":1}\n{"dealt":[]}\n']
)
def test_a_damaged_day_is_said_and_left_behind(tmp_path: Path, content: bytes) -> None:
    """Goal: the allocator starts whatever the file is. Method: damaged ones; none; a folder in its place."""
    path = tmp_path / keeping.FILE
    path.write_bytes(content)
    bench = Bench()
    assert "is not known" in keeping.take_up(bench.desk, path, now_ms=1)
    assert bench.desk.told_day().dealt == ()
    assert keeping.take_up(bench.desk, tmp_path / "none", now_ms=1) == ""
    assert "is not known" in keeping.take_up(bench.desk, tmp_path, now_ms=1)


def test_a_disk_that_takes_nothing_stops_nothing(tmp_path: Path) -> None:
    """Goal: the day in memory goes on. Method: save below a file."""
    (tmp_path / "file").write_bytes(b"")
    assert not asyncio.run(keeping.save(Bench().desk, tmp_path / "file" / keeping.FILE))
