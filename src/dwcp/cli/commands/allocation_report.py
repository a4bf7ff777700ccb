"""`dwcp ops resource-allocation-report`: how well the fleet is used, and whether the placer earns its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from dwcp.api.health import Verdict
from dwcp.api.workloads import Shape
from dwcp.cli.output import Table
from dwcp.cli.scripts import Outcome, Run, script
from dwcp.operations.runs import Section, judged
from dwcp.runtime.clock import iso
from dwcp.runtime.errors import Exit, RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from dwcp.allocation.replay import Against, Replay
    from dwcp.allocation.report import Commits, Decisions, Fleet, NodeUse, Samples
    from dwcp.api.manager import NodeView, WorkloadView
    from dwcp.runtime.runs import Runs

NAME = "resource-allocation-report"
LATE_MAX = 0.01  # of the workloads with a deadline: above it is a finding
NODES_SHOWN = 20
PAGE = "report.html"
GAP = "-"
T = TypeVar("T")


class PageUnwritable(RuntimeFault):
    """The page cannot be written where `--out` says: give another file."""

    exit_code = Exit.UNKNOWN


class SiteUse(Shape, frozen=True):
    """One resource at one site, in the units of a node's capacity; `share` is allocated over capacity."""

    site: str
    resource: str
    capacity: int
    allocated: int
    share: float | None
    used: int | None


class Report(Shape, frozen=True):
    """null where a source did not tell. Counters count since the start of the process that counts.

    `fleet`, `decisions` and `commits` are the shapes of `allocation.report`, `replay` that of `allocation.replay`
    (Any: they import NumPy).
    """

    use: tuple[SiteUse, ...] | None
    fleet: dict[str, Any] | None
    decisions: dict[str, Any] | None
    commits: dict[str, Any] | None
    wan_bytes: dict[str, int | None]
    wan_bytes_total: int | None
    replay: dict[str, Any] | None = None  # the day's placements beside first-fit and DRF
    last_known: dict[str, Any] | None = None  # of an earlier run, where the allocator does not answer now
    page: str = ""  # the file that shows it; "" where none could be kept


@script(NAME, answers=Report, budget_s=60.0)
def resource_allocation_report(
    run: Run,
    late_max: Annotated[
        float, typer.Option(min=0, max=1, help="share of missed deadlines above which it is a finding")
    ] = LATE_MAX,
    out: Annotated[
        Path | None,
        typer.Option(help="file for the page (HTML) that shows it; else in the record of this run"),
    ] = None,
) -> Outcome:
    """Report how the fleet is used: by site, node, tenant, policy; conflicts, rejections, stranded cores, WAN bytes.

    The last day's placements are replayed against first-fit and DRF on the same demand, with the 95 % interval
    of the saving. A page (HTML, without scripts) shows all of it. What cannot be measured is a gap, never a
    zero. Exit codes: 0 well; 1 findings: late work, a model that is worse than its rule, placements that are surely
    dearer than first-fit's or DRF's, nodes that do not answer; 2 a node holds more than it has; 3 a source does not
    answer: its part is not known.

    Example: ./scripts/resource-allocation-report.sh
    (the same as dwcp ops resource-allocation-report)
    """
    from dwcp.allocation import report, report_page
    from dwcp.allocation.report_page import Told
    from dwcp.cli.calls import require_installed

    require_installed(run.layout)
    sections: list[Section] = []
    lists = _Lists()
    found = _asked(sections, "fleet", lambda: _fleet(run, lists), lambda fleet: _judge_fleet(fleet, late_max))
    decided = _asked(
        sections, "placements", lambda: report.decisions(_scraped(run, "maddpg-allocator")), _judge_decisions
    )
    replayed = _asked(sections, "replay", lambda: _replay(run, lists), _judge_replay)
    counted = _asked(
        sections, "commits", lambda: report.commits(_scraped(run, "dwcp-manager")), lambda _: (Verdict.OK, "")
    )
    bytes_ = _wan(run, sections)
    known = [each for each in bytes_.values() if each is not None]
    result = Report(
        use=None if found is None else _uses(found),
        fleet=_plain(found),
        decisions=_plain(decided),
        commits=_plain(counted),
        wan_bytes=bytes_,
        wan_bytes_total=sum(known) if known else None,
        replay=None if replayed is None else msgspec.to_builtins(replayed),
        last_known=_last_known(run) if decided is None else None,
    )
    verdict, said = judged(sections)
    summary = said if verdict is not Verdict.OK else _summary(found, decided)
    gaps = tuple((each.name, each.detail) for each in sections if each.verdict is Verdict.UNKNOWN)
    told = Told(verdict.value.upper(), summary, iso(run.env.clock.now_ms()), gaps)
    shown = _keep(run, report_page.page(told, found, decided, replayed), out)
    return Outcome(
        verdict,
        summary,
        result=msgspec.structs.replace(result, page=shown),
        lines=(
            *_lines(found, decided, counted, result),
            *_replay_lines(replayed),
            *((f"page: {shown}",) if shown else ()),
        ),
        table=None if found is None else _table(result),
        sections=tuple(sections),
        next=_next(verdict, sections),
    )


