"""A model refined: judged before it is kept, and written so that a server takes it."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation.serving import placers

from dwcp.allocation import shipped
from dwcp.allocation.learn import card, refine
from dwcp.allocation.learn.fleets import NOT_TRIED
from dwcp.allocation.learn.search import SIZE, Plan
from dwcp.allocation.policies import learned

PLAN = Plan(seed=3, windows=2, validation=4, jobs=60, warm_jobs=20, generations=2, pairs=2, sitting=2)


def silent(_text: str) -> None:
    """Nobody listens."""


def test_a_dropped_layer_leaves_the_model_as_it_was() -> None:
    """Goal: what does not win beyond doubt is not kept. Method: a layer that lets everybody wait, in place of the
    search; it costs more, and the weights come back with a layer of zeros and the verdict."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine, "search", lambda *_asked: {"admit": np.full(SIZE, 9.0, dtype=np.float32)})
        found = refine.refine(placers.weights(1), PLAN, silent)

    assert found.after.mean() > found.before.mean()
    assert not found.kept
    assert not found.weights["admit"].any()


def test_the_files_are_a_model_and_say_how_it_went() -> None:
    """Goal: what is written loads, in ranges that hold what was seen, and its card quotes the search. Method: refine
    a small model for two generations, write, load and read the card."""
    model = shipped.load(placers.made())

    found = refine.refine(model.weights, PLAN, silent)
    made = refine.remade(model, found, PLAN, command="refined here", seconds=7.0, tried=NOT_TRIED)

    again = shipped.load(made)
    facts = again.manifest.figures
    assert again.manifest.version.endswith("-refined-3")
    assert facts["refined_difference"] == pytest.approx(float((found.after - found.before).mean()))
    assert len(found.before) == PLAN.validation
    full = learned.CONTEXT.index("defer-full")
    low, high = again.manifest.bounds["defer-full"]
    assert all(
        low <= each.context[..., full].min() <= each.context[..., full].max() <= high for each in found.seen
    )
    assert ("kept" if found.kept else "dropped") in card._refined(again.manifest)[0]
