"""The fast scorer says what the slow one says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.allocation.serving import placers

from dwcp.allocation.heuristics import DEFAULT, HEURISTICS
from dwcp.allocation.policies import admission, learned
from dwcp.allocation.policies.linear import start
from dwcp.allocation.policies.rules import RULES, Knobs, policy
from dwcp.allocation.serving.chain import Rule
from dwcp.allocation.serving.scene import Scene, Terrain, Wanted, mask_of, view_of
from dwcp.allocation.serving.scoring import Scorer
from dwcp.allocation.serving.sheet import Sheet, tuned_of
from dwcp.allocation.serving.state import FleetState
from dwcp.api.allocator import NodeState
from dwcp.api.workloads import Capacity, NodeStatus


def scene(rng: np.random.Generator, count: int) -> Scene:
    """`count` nodes at up to four sites: some closed, some without capacity, some old."""
    state = FleetState(Terrain(links={"s0": (100.0, 50.0), "s1": (20.0, 20.0)}))
    state.upsert(
        NodeState(
            f"n{row:04}",
            f"s{rng.integers(4)}",
            Capacity(*(int(one) for one in rng.integers(0 if row % 7 == 3 else 1, 64_000, 4))),
            status=NodeStatus.DRAINING if row % 5 == 4 else NodeStatus.READY,
            seen_ms=int(rng.integers(1, 1_000_000)) if row % 3 == 0 else 0,
        )
        for row in range(count)
    )
    return state.scene(wall_ms=1_000_000)


def workload(rng: np.random.Generator) -> Wanted:
    return Wanted(
        name="w",
        demand=rng.integers(0, 9_000, 4),
        site="s1" if rng.random() < 0.1 else "",
        data_site=f"s{rng.integers(5)}",
        data_bytes=int(rng.integers(0, 10**11)),
        priority=int(rng.integers(3)),
        predicted_s=float(rng.integers(30, 10**6)),
        slack_s=float(rng.integers(0, 600)),
        may_defer=bool(rng.random() < 0.5),
        queued=int(rng.integers(0, 50)),
    )


@pytest.mark.parametrize("linear", [False, True])
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 3, 17, 90]))
def test_it_bids_like_the_reference(linear: bool, seed: int, count: int) -> None:
    """Goal: what is served is what was trained. Method: random scenes and weights through both."""
    rng = np.random.default_rng(seed)
    own = placers.weights(seed % 5)
    if linear:
        own = {name: array for name, array in own.items() if not name.startswith("base")}
        admit = rng.normal(0.0, 0.5, admission.SIZE) * (seed % 3 > 0)
        own |= learned.base_linear(start(), sharpness=3.0, admit=admit)
    nodes, wanted = scene(rng, count), workload(rng)
    view = view_of(nodes, wanted)

    mine = Scorer(own).score(Sheet(nodes.roster, (wanted,), nodes.age_s).standing(0, nodes)).bids[0]
    theirs = learned.scorer(own)(view, np)

    columns = np.append(
        view.capacity[:, 0] > 0, True
    )  # a node without a core is never chosen, whatever it bids
    np.testing.assert_allclose(mine[columns], theirs[columns], rtol=2e-4, atol=2e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 17, 90]))
def test_a_batch_shares_and_changes_no_bit(seed: int, count: int) -> None:
    """Goal: what a batch works out once is what each alone would have. Method: 8 workloads in a sheet and alone, the
    room of random nodes taken between; rules and bids are equal to the last bit."""
    rng = np.random.default_rng(seed)
    scorer = Scorer(placers.weights(seed % 5))
    nodes, wanted = scene(rng, count), [workload(rng) for _ in range(8)]
    together = Sheet(nodes.roster, wanted, nodes.age_s)
    rule = HEURISTICS["local-best-fit+"]
    apart = Rule.named("local-best-fit+", rule).tuned
    assert apart is not None
    for place, one in enumerate(wanted):
        alone = Sheet(nodes.roster, (one,), nodes.age_s).standing(0, nodes)
        shared = together.standing(place, nodes)
        np.testing.assert_array_equal(scorer.score(shared).bids, scorer.score(alone).bids)
        np.testing.assert_array_equal(shared.by_rule(apart)[0], rule(view_of(nodes, one), np))
        np.testing.assert_array_equal(shared.mask[0], mask_of(nodes, one))
        nodes.used[rng.integers(count)] += one.demand


APART = sorted(
    RULES.keys() - {"random", "power-of-two", "first-fit", "next-fit"}
)  # these draw, or go by the order


def test_the_rule_that_serves_is_taken_apart() -> None:
    """Goal: whatever tuning finds cheapest, a batch is decided several at a time. Method: the release's own rule."""
    assert Rule.named(DEFAULT, HEURISTICS[DEFAULT]).tuned is not None


@pytest.mark.parametrize("name", APART)
def test_a_rule_in_parts_is_the_rule(name: str) -> None:
    """Goal: the quick way and the general one agree exactly, headroom for age included. Method: random scenes."""
    knobs = Knobs(money=0.7, reserve=0.2, headroom=0.4)
    apart = tuned_of(name, knobs)
    assert apart is not None
    for seed in range(20):
        rng = np.random.default_rng(seed)
        nodes, wanted = scene(rng, 30), workload(rng)
        standing = Sheet(nodes.roster, (wanted,), nodes.age_s).standing(0, nodes)
        np.testing.assert_array_equal(
            standing.by_rule(apart)[0], policy(RULES[name], knobs)(view_of(nodes, wanted), np)
        )


def test_a_missing_array_is_named() -> None:
    """Goal: another network is refused when it is built, not when it is asked. Method: leave one out."""
    own = placers.weights()
    del own["pool"]

    with pytest.raises(KeyError, match="pool"):
        Scorer(own)
