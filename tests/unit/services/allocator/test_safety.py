"""Whatever happens to a model, a feasible answer comes in time and says who gave it and why."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.unit.allocation.serving import placers
from tests.unit.services.allocator.desks import Bench, nodes, wanted, with_model

from dwcp.allocation import shipped
from dwcp.allocation.heuristics import DEFAULT, HEURISTICS
from dwcp.allocation.serving.chain import Rule, Served
from dwcp.allocation.serving.drifting import Drifting
from dwcp.api.allocator import BatchRequest
from dwcp.models.artefact import ModelRefused
from dwcp.models.drift import Drift
from dwcp.services.allocator.stage import DRIFT_EVERY
from dwcp.services.allocator.watching import look


def test_a_model_decides_where_it_may() -> None:
    """Goal: the good case. Method: place with a model that was validated for this fleet."""
    bench = with_model()
    answer = bench.desk.place(wanted(fleet=bench.tell(nodes())))

    assert (answer.by, answer.fallback, answer.policy) == ("model", "", "maddpg-placer")
    assert answer.node
    assert answer.model == bench.stage.active.digest  # type: ignore[union-attr]


def test_without_a_model_the_best_tuned_rule_answers() -> None:
    """Goal: no model is a normal state that is said. Method: place on a desk without one."""
    bench = Bench()
    answer = bench.desk.place(wanted(fleet=bench.tell(nodes())))

    assert (answer.by, answer.fallback, answer.policy) == ("rule", "no_model", DEFAULT)
    assert answer.node
    assert bench.value('dwcp_maddpg_fallback_total{reason="no_model"}') == 1


def test_a_fleet_that_was_never_validated_is_the_rules() -> None:
    """Goal: nothing is served for numbers of nodes that were not tried. Method: 6 nodes, validated for 7 to 9."""
    bench = with_model(nodes=(7, 9))

    assert bench.desk.place(wanted(fleet=bench.tell(nodes()))).fallback == "ood"
    assert bench.desk.place(wanted("v", fleet=bench.tell(nodes(8)))).by == "model"


def test_features_far_from_training_are_the_rules() -> None:
    """Goal: out of range is told by each feature. Method: narrow one feature's bounds until the workload is outside."""
    made = placers.made(tuned=True)
    manifest = msgspec.json.decode(made.manifest)
    manifest["bounds"]["log-predicted"] = [0.0, 0.1]
    bench = Bench()
    bench.serve(dataclasses.replace(made, manifest=msgspec.json.encode(manifest)))
    answer = bench.desk.place(wanted(fleet=bench.tell(nodes()), predicted_s=1e8))

    assert answer.fallback == "ood"
    assert bench.desk.explain(answer.decision).outside == ("log-predicted",)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_and_if_they_turn_so_never_decide(poison: float) -> None:
    """Goal: neither at loading nor after it. Method: poison the file; then the loaded arrays, in every layer."""
    own = placers.weights()
    own["mid"] = np.full_like(own["mid"], poison)
    with pytest.raises(ModelRefused, match="finite"):
        shipped.load(placers.repacked(placers.made(), own))

    bench = with_model()
    active = bench.stage.active
    assert active is not None
    active.scorer._node_out = np.full_like(active.scorer._node_out, poison)
    fleet = bench.tell(nodes())
    answers = [bench.desk.place(wanted(f"w{number}", fleet=fleet)) for number in range(8)]

    assert {answer.by for answer in answers} == {"rule"}
    assert all(answer.node for answer in answers)
    assert [answer.fallback for answer in answers] == ["nan"] * 5 + ["breaker"] * 3, (
        "five faults open the breaker"
    )


def test_a_model_that_raises_is_the_rules_and_comes_back_when_it_is_well() -> None:
    """Goal: faults are contained, not for ever. Method: a scorer that raises; mend it; let the breaker's time pass."""
    bench = with_model()
    active = bench.stage.active
    assert active is not None
    sound, active.scorer = active.scorer, None  # type: ignore[assignment]
    fleet = bench.tell(nodes(memory=2**20))
    for number in range(5):
        assert bench.desk.place(wanted(f"w{number}", fleet=fleet)).fallback == "error"
    active.scorer = sound
    assert bench.desk.place(wanted("x", fleet=fleet)).fallback == "breaker"
    bench.clock.advance(30_001)

    assert bench.desk.place(wanted("y", fleet=fleet)).by == "model"


