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
    """Goal: every case and system has a time, and a finished link is not measured again. Method: one run over
    50 Mbit/s with some hundred KiB, and the same again after its cache lost its end."""
    command = [sys.executable, "benchmarks/bench_transfer.py", "--json", "--links", "50", "--seconds", "0.1"]
    small = ["--repeats", "1", "--segments", "1", "--delay-ms", "1", "--scratch", str(tmp_path)]
    cache = tmp_path / "cache"
    done = _run([*command, *small, "--cache", str(cache)])
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

    link, whole = cache.read_text().splitlines()
    assert (json.loads(link)["link"], json.loads(whole)) == (row, report)
    cache.write_text(link + "\n" + whole[:50])
    again = _run([*command, *small, "--cache", str(cache)])
    assert json.loads(again.stdout) == report
    assert cache.read_text().splitlines()[-1] == whole


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "src"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
