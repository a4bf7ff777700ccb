"""Weights of waiting: what they are made of, and that none is none."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation.learn import grounds

from dwcp.allocation.env.view import View
from dwcp.allocation.learn.courses import sampled
from dwcp.allocation.policies import admission
from dwcp.allocation.policies.linear import linear, start


def views() -> list[View]:
    """Decisions of a course, half of them on old information."""
    return sampled(grounds.course(stale=True), linear(start()))


def test_no_weights_leave_the_scorer_itself() -> None:
    """Goal: what was not searched costs nothing. Method: zeros; the same policy comes back."""
    scorer = linear(start())

    assert admission.admitting(scorer, np.zeros(admission.SIZE)) is scorer


def test_only_waiting_is_weighed() -> None:
    """Goal: nodes keep their scores, and a weight on kinds tells them apart. Method: one weight, on best effort."""
    scorer, weights = linear(start()), np.zeros(admission.SIZE)
    weights[admission.REASONS] = 3.0

    for view in views():
        before, after = scorer(view, np), admission.admitting(scorer, weights)(view, np)
        np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
        np.testing.assert_allclose(after[:, -1] - before[:, -1], 3.0 * (view.priority == 0))


def test_facts_do_not_grow_with_the_fleet() -> None:
    """Goal: what was searched on a dozen nodes holds for a thousand. Method: every node three times over."""
    for view in views():
        wide = view._replace(
            **{
                name: np.repeat(getattr(view, name), 3, axis=1)
                for name in ("free", "capacity", "local", "wan", "energy", "late", "exit_in_s", "age_s")
            },
            mask=np.concatenate([np.repeat(view.mask[:, :-1], 3, axis=1), view.mask[:, -1:]], axis=1),
        )
        for one, three in zip(admission.facts(view, np), admission.facts(wide, np), strict=True):
            np.testing.assert_allclose(one, three, rtol=1e-12)


@pytest.mark.parametrize("weights", [np.zeros(3), np.full(admission.SIZE, np.nan)])
def test_other_weights_are_refused(weights: np.ndarray) -> None:
    """Goal: a file of another kind is refused where it is read. Method: too few, and no numbers."""
    with pytest.raises(ValueError, match="30 finite numbers"):
        admission.admitting(linear(start()), weights)