def _keep(run: Run, page: str, out: Path | None) -> str:
    """Where it is now: `out`, or beside the run's answer; "" where runs are not recorded. Raises `PageUnwritable`."""
    if out is not None:
        try:
            out.write_text(page, encoding="utf-8")
        except OSError as exc:
            raise PageUnwritable(f"--out {out}: {exc.strerror}; give another file") from exc
        return str(out)
    from dwcp.runtime.durable import replace_private

    kept: list[str] = []

    def keep(runs: Runs) -> None:
        place = runs.folder / run.record.id / PAGE
        replace_private(place, page.encode())
        kept.append(str(place))

    if run.record.id:
        run.keep(keep)
    return "".join(kept)


def _asked(
    sections: list[Section], name: str, ask: Callable[[], T], judge: Callable[[T], tuple[Verdict, str]]
) -> T | None:
    """One source: what it told, or a section that says that it did not."""
    from dwcp.cli.calls import ServiceRefused, ServiceUnavailable
    from dwcp.runtime.errors import NotRunning

    try:
        found = ask()
    except (ServiceUnavailable, ServiceRefused, NotRunning) as exc:
        sections.append(Section(name, Verdict.UNKNOWN, str(exc)))
        return None
    sections.append(Section(name, *judge(found)))
    return found


@dataclass(slots=True)
class _Lists:
    """The manager's lists, once they have been asked for."""

    nodes: tuple[NodeView, ...] | None = None
    workloads: tuple[WorkloadView, ...] = ()


def _fleet(run: Run, lists: _Lists) -> Fleet:
    from dwcp.allocation.report import fleet
    from dwcp.api import manager as api
    from dwcp.cli.calls import control_plane

    with control_plane(run.env, run.layout) as manager:
        nodes = manager.ask(api.NodeList, api.nodes()).nodes
        workloads = manager.ask(api.WorkloadList, api.workloads()).workloads
    lists.nodes, lists.workloads = nodes, workloads
    return fleet(nodes, workloads)


def _replay(run: Run, lists: _Lists) -> Replay:
    """The allocator's day on the manager's nodes. Raises as `control_plane` and `service` do."""
    from dwcp.allocation.replay import replay
    from dwcp.api import allocator as api
    from dwcp.cli.calls import ServiceUnavailable, service

    with service(run.env, run.layout, "maddpg-allocator") as placer:
        day = placer.ask(api.Day, api.day())
    if lists.nodes is None:
        raise ServiceUnavailable("without the manager's nodes there is nothing to replay on")
    nodes = [
        api.NodeState(view.node.name, view.node.site, view.node.capacity, view.allocation)
        for view in lists.nodes
    ]
    tenants = {view.id: view.submitted_by for view in lists.workloads}
    return replay(day.dealt, nodes, day.prices, tenants=tenants, since_ms=day.since_ms)


def _scraped(run: Run, service: str) -> Samples:
    from dwcp.cli.scraping import scrape

    return scrape(run.env, run.layout, service)


