"""The ledger's benchmark runs and prints what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_ledger.py"
FIELDS = [
    "fsync",
    "fsync_p50_ms",
    "ops_per_s",
    "p50_ms",
    "p99_ms",
    "cpu_us_per_op",
    "etcd_ops_per_s",
    "etcd_p50_ms",
    "etcd_cpu_us_per_op",
    "ratio",
    "cpu_ratio",
]


@pytest.mark.process
@pytest.mark.parametrize("path", [os.defpath + ":/usr/bin", "/nonexistent"], ids=["etcd", "no etcd"])
def test_the_last_line_is_the_promised_object(tmp_path: Path, path: str) -> None:
    """Goal: fields stay stable, and no etcd means unknown, not a pass. Method: a tiny run, with and without it."""
    tiny = ["--clients", "4", "--seconds", "0.5", "--pairs", "1", "--json", "--dir", str(tmp_path)]
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run(
        [sys.executable, str(SCRIPT), *tiny], capture_output=True, text=True, env=environment, check=False
    )

    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == FIELDS
    assert found["fsync"] is True
    assert found["ops_per_s"] > 0
    known = "etcd by" in done.stderr
    assert done.returncode == (0 if known else 3)
    assert (found["ratio"] is not None) == known
    assert list(tmp_path.iterdir()) == []
