"""The transfer benchmark, smallest: its shape, so that a figure never comes from a broken run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import links

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.process
@pytest.mark.needs_root
@pytest.mark.skipif(bool(links.reason()), reason=links.reason() or "a link can be made")
def test_the_benchmark_measures_every_case(tmp_path: Path) -> None:
    """Goal: every case and system has a time. Method: one run over 50 Mbit/s with some hundred KiB."""
    command = [sys.executable, "benchmarks/bench_transfer.py", "--json", "--links", "50", "--seconds", "0.1"]
    small = ["--repeats", "1", "--segments", "1", "--delay-ms", "1", "--scratch", str(tmp_path)]
    done = subprocess.run(
        [*command, *small], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src"}
    )
    if done.returncode == 3:
        pytest.skip(json.loads(done.stdout)["reason"])
    assert done.returncode == 0, done.stderr

    report = json.loads(done.stdout)
    (row,) = report["per_link"]
    assert set(row["seconds"]) == {
        "cold/ours", "cold/rsync", "cold/zstd-adapt", "cold/zstd-3",
        "warm/ours", "warm/rsync", "edits/ours", "edits/rsync",
    }  # fmt: skip
    assert row["link_bytes"]["warm/ours"] < row["link_bytes"]["cold/ours"] * 4 / 5
    assert report["worst_ratio_to_rsync"] > 0