def _wan(run: Run, sections: list[Section]) -> dict[str, int | None]:
    """Bytes that each agent sent, by its process; None where it did not tell."""
    from dwcp.allocation.report import wan_bytes
    from dwcp.cli.scraping import agents

    found: dict[str, int | None] = {}
    missing: list[Section] = []
    for name in agents(run.layout):
        samples = _asked(missing, name, lambda name=name: _scraped(run, name), lambda _: (Verdict.OK, ""))  # type: ignore[misc]
        found[name] = None if samples is None else wan_bytes(samples, direction="out")
    lost = [section for section in missing if section.verdict is not Verdict.OK]
    detail = "; ".join(section.detail for section in lost)
    sections.append(Section("wan", Verdict.UNKNOWN if lost else Verdict.OK, detail))
    return found


def _judge_fleet(fleet: Fleet, late_max: float) -> tuple[Verdict, str]:
    if fleet.overfull:
        return Verdict.CRIT, f"more is placed than there is on {', '.join(fleet.overfull)}"
    if fleet.silent:
        return Verdict.WARN, f"no answer from {', '.join(fleet.silent)}"
    if fleet.with_deadline and fleet.late / fleet.with_deadline > late_max:
        return Verdict.WARN, f"{fleet.late} of {fleet.with_deadline} workloads with a deadline missed it"
    return Verdict.OK, ""


def _judge_decisions(decisions: Decisions) -> tuple[Verdict, str]:
    regret = decisions.regret_usd
    if regret is not None and regret > 0:
        return (
            Verdict.WARN,
            f"the model's choices cost ${regret:.6f} more than the rule's, each, by their shadow",
        )
    return Verdict.OK, ""


def _judge_replay(found: Replay) -> tuple[Verdict, str]:
    for name, against in found.rivals.items():
        if against.saved_high is not None and against.saved_high < 0:
            return Verdict.WARN, f"placements cost more than {name}'s would: {_saved(against)}"
    return Verdict.OK, ""


def _saved(against: Against) -> str:
    """In words: better or worse, and how sure."""
    if against.saved is None:
        return GAP
    said = f"{abs(against.saved):.1%} {'cheaper' if against.saved >= 0 else 'dearer'}"
    if against.saved_low is None or against.saved_high is None:
        return f"{said} (too few for an interval)"
    return f"{said} (95 %: {against.saved_low:+.1%} to {against.saved_high:+.1%} saved)"


def _replay_lines(found: Replay | None) -> tuple[str, ...]:
    if found is None:
        return ()
    return tuple(
        f"the day's {found.workloads} placements ({found.by_model} by a model) beside {name}: {_saved(against)},"
        f" $ {_number(against.ours_usd)} and {_number(against.theirs_usd)}; there {against.theirs_waited} would"
        f" have waited, {against.theirs_never} never started"
        for name, against in found.rivals.items()
    )


def _last_known(run: Run) -> dict[str, Any] | None:
    """What the latest run found in which the allocator answered, with its time."""
    if run.runs is None:
        return None
    for record in run.runs.all(NAME, most=20):
        try:
            answer = msgspec.json.decode((run.runs.folder / record.id / "answer.json").read_bytes())
            decisions = answer["result"]["decisions"]
        except (OSError, msgspec.DecodeError, KeyError, TypeError):
            continue
        if decisions is not None:
            return {"ended": answer["ended"], "decisions": decisions}
    return None


def _plain(found: Fleet | Decisions | Commits | None) -> dict[str, Any] | None:
    return None if found is None else {name: getattr(found, name) for name in found.__struct_fields__}


def _uses(fleet: Fleet) -> tuple[SiteUse, ...]:
    return tuple(
        SiteUse(use.site, use.resource, use.capacity, use.allocated, use.share, use.used)
        for use in fleet.uses
    )


