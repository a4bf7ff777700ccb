"""`dwcp allocate` from the command line: a real smoke training on one core, and what bad input is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dwcp.allocation import shipped
from dwcp.allocation.env.rollout import rollout, total, warm
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.policies import evidence, learned
from dwcp.allocation.policies.rules import RULES, policy
from dwcp.allocation.traces import splits
from dwcp.allocation.traces.windows import Wanted
from dwcp.models.artefact import Made

ONE_CORE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def dwcp(*words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dwcp.cli.main", "allocate", *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "XLA_FLAGS": ONE_CORE},
    )


@pytest.mark.process
@pytest.mark.timeout(600)
def test_smoke_training_beats_random(tmp_path: Path) -> None:
    """Goal: the whole of training works from the command line, and what it writes places better than chance and on
    validation never worse than the rule below. Method: train; load the files as a server would; the same windows
    under the model and under random placement, paired: the interval must lie below 0."""
    pytest.importorskip("jax", reason="pip install 'dwcp[train]' brings JAX")

    done = dwcp("train", "--profile", "smoke", "--out", str(tmp_path), "--json", seconds=500)

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["validation_difference"] <= 0
    assert answer["updates"] == 640
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    assert (tmp_path / "checkpoint.safetensors").stat().st_size > 0
    made = Made((tmp_path / "manifest.json").read_bytes(), (tmp_path / "weights.safetensors").read_bytes())
    ours = learned.scorer(shipped.load(made).weights)
    records = splits.generated("g2", "dev", 0, count=8000)
    episode = splits.windows(records, count=16, seed=1, wanted=Wanted(measured=150, warm=50))
    chance = policy(RULES["random"])
    state = warm(episode, chance)
    costs = [total(rollout(episode, state, one), WEIGHTS) for one in (ours, chance)]
    _mean, _low, high = evidence.paired_difference(
        costs[0], costs[1], seeds=np.zeros(16, dtype=np.int64), block=1, rng=np.random.default_rng(0)
    )
    assert high < 0
    judged = dwcp(
        "evaluate",
        "--model",
        str(tmp_path),
        "--trace",
        "generated:g2",
        "--windows",
        "2",
        "--jobs",
        "120",
        "--nodes",
        "8,70",
        "--json",
    )
    assert judged.returncode == 0, judged.stderr
    assert [row["nodes"] for row in json.loads(judged.stdout)["rows"]] == [8, 70]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "--out", "x", "--profile", "huge"), "profile 'huge'"),
        (("train", "--out", "x", "--profile", "smoke", "--base", "wishful"), "rules: "),
        (("evaluate", "--model", "/nonexistent"), "/nonexistent"),
        (("evaluate", "--model", "/nonexistent", "--nodes", "many"), "/nonexistent"),
        (("advise", "--trace", "azure:/nonexistent"), "/nonexistent"),
        (("advise", "--trace", "tape:1"), "the kinds are"),
    ],
)
@pytest.mark.process
def test_bad_input_is_a_sentence(words: tuple[str, ...], sentence: str) -> None:
    """Goal: no traceback for anything that people type. Method: one of each; the sentence names the trouble."""
    done = dwcp(*words)

    assert done.returncode not in (0, 1)
    assert "Traceback" not in done.stderr
    assert sentence in done.stderr + done.stdout


@pytest.mark.process
def test_a_folder_that_cannot_be_is_said_before_the_work(tmp_path: Path) -> None:
    """Goal: minutes of training never end without a place. Method: a folder below a file, for one seed and for many;
    nothing was cut or compiled yet."""
    (tmp_path / "file").write_bytes(b"")
    for more in ((), ("--seeds", "0:2")):
        done = dwcp("train", "--profile", "smoke", "--out", str(tmp_path / "file" / "below"), *more)
        assert done.returncode == 64, done.stderr
        assert "nothing can be written there" in done.stderr
        assert "cutting" not in done.stdout + done.stderr
