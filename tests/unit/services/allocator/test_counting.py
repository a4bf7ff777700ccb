"""What the allocator counts: everything there from the start, waits and misses as they come."""

from __future__ import annotations

from tests.unit.services.allocator.desks import Bench, nodes, wanted

from dwcp.runtime.telemetry import METRICS
from dwcp.services.allocator.watching import look


def test_every_metric_is_there_before_its_first_event() -> None:
    """Goal: a query finds 0 and not nothing. Method: the exposition of a desk that was never asked."""
    shown = Bench().telemetry.exposition().decode()
    names = [metric.name for metric in METRICS if metric.name.startswith("dwcp_maddpg_")]

    missing = [name for name in names if f"\n{name}{{" not in shown and f"\n{name} " not in shown]
    missing = [name for name in missing if f"\n{name}_count" not in shown]
    assert missing == ["dwcp_maddpg_model_info"], "which names a model, and there is none"


def test_who_waits_is_shown_and_who_waited_too_long_is_counted() -> None:
    """Goal: queue, waits and misses of real questions. Method: a node that is full; time passes; it is freed."""
    bench = Bench()
    fleet = bench.tell(nodes(1, cpu=1000))
    assert bench.desk.place(wanted("a", fleet=fleet, commit=True)).node
    asked = wanted("b", fleet=fleet, data_site="oslo", priority=5)
    assert not bench.desk.place(asked).node
    look(bench.desk)
    assert bench.value('dwcp_maddpg_queue_length{priority="sensitive",site="oslo"}') == 1

    bench.clock.advance(20_000)
    assert not bench.desk.place(asked).node
    missed = 'dwcp_maddpg_sla_violations_total{cause="capacity",priority="sensitive"}'
    assert bench.value(missed) == 1
    assert bench.desk.release("a")
    assert bench.desk.place(asked).node
    look(bench.desk)

    assert bench.value(missed) == 1, "once for each workload"
    assert bench.value('dwcp_maddpg_queue_length{priority="sensitive",site="oslo"}') == 0
    assert bench.value('dwcp_maddpg_wait_seconds_sum{priority="sensitive"}') == 20.0