def test_another_schema_is_refused() -> None:
    """Goal: a model of other features never serves. Method: load one; the sentence says to train again."""
    with pytest.raises(ModelRefused, match="other features"):
        shipped.load(placers.made(schema="0" * 64))


def test_a_schema_that_changed_in_the_registry_leaves_what_served(tmp_path: Path) -> None:
    """Goal: a bad reload changes nothing but the word in health. Method: damage the active model's file."""
    bench = Bench(tmp_path)
    digest = bench.admit(placers.made(1, tuned=True), active="")
    assert bench.desk.place(wanted(fleet=bench.tell(nodes()))).model == digest
    other = bench.stage.registry
    assert other is not None
    second = other.admit(placers.made(2, tuned=True), signer=bench.key).digest
    (tmp_path / "models" / "maddpg-placer" / second / "weights.safetensors").write_bytes(b"damaged")
    other.change(lambda state: msgspec.structs.replace(state, active=second))
    asyncio.run(bench.stage.refresh())

    assert "do not match" in bench.stage.trouble
    assert bench.desk.place(wanted("v", fleet=bench.desk.revision)).model == digest
    assert bench.value('dwcp_maddpg_model_reload_total{result="failed"}') == 1


@pytest.mark.parametrize("by_ms", [-3_600_000, 3_600_000])
def test_a_clock_jump_is_noticed(by_ms: int) -> None:
    """Goal: ages mean nothing after a jump, so the rule answers for ten seconds. Method: move wall time alone."""
    bench = with_model()
    fleet = bench.tell(nodes())
    assert bench.desk.place(wanted("a", fleet=fleet)).by == "model"
    bench.clock._now_ms += by_ms
    jumped = bench.desk.place(wanted("b", fleet=fleet))

    assert (jumped.by, jumped.fallback, bool(jumped.node)) == ("rule", "clock", True)
    bench.clock.advance(10_001)
    assert bench.desk.place(wanted("c", fleet=fleet)).by == "model"


def test_promises_end_by_time_that_cannot_jump() -> None:
    """Goal: a wall clock that jumps frees nothing and keeps nothing. Method: promise, jump, look, wait, look."""
    bench = Bench()
    fleet = bench.tell(nodes(1, cpu=1000))
    assert bench.desk.place(wanted("a", fleet=fleet)).node
    bench.clock._now_ms += 3_600_000
    assert not bench.desk.place(wanted("b", fleet=fleet)).node
    bench.clock.advance(5_001)

    assert bench.desk.place(wanted("b", fleet=fleet)).node


def test_a_late_model_does_not_make_the_answer_late() -> None:
    """Goal: the deadline holds. Method: time that passes 6 ms at each look, so that the model's bids come after 10 ms;
    in a batch the rest is answered by the rule."""
    bench = with_model()
    fleet = bench.tell(nodes(memory=2**20))
    bench.ns.step = 6_000_000
    late = bench.desk.place(wanted("a", fleet=fleet))
    items = tuple(wanted(f"b{number}", cpu=10) for number in range(32))
    bench.ns.step = 4_000_000
    batch = bench.desk.batch(BatchRequest(items=items, fleet=fleet))

    assert (late.by, late.fallback, bool(late.node)) == ("rule", "timeout", True)
    by = [answer.by for answer in batch.answers]
    assert by[0] == "model"
    assert by[-1] == "rule"
    assert all(answer.node for answer in batch.answers)


