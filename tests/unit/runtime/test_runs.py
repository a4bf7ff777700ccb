"""Records of runs on disk, and one run per script and target."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dwcp.operations.runs import Record
from dwcp.runtime.runs import Busy, Runs, actor, epoch_of

NOW_MS = 1_700_000_000_000


def record(target: str = "one", *, started_ms: int = NOW_MS) -> Record:
    return Record(
        id="",
        script="sweep",
        target=target,
        argv=("ops", "sweep"),
        actor="ann",
        host="here",
        pid=7,
        started_ms=started_ms,
    )


def test_a_record_is_written_twice(tmp_path: Path) -> None:
    """Goal: a run that dies leaves its beginning, one that ends its outcome. Method: begin, read, end, read."""
    runs = Runs(tmp_path / "runs")
    begun = runs.begin(record())
    assert runs.all() == [begun]

    ended = msgspec.structs.replace(begun, exit=1, ended_ms=NOW_MS + 5)
    runs.end(ended, b'{"a": 1}')

    (found,) = runs.all("sweep")
    assert (found.exit, len(found.output_digest)) == (1, 64)
    assert runs.last() == [found]
    assert (runs.folder / begun.id / "answer.json").read_bytes() == b'{"a": 1}'
    assert (runs.folder / begun.id / "run.json").stat().st_mode & 0o77 == 0
    assert runs.all("other") == []


def test_one_at_a_time_and_the_holder_is_named(tmp_path: Path) -> None:
    """Goal: the second run learns who works there. Method: take the same lock twice, another one, and again."""
    runs = Runs(tmp_path / "runs")
    with runs.alone(record()):
        with (
            pytest.raises(Busy, match=r"sweep one.*ann on here, pid 7, since 2023-11-14"),
            runs.alone(record()),
        ):
            pass
        with runs.alone(record("two")):
            pass
    with runs.alone(record()):
        pass


def test_a_killed_run_is_known(tmp_path: Path) -> None:
    """Goal: the run after a crash knows of it, and of nothing else. Method: a run without an end, then one with."""
    runs = Runs(tmp_path / "runs")
    killed = runs.begin(record())
    runs.begin(record("two", started_ms=NOW_MS + 1000))
    second = runs.begin(record(started_ms=NOW_MS + 2000))
    assert runs.broken_off(second) == killed

    runs.end(msgspec.structs.replace(second, exit=0), b"{}")

    third = runs.begin(record(started_ms=NOW_MS + 3000))
    assert runs.broken_off(third) is None


def test_old_runs_are_forgotten(tmp_path: Path) -> None:
    """Goal: records do not grow for ever. Method: two of different age, one limit; a damaged one is passed over."""
    runs = Runs(tmp_path / "runs")
    runs.begin(record())
    young = runs.begin(record(started_ms=NOW_MS + 10_000))
    damaged = runs.begin(record(started_ms=NOW_MS + 20_000))
    (runs.folder / damaged.id / "run.json").write_text("{")

    assert runs.forget(before_ms=NOW_MS + 5000) == 1
    assert runs.all() == [young]


def test_who_and_which_configuration(tmp_path: Path) -> None:
    """Goal: a record names the person behind sudo and the installation's own file. Method: with and without."""
    own = actor()
    assert actor("ann") == f"ann as {own}"
    assert actor(own) == own
    assert epoch_of(tmp_path / "cluster.yaml") == ""
    (tmp_path / "cluster.yaml").write_text("a: 1\n")
    assert len(epoch_of(tmp_path / "cluster.yaml")) == 12
