"""A cluster is judged by what is known of it; what could not be asked is never well."""

from __future__ import annotations

import pytest

from dwcp.api.health import Verdict, worst
from dwcp.operations.clusters import ClusterHealth, Probe, Standing, judge, overall


def replica(number: int, *, index: int = 100, voting: bool = True, reached: bool | None = True) -> Probe:
    standing = Standing(view=3, leader="probft-3", index=index, voting=voting, replicas=4, quorum=3)
    verdict = Verdict.OK if reached else Verdict.UNKNOWN
    return Probe(f"probft-{number}", "replica", reached, 0, verdict, "", standing if reached else None)


def control(*probes: Probe) -> ClusterHealth:
    return judge(probes, lag_warn=10)[0]


def test_all_well() -> None:
    """Goal: a healthy cluster says how much it can bear. Method: four equal replicas."""
    health = control(*(replica(number) for number in range(1, 5)))

    assert (health.verdict, health.can_lose, health.index, health.lag) == (Verdict.OK, 1, 100, 0)


@pytest.mark.parametrize(
    ("odd", "verdict", "can_lose"),
    [
        (replica(4, reached=False), Verdict.WARN, 0),
        (replica(4, voting=False), Verdict.WARN, 0),
        (replica(4, index=50), Verdict.WARN, 1),
        (replica(4, reached=None), Verdict.WARN, 0),
    ],
)
def test_one_odd_replica_is_a_warning(odd: Probe, verdict: Verdict, can_lose: int) -> None:
    """Goal: one fault is seen before the second comes. Method: one odd replica each."""
    health = control(replica(1), replica(2), replica(3), odd)

    assert (health.verdict, health.can_lose) == (verdict, can_lose)
    assert "probft-4" in health.detail


def test_no_quorum_is_critical() -> None:
    """Goal: stopped writes are an alarm. Method: two of four gone."""
    health = control(replica(1), replica(2), replica(3, reached=False), replica(4, voting=False))

    assert health.verdict is Verdict.CRIT
    assert "3 are needed" in health.detail


def test_unknown_is_not_healthy() -> None:
    """Goal: a check that could not be made never succeeds. Method: nobody asked; nobody answers; no members."""
    unasked = control(*(replica(number, reached=None) for number in range(1, 5)))
    silent = control(*(replica(number, reached=False) for number in range(1, 5)))
    empty = control()

    assert {unasked.verdict, silent.verdict, empty.verdict} == {Verdict.UNKNOWN}


def test_services_and_the_whole() -> None:
    """Goal: one unreachable service makes the whole critical. Method: add one."""
    good = Probe("dwcp-manager", "service", True, 0, Verdict.OK)
    gone = Probe("dwcp-agent-rome", "service", False, 0, detail="no usable answer")
    replicas = [replica(number) for number in range(1, 5)]

    assert overall(judge((*replicas, good), lag_warn=10)) is Verdict.OK
    assert overall(judge((*replicas, good, gone), lag_warn=10)) is Verdict.CRIT


def test_worst_of_nothing_is_unknown() -> None:
    """Goal: an empty list is no success. Method: call it."""
    assert worst([]) is Verdict.UNKNOWN
    assert worst([Verdict.OK, Verdict.WARN, Verdict.UNKNOWN, Verdict.CRIT]) is Verdict.CRIT