def test_the_shadow_compares_both_choices() -> None:
    """Goal: every decision keeps both. Method: place some, read the record, the gauges and `/v1/model`."""
    bench = with_model()
    fleet = bench.tell(nodes())
    for number in range(12):
        answer = bench.desk.place(wanted(f"w{number}", fleet=fleet, data_site="oslo", data_bytes=10**9))
        told = bench.desk.explain(answer.decision)
        assert told.model_node == answer.node
        assert told.rule_node
    look(bench.desk)
    info = bench.desk.model()

    assert info.decisions == 12
    assert info.model_share == 1.0
    assert bench.value("dwcp_maddpg_shadow_agreement_ratio") == info.agreement
    assert bench.value("dwcp_maddpg_capacity_invariant_violations_total") == 0


def test_a_canary_decides_at_some_sites(tmp_path: Path) -> None:
    """Goal: by site, and in the shadow elsewhere. Method: a canary at half of the sites, workloads of many sites."""
    bench = Bench(tmp_path)
    bench.admit(placers.made(1, tuned=True), canary="")
    registry = bench.stage.registry
    assert registry is not None
    bench.stage._swap(registry.change(lambda state: msgspec.structs.replace(state, canary_pct=50)))
    fleet = bench.tell(nodes(memory=2**20))
    answers = {
        site: bench.desk.place(wanted(site, cpu=1, fleet=fleet, data_site=site))
        for site in (f"site-{number}" for number in range(40))
    }

    assert {answer.fallback for answer in answers.values()} == {"", "canary"}
    assert 8 < sum(answer.by == "model" for answer in answers.values()) < 32
    assert bench.stage.trial.comparison.samples == 40, "all are compared, wherever they were decided"


def test_a_canary_that_is_dearer_stops(tmp_path: Path) -> None:
    """Goal: harm ends by itself. Method: tell the trial that it costs twice as much, then let it be judged."""
    bench = Bench(tmp_path)
    digest = bench.admit(placers.made(1, tuned=True), canary="")
    for number in range(300):
        comparison = bench.stage.trial.comparison
        bench.stage.trial.comparison = comparison.add(2.0 + number % 3 / 10, 1.0)
    bench.stage.judge()

    assert bench.stage.state.canary == ""
    assert bench.stage.state.words[digest].verdict == "fail"
    assert bench.stage.candidate is None


def test_other_workloads_are_the_rules_until_the_old_ones_come_again() -> None:
    """Goal: a model decides on what it was watched on; the shadow goes on, a batch is as quick. Method: small windows
    of short workloads, then of long ones, then of short ones again."""
    bench = with_model()
    bench.stage.drift = Drifting(drift=Drift(reference=40, window=20))
    fleet = bench.tell(nodes(memory=2**20))

    def windows(count: int, *, predicted_s: float) -> set[str]:
        said = set()
        for _ in range(count * 20 * DRIFT_EVERY // 32):
            batch = tuple(
                wanted(f"w{place}", cpu=1, fleet=fleet, predicted_s=predicted_s) for place in range(32)
            )
            answers = bench.desk.batch(BatchRequest(items=batch, fleet=fleet)).answers
            said |= {answer.fallback for answer in answers}
            assert all(answer.node and bench.desk.release(answer.workload) for answer in answers)
        return said

    assert windows(4, predicted_s=60.0) == {""}
    assert windows(2, predicted_s=90_000.0) == {""}, "as they come in, the model decides"
    compared = bench.stage.shadow.compared
    assert windows(1, predicted_s=90_000.0) == {"drift"}
    assert bench.stage.shadow.compared == compared + 20 * DRIFT_EVERY
    assert bench.desk.place(wanted(fleet=fleet)).fallback == "drift"
    assert bench.value('dwcp_maddpg_fallback_total{reason="drift"}') == 20 * DRIFT_EVERY + 1
    assert "log-predicted" in bench.desk.model().detail
    assert "drift" in windows(2, predicted_s=60.0)
    assert windows(1, predicted_s=60.0) == {""}


def test_a_served_model_names_its_rule() -> None:
    """Goal: scores are shared only with the very same rule. Method: a blind rule's model, and a tuned rule's."""
    tuned = Rule.named(DEFAULT, HEURISTICS[DEFAULT]).tuned
    own = Served(shipped.load(placers.made(tuned=True))).scorer.tuned

    assert Served(shipped.load(placers.made())).scorer.tuned != tuned
    assert own == tuned is not None
