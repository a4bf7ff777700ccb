"""The allocator's benchmark runs, prints what it promises, repeats itself, and refuses in sentences."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_allocator.py"
SMALL = [
    "--loads",
    "0.95",
    "--seeds",
    "1",
    "--windows",
    "2",
    "--validation",
    "1",
    "--jobs",
    "60",
    "--warm",
    "20",
]
FIELDS = [
    "rival",
    "gap_closed",
    "gap_closed_low",
    "gap_closed_high",
    "no_gap",
    "cost_per_1k",
    "bound",
    "violations_size_weighted",
    "decision_ms_p50",
    "decision_ms_p99",
    "model_share",
    "sensitivity",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments, "--json"]
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1] / "src")}
    return subprocess.run(command, capture_output=True, text=True, timeout=110, env=env)


@pytest.mark.process
@pytest.mark.parametrize("more", [[], ["--stale"]], ids=["fresh", "stale"])
def test_it_prints_what_it_promises(more: list[str]) -> None:
    """Goal: the last line is for machines. Method: a tiny run twice; fields, and equal digests."""
    bounds = [] if importlib.util.find_spec("highspy") else ["--no-bounds"]
    runs = [run(*SMALL, *more, *bounds) for _again in range(2)]

    assert [one.returncode for one in runs] == [0, 0], runs[0].stderr
    first, second = (json.loads(one.stdout.splitlines()[-1]) for one in runs)
    assert first["digest"] == second["digest"]
    (result,) = first["results"]
    assert [name for name in FIELDS if name not in result] == []
    assert result["rival"] in result["cost_per_1k"]
    assert result["model_share"] == 0.0
    if not bounds:
        assert 0 < result["bound"] < result["rival_bounded"]
    if more:
        assert {"fresh_rival", "stale_price_per_window", "won_back"} <= result.keys()


@pytest.mark.process
@pytest.mark.parametrize(
    "arguments", [["--trace", "azure:/nowhere"], ["--trace", "x:y"], ["--loads", "much"]]
)
def test_bad_arguments_are_sentences(arguments: list[str]) -> None:
    """Goal: never a traceback. Method: a folder that is not there, an unknown kind, a load that is no number."""
    done = run(*SMALL, *arguments)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
