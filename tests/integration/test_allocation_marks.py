"""The marks of the placer, by the very command that measures them; alone on a quiet machine.

A mark that is not reached stands here as a strict expected failure with what was measured: the day it is
reached this file says so.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dwcp.allocation import shipped

pytestmark = [pytest.mark.soak, pytest.mark.process, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
TRAINING_S = 25 * 60
WINDOWS, ROUNDS = 16, 4
ASKED = ("--model", "shipped", "--trace", "generated:g1", "--seeds", "10", "--few", "--json")


@functools.cache
def measured(*more: str, load: float = 0.95) -> dict[str, Any]:
    """One load of the benchmark, 200 windows of 1,500 workloads; run once for all its marks."""
    bench = str(ROOT / "benchmarks" / "bench_allocator.py")
    command = [sys.executable, bench, *ASKED, "--loads", f"{load}", *more]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["results"][0]
    return found


@pytest.mark.parametrize("more", [(), ("--stale",)], ids=["fresh", "stale"])
def test_the_model_beats_the_best_rival_on_a_crowded_fleet(more: tuple[str, ...]) -> None:
    """Goal: at load 1.1 the interval of the gap closed excludes 0. Method: bench_allocator, 10 seeds."""
    assert measured(*more, load=1.1)["gap_closed_low"] > 0


@pytest.mark.xfail(strict=True, reason="-14.1 % (-21.6 … -6.4): worse than tetris+")
def test_the_model_is_no_worse_than_the_best_rival_on_a_calm_fleet() -> None:
    """Goal: at load 0.7 nothing is lost by the model. Method: bench_allocator, 10 seeds."""
    assert measured(load=0.7)["gap_closed_high"] > 0


@pytest.mark.xfail(strict=True, reason="2.0 % (-3.5 … 7.4): it ties with cem-linear")
def test_the_model_beats_the_best_rival() -> None:
    """Goal: with full information the interval of the gap closed excludes 0. Method: bench_allocator, 10 seeds."""
    assert measured()["gap_closed_low"] > 0


@pytest.mark.xfail(strict=True, reason="2.6 % (-1.1 … 5.7): it ties with cem-linear")
def test_the_model_beats_the_best_rival_on_old_information() -> None:
    """Goal: the same where controllers see other sites as last reported. Method: bench_allocator --stale."""
    assert measured("--stale")["gap_closed_low"] > 0


@pytest.mark.xfail(
    strict=True,
    reason="none to win: the best stale rival pays 0.82 dollars a window less than the best informed one",
)
def test_the_model_wins_back_what_old_information_costs() -> None:
    """Goal: a quarter of (stale rival − fresh rival). Method: bench_allocator --stale; null: the price is nil."""
    won = measured("--stale")["won_back"]
    assert won is not None
    assert won >= 0.25


@pytest.mark.xfail(strict=True, reason="2,098 s")
def test_training_takes_at_most_25_minutes() -> None:
    """Goal: one seed of the default profile in 25 min on one core. Method: what the shipped run took."""
    assert shipped.shipped().manifest.figures["train_seconds"] <= TRAINING_S


@pytest.mark.xfail(strict=True, reason="0.33 to 0.35 of a chunk's CPU time, with partial information")
def test_environment_and_actors_take_at_most_a_fifth() -> None:
    """Goal: 20 % of training. Method: CPU time of playing and of learning, default profile, fewer windows."""
    assert env_share() <= 0.20


def env_share() -> float:
    """What `dwcp allocate train --share` prints, by CPU time, so that a busy machine counts for less."""
    jax = pytest.importorskip("jax", reason="pip install 'dwcp[train]' brings JAX")
    from dwcp.allocation.learn import assemble, courses, matd3, trainer
    from dwcp.allocation.learn.config import profile

    config = profile("default", stale=True, windows=WINDOWS, validation=2)
    rough = assemble.make_base(*assemble.HAND_WRITTEN)
    course = courses.training(0, WINDOWS, base=rough.score, like=config)
    exam = courses.padded(courses.validation(2, base=rough.score, like=config), course.nodes)
    one = trainer.prepare(config, course, exam, rough.score, rough.sharpness)
    gather = jax.jit(functools.partial(matd3.gather, config, one.setting, one.start))
    learn = jax.jit(functools.partial(matd3.learn, config))
    learner, played, learned = one.first, 0.0, 0.0
    for number in range(ROUNDS + 1):
        begun = time.process_time()
        learner, found = jax.block_until_ready(gather(learner, one.ground))
        between = time.process_time()
        learner, _told = jax.block_until_ready(learn(learner, found))
        if number:  # the first compiles
            played, learned = played + between - begun, learned + time.process_time() - between
    return played / (played + learned)
