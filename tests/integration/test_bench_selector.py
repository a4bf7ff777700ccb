"""The selector's benchmark on a tiny folder: its fields, and that its figures are consistent."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from dwcp.compression.corpus_generated import generate

pytest.importorskip("cramjam", reason="the oracle's list needs cramjam: run `make environment-dev`")

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {
    "basis", "cells", "regret_gmean", "regret_p95", "p95_low", "p95_high", "zstd3", "best_fixed", "table",
    "table_hindsight", "worse_than_table_share", "selection_us_p50", "selection_us_p95", "race_ms_p50", "per_link",
}  # fmt: skip


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench_selector.py", "--json", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.process
def test_it_measures_a_small_folder(tmp_path: Path) -> None:
    """Two files of 0.7 MiB become one tar stream; the cache makes the second run's measurements equal."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for kind in ("gen-log", "gen-json"):
        (folder / f"{kind}.txt").write_bytes(generate(kind, seed=9, size=700 << 10))
    options = [
        "--corpus",
        str(folder),
        "--streams",
        "1",
        "--repeats",
        "1",
        "--cache",
        str(tmp_path / "cache"),
    ]

    first, second = _run(*options), _run(*options)

    assert first.returncode == 0, first.stderr
    result, again = json.loads(first.stdout), json.loads(second.stdout)
    assert set(result) >= FIELDS
    assert result["basis"] == "priced"
    assert result["cells"] == 7
    assert [link["mbps"] for link in result["per_link"]][::2] == [1.0, 10.0, 100.0, 1000.0, 10000.0]
    assert len(result["codecs"]) == 19
    assert result["streams"] == {"corpus": 1, "host": 0, "generated": 0}
    assert all(
        result[name] >= -1e-9 for name in ("regret_gmean", "zstd3", "table", "table_hindsight", "best_fixed")
    )
    assert result["table_hindsight"] <= result["table"] + 1e-9
    assert math.isclose(result["zstd3"], again["zstd3"])


@pytest.mark.process
def test_a_missing_folder_and_an_empty_one_are_sentences(tmp_path: Path) -> None:
    """Exit code 2 and one line that says what to do."""
    for folder in (tmp_path / "missing", tmp_path):
        done = _run("--corpus", str(folder), "--streams", "0")

        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert str(folder) in done.stderr
