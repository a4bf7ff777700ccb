"""A model that answers wrongly or late is refused before anybody is placed by it."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from tests.unit.allocation.serving import placers
from tests.unit.services.allocator.desks import nodes, wanted, with_model

from dwcp.allocation import shipped
from dwcp.allocation.fleet import Floats
from dwcp.allocation.heuristics import DEFAULT
from dwcp.allocation.serving.chain import Decision, Served
from dwcp.allocation.serving.rehearsal import DECISIONS, EACH, Rehearsal, made
from dwcp.allocation.serving.scene import Terrain
from dwcp.allocation.serving.scoring import Scored, Scorer
from dwcp.allocation.serving.sheet import Standing
from dwcp.models.artefact import ModelRefused

DEADLINE_S = 0.010
LATE = DECISIONS // 100  # that are allowed


class Slow:
    """CPU time: `slow` decisions take longer than the deadline, the others nothing."""

    def __init__(self, slow: int = 0) -> None:
        self.left, self.now, self.begun = slow, 0.0, False

    def __call__(self) -> float:
        if self.begun and self.left:
            self.left -= 1
            self.now += DEADLINE_S * 1.5
        self.begun = not self.begun
        return self.now


class Grasping(Scorer):
    """Says that every node has room."""

    def score(self, standing: Standing, base: Floats | None = None) -> Scored:
        standing.mask[:, :-1] = True
        return super().score(standing, base)


class Raising(Scorer):
    def score(self, standing: Standing, base: Floats | None = None) -> Scored:
        raise ArithmeticError


def served(kind: type[Scorer] = Scorer, *, sizes: tuple[int, int] = (2, 8)) -> Served:
    found = Served(shipped.load(placers.made(tuned=True, nodes=sizes)))
    found.scorer.__class__ = kind
    return found


def rehearsal(recorded: tuple[Decision, ...] = (), *, slow: int = 0) -> Rehearsal:
    return Rehearsal(recorded, DEFAULT, Terrain(), DEADLINE_S, Slow(slow))


def test_a_good_model_goes_through_a_thousand_decisions_that_it_makes_itself() -> None:
    """Goal: the good case is whole, and said as it goes on. Method: no records; as many late ones as are allowed."""
    said: list[int] = []
    found = rehearsal(slow=LATE).of(served(), said.append)

    assert said == list(range(1, DECISIONS + 1))
    assert (found.decisions, found.recorded, found.late) == (DECISIONS, 0, LATE)
    assert found.by_model > 0.9 * DECISIONS
    assert 0 < found.checks["agreement"] <= 1
    assert set(found.checks) == {"rehearsed", "recorded", "model_share", "agreement", "p99_ms"}


def test_what_was_asked_here_comes_first() -> None:
    """Goal: recorded decisions count, those of fleets that the model was not validated for do not. Method: records of
    six nodes and of nine; another model, validated for eight at most."""
    bench = with_model()
    for count in (6, 9):
        fleet = bench.tell(nodes(count, memory=2**20))
        for number in range(5):
            bench.desk.place(wanted(f"{count}-{number}", cpu=1, fleet=fleet))
    recorded = bench.desk.records.newest(7)
    assert [len(one.roster.names) for one in recorded] == [6, 6, 9, 9, 9, 9, 9]

    assert rehearsal(recorded).of(served()).recorded == 2
    with pytest.raises(ModelRefused, match="raises an error, at decision 1 of"):
        rehearsal(recorded).of(served(Raising))


def test_a_late_model_is_refused_as_soon_as_it_is_sure() -> None:
    """Goal: the deadline, at the 99th percentile. Method: one late decision more than are allowed, the first ones."""
    said: list[int] = []
    with pytest.raises(ModelRefused, match=r"took longer than 10 ms of CPU time, at decision 11 of"):
        rehearsal(slow=LATE + 1).of(served(), said.append)
    assert len(said) == LATE


def test_bids_that_are_no_numbers_are_refused() -> None:
    """Goal: golden vectors are one row, this is a thousand. Method: weights that turn bad after loading."""
    model = served()
    model.scorer._mid[:] = np.nan
    with pytest.raises(ModelRefused, match="no finite numbers"):
        rehearsal().of(model)


def test_a_node_without_room_is_refused() -> None:
    """Goal: room is counted anew, not taken from the mask. Method: a scorer that writes into the mask."""
    with pytest.raises(ModelRefused, match="without room"):
        rehearsal().of(served(Grasping))


def test_made_fleets_are_those_that_were_validated() -> None:
    """Goal: made questions are sized as the model was, differ in how full they are, and are the same every time.
    Method: twenty fleets, twice."""
    count = 20 * EACH
    scenes = [scene for scene, _ in islice(made((3, 40), Terrain()), count)]
    sizes = {len(scene.roster.names) for scene in scenes}
    full = [float(scene.used[:, 0].sum() / scene.roster.capacity[:, 0].sum()) for scene in scenes]

    assert 3 <= min(sizes) < max(sizes) <= 40
    assert min(full) < 0.3 < 0.7 < max(full)
    again = [scene.used for scene, _ in islice(made((3, 40), Terrain()), count)]
    assert all(np.array_equal(scene.used, used) for scene, used in zip(scenes, again, strict=True))
