"""Whole runs in miniature: seeded, resumable byte for byte, judged on validation, for each algorithm."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation.learn import grounds

jax = pytest.importorskip("jax", reason="pip install 'dwcp[train]' brings JAX")


def prepared(algorithm: str, **changes: object):
    from dwcp.allocation.learn import trainer

    stale = bool(changes.get("stale", False))
    config = grounds.tiny(algorithm=algorithm, **changes)
    exam = grounds.course(stale) if algorithm == "canonical" else grounds.exam(stale)
    return config, trainer.prepare(
        config, grounds.course(stale), exam, grounds.BASE, float(grounds.SHARPNESS[0])
    )


@pytest.mark.timeout(400)  # compiling takes most of it
def test_a_run_goes_on_where_it_was_written_down() -> None:
    """Goal: a killed training loses a minute, not its result; stale views and conflicts are part of training.
    Method: three segments at once, and two, written, read, and one more: equal bytes; the actor has moved;
    other settings refuse the file."""
    from dwcp.allocation.learn import checkpoint

    config, one = prepared("matd3", stale=True, segments=3)
    digest = checkpoint.config_digest(config, "course")
    through = list(one.run(one.fresh()))
    written = checkpoint.dump(through[1], digest)
    fresh = one.fresh()
    read = checkpoint.load(written, fresh, digest)

    rest = list(one.run(read))

    assert len(through) == 3
    assert len(rest) == 1
    assert checkpoint.dump(rest[0], digest) == checkpoint.dump(through[2], digest)
    assert checkpoint.dump(read, digest) == written
    moved = [
        float(abs(np.asarray(new) - np.asarray(old)).max())
        for new, old in zip(
            jax.tree.leaves(rest[0].learner.actor), jax.tree.leaves(fresh.learner.actor), strict=True
        )
    ]
    assert max(moved) > 0
    assert all(np.isfinite(point).all() for point in through[2].points)
    assert grounds.course(True).stale
    assert int(rest[0].learner.play.state.seen_at.max()) > 0, "no site ever reported"
    with pytest.raises(checkpoint.CheckpointRefused, match="other settings"):
        checkpoint.load(written, fresh, checkpoint.config_digest(grounds.tiny(seed=1), "course"))
    with pytest.raises(checkpoint.CheckpointRefused, match="cannot be read"):
        checkpoint.load(written[:100], fresh, digest)


@pytest.mark.soak  # compiling two more algorithms takes a minute and a half
@pytest.mark.timeout(400)
@pytest.mark.parametrize("algorithm", ["mappo", "canonical"])
def test_rivals_learn_something(algorithm: str) -> None:
    """Goal: both rivals run whole. Method: a segment must move every layer of the actor, with finite losses."""
    import functools

    from dwcp.allocation.env import fast
    from dwcp.allocation.learn import collect, trainer
    from dwcp.allocation.learn.matd3 import Ground

    config, course = grounds.tiny(algorithm=algorithm, chunks=2), grounds.course()
    plugged = trainer.ALGORITHMS[algorithm]
    setting = collect.Setting(grounds.BASE, grounds.SHARPNESS, stale=False)
    ground = Ground(fast.device(course.episodes), fast.device(course.states))
    start = course.span[0]
    first = plugged.begin(config, ground, setting, start=start)

    after, told = jax.jit(functools.partial(plugged.segment, config, setting, start))(first, ground)

    assert np.isfinite([float(part) for part in told]).all()
    assert int(after.updates) == config.chunks * config.updates
    out = "w3" if algorithm == "canonical" else "node.out"
    assert float(abs(after.actor[out] - first.actor[out]).max()) > 0
    assert float(told.decisions) > 10


def test_the_best_is_kept_and_patience_ends() -> None:
    """Goal: never the last, never the one that earned most in training. Method: feed validation costs."""
    from dwcp.allocation.learn import trainer
    from dwcp.allocation.learn.matd3 import Told

    config = grounds.tiny(segments=10, patience=2)
    standing = trainer.Standing(None, "none", float("inf"), -1, ())
    rule = np.array([10.0, 12.0])
    for number, cost in enumerate([11.0, 9.0, 9.5, 9.6]):
        assert not trainer.finished(config, standing)
        learner = _Learner(f"actor {number}", number)
        told = Told(1.0, 1.0, 1.0, 5)
        standing = trainer.judged(standing, learner, told, rule * cost / 11.0, rule)

    assert trainer.finished(config, standing)
    assert standing.best == "actor 1"
    assert standing.best_at == 1
    assert standing.points[1].difference == pytest.approx(-2.0)
    assert standing.points[-1].decisions == 20


class _Learner:
    def __init__(self, actor: str, updates: int) -> None:
        self.actor, self.updates = actor, updates
