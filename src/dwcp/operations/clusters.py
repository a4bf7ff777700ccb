"""Judging clusters from what their members said last. Pure: probes in, verdicts out.

A member that could not be asked is unknown or down, never well; a cluster about which
too little is known is unknown.
"""

from __future__ import annotations

import msgspec

from dwcp.api.health import Verdict, worst

CONTROL = "control"
SERVICES = "services"
CLUSTERS = (CONTROL, SERVICES)


class Standing(msgspec.Struct, frozen=True):
    """Where a replica says it stands: the part of `/cluster/status` that a verdict needs."""

    view: int
    leader: str
    index: int
    voting: bool
    replicas: int
    quorum: int


class Probe(msgspec.Struct, frozen=True):
    """The last answer of one process. `reached` None: not asked yet; `verdict` is its own word."""

    name: str
    kind: str  # "replica" or "service"
    reached: bool | None
    age_ms: int
    verdict: Verdict = Verdict.UNKNOWN
    detail: str = ""
    standing: Standing | None = None


class Member(msgspec.Struct, frozen=True):
    name: str
    verdict: Verdict
    detail: str
    age_ms: int
    index: int | None = None
    view: int | None = None
    lag: int | None = None
    voting: bool | None = None


class ClusterHealth(msgspec.Struct, frozen=True):
    """`can_lose`: how many more members may fail before the cluster stops; None where that is unknown."""

    name: str
    verdict: Verdict
    detail: str
    members: tuple[Member, ...]
    can_lose: int | None = None
    view: int | None = None
    leader: str | None = None
    index: int | None = None
    lag: int | None = None


def judge(probes: tuple[Probe, ...], *, lag_warn: int) -> list[ClusterHealth]:
    """Every cluster's health. A replica more than `lag_warn` entries behind is worth a warning."""
    replicas = tuple(probe for probe in probes if probe.kind == "replica")
    others = tuple(probe for probe in probes if probe.kind != "replica")
    return [_control(replicas, lag_warn), _services(others)]


def overall(clusters: list[ClusterHealth]) -> Verdict:
    """The worst of all."""
    return worst(cluster.verdict for cluster in clusters)


def _control(probes: tuple[Probe, ...], lag_warn: int) -> ClusterHealth:
    standings = {probe.name: probe.standing for probe in probes if probe.reached and probe.standing}
    top = max((standing.index for standing in standings.values()), default=None)
    members = tuple(_replica(probe, standings.get(probe.name), top, lag_warn) for probe in probes)
    if not standings or top is None:
        return ClusterHealth(CONTROL, Verdict.UNKNOWN, "no replica could be asked", members)
    some = max(standings.values(), key=lambda standing: (standing.view, standing.index))
    voters = sum(standing.voting for standing in standings.values())
    can_lose = voters - some.quorum
    lag = max(top - standing.index for standing in standings.values())
    verdict, detail = _control_verdict(probes, members, can_lose, some)
    return ClusterHealth(
        CONTROL,
        verdict,
        detail,
        members,
        can_lose=max(can_lose, 0),
        view=some.view,
        leader=some.leader,
        index=top,
        lag=lag,
    )


def _control_verdict(
    probes: tuple[Probe, ...], members: tuple[Member, ...], can_lose: int, some: Standing
) -> tuple[Verdict, str]:
    unasked = [probe.name for probe in probes if probe.reached is None]
    if can_lose < 0 and unasked:
        return Verdict.UNKNOWN, f"not asked yet: {', '.join(unasked)}"
    if can_lose < 0:
        voting = some.quorum + can_lose
        return (
            Verdict.CRIT,
            f"{voting} of {some.replicas} replicas vote, {some.quorum} are needed: writes stop",
        )
    bad = [member.name for member in members if member.verdict is not Verdict.OK]
    if bad:
        return Verdict.WARN, f"can lose {can_lose} more; look at {', '.join(bad)}"
    return Verdict.OK, f"can lose {can_lose} more"


def _replica(probe: Probe, standing: Standing | None, top: int | None, lag_warn: int) -> Member:
    if not probe.reached or standing is None or top is None:
        verdict = Verdict.UNKNOWN if probe.reached is None else Verdict.CRIT
        return Member(probe.name, verdict, probe.detail or "not asked yet", probe.age_ms)
    lag = top - standing.index
    verdict, detail = probe.verdict, probe.detail
    if not standing.voting:
        verdict, detail = worst((verdict, Verdict.WARN)), detail or "it only learns: its votes are missing"
    if lag > lag_warn:
        verdict, detail = worst((verdict, Verdict.WARN)), detail or f"{lag} entries behind"
    return Member(
        probe.name,
        verdict,
        detail,
        probe.age_ms,
        index=standing.index,
        view=standing.view,
        lag=lag,
        voting=standing.voting,
    )


def _services(probes: tuple[Probe, ...]) -> ClusterHealth:
    members = tuple(
        Member(
            probe.name,
            probe.verdict if probe.reached else (Verdict.UNKNOWN if probe.reached is None else Verdict.CRIT),
            probe.detail or ("" if probe.reached else "not asked yet"),
            probe.age_ms,
        )
        for probe in probes
    )
    bad = [member.name for member in members if member.verdict is not Verdict.OK]
    verdict = worst(member.verdict for member in members)
    return ClusterHealth(SERVICES, verdict, f"look at {', '.join(bad)}" if bad else "all well", members)