def _summary(fleet: Fleet | None, decisions: Decisions | None) -> str:
    assert fleet is not None  # else the verdict is unknown
    assert decisions is not None
    cores = [use for use in fleet.uses if use.resource == "cpu_milli"]
    capacity, placed = (sum(getattr(use, name) for use in cores) / 1000 for name in ("capacity", "allocated"))
    share = "no decision yet" if decisions.model_share is None else f"{decisions.model_share:.0%} by a model"
    return f"{placed:g} of {capacity:g} cores are placed, {fleet.waiting} workloads wait; placements: {share}"


def _lines(
    fleet: Fleet | None, decisions: Decisions | None, commits: Commits | None, result: Report
) -> tuple[str, ...]:
    lines = []
    if fleet is not None:
        lost = [
            f"{each.site} {_number(each.stranded_cores)} of {each.free_cores:g}" for each in fleet.stranding
        ]
        lines += [
            *_nodes(fleet),
            f"stranded cores of those free: {', '.join(lost) or GAP}",
            f"placed by: {_counts(fleet.placed_by)}",
            f"waiting {fleet.waiting}, moving {fleet.moving}",
            f"missed deadlines: {fleet.late} of {fleet.with_deadline}",
            *(
                f"tenant {each.name}: {each.allocated_cores:g} of {each.requested_cores:g} cores"
                f" in {each.workloads} workloads"
                for each in fleet.tenants
            ),
            f"fairness (Jain): {_number(fleet.fairness)}",
        ]
    if decisions is not None:
        lines += [
            f"decisions: {_counts(decisions.by_policy)}; model share {_number(decisions.model_share)}",
            f"shadow: regret $ {_number(decisions.regret_usd)}, agreement {_number(decisions.agreement)}",
            f"fallbacks: {_counts(decisions.fallbacks)}; rejections: {_counts(decisions.infeasible)}",
        ]
    elif result.last_known is not None:
        lines.append(
            f"decisions, last known at {result.last_known['ended']}: {result.last_known['decisions']}"
        )
    if commits is not None:
        lines.append(
            f"conflicts: {_counts(commits.conflicts)}; refused: {_counts(commits.refused)};"
            f" moves: {_counts(commits.moves)}"
        )
    lines.append(f"WAN bytes sent: {_number(result.wan_bytes_total)} ({_counts(result.wan_bytes)})")
    return tuple(lines)


def _nodes(fleet: Fleet) -> list[str]:
    """Those with work, the fullest first; the document has all."""
    busy = sorted((node for node in fleet.nodes if node.placed), key=_fullness, reverse=True)
    lines = [
        f"node {node.name} ({node.site}): {len(node.placed)} workloads,"
        f" {node.allocated['cpu_milli'] / 1000:g} of {node.capacity['cpu_milli'] / 1000:g} cores,"
        f" {node.allocated['memory_mib']} of {node.capacity['memory_mib']} MiB,"
        f" really used: {_number(node.used['cpu_milli'])} milli-cores, {_number(node.used['memory_mib'])} MiB"
        for node in busy[:NODES_SHOWN]
    ]
    more = len(busy) - len(lines)
    return [*lines, f"and {more} nodes with less: --json has all"] if more else lines


def _fullness(node: NodeUse) -> float:
    """The share of its scarcest resource that is placed."""
    return max(node.allocated[name] / max(1, node.capacity[name]) for name in node.capacity)


def _table(result: Report) -> Table:
    rows = [
        (
            use.site,
            use.resource,
            str(use.capacity),
            str(use.allocated),
            GAP if use.share is None else f"{use.share:.0%}",
            _number(use.used),
        )
        for use in result.use or ()
    ]
    return Table(("site", "resource", "capacity", "allocated", "share", "really used"), rows)


def _number(value: float | None) -> str:
    return GAP if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _counts(found: dict[str, int] | dict[str, int | None] | None) -> str:
    """Nothing counted is a gap too."""
    return ", ".join(f"{name} {_number(count)}" for name, count in (found or {}).items()) or GAP


def _next(verdict: Verdict, sections: list[Section]) -> str:
    if any(section.verdict is Verdict.UNKNOWN for section in sections):
        return "dwcp status"
    return "dwcp nodes" if verdict is not Verdict.OK else "dwcp rebalance --dry-run"
