"""The benchmark of compression-api runs and says what it should; its figures are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_run_gives_every_figure() -> None:
    """Goal: the command of the benchmark works. Method: phases of 0.2 s; nothing is lost at overload."""
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_compression_api.py"), "--json"]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(
        [*command, "--seconds", "0.2", "--rate", "100", "--stream-mib", "4"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["predict_per_s"] > 0
    assert found["overload_lost"] == 0
    assert found["overload_429"] > 0
    assert min(found["p99_ms"], found["stream_mb_per_s"], found["library_mb_per_s"]) > 0
