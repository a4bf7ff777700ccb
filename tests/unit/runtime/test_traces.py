"""Traces by name: what is wrong with one is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dwcp.runtime.traces import TraceUnreadable, load, load_prices


@pytest.mark.parametrize(
    "name", ["azure:/nowhere", "openb:/nowhere", "swf:/nowhere", "generated:g9", "ftp:x", "swf"]
)
def test_a_trace_that_is_not_there_is_a_sentence(name: str) -> None:
    """Goal: never a traceback. Method: missing files, unknown kinds."""
    with pytest.raises(TraceUnreadable, match=name):
        load(name, "test", seed=0, count=10)


def test_a_file_is_read_and_split(tmp_path: Path) -> None:
    """Goal: the split's part of a file. Method: 100 jobs, of which the test split is six tenths."""
    place = tmp_path / "some.swf"
    place.write_text("; made up\n" + "\n".join(f"{n} {n * 10} -1 60 2 -1 -1 2" for n in range(100)))

    assert len(load(f"swf:{place}", "test", seed=0, count=0)) == 60
    with pytest.raises(TraceUnreadable, match="train"):
        load(f"swf:{place}", "train", seed=0, count=0)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """Goal: as above. Method: a file of random bytes, as trace and as prices."""
    place = tmp_path / "bytes"
    place.write_bytes(bytes(range(256)))

    with pytest.raises(TraceUnreadable):
        load(f"swf:{place}", "test", seed=0, count=0)
    with pytest.raises(TraceUnreadable):
        load_prices(place)
