"""The allocation report as one page to look at: HTML and SVG by hand, nothing loaded from anywhere, no scripts. Pure.

It draws what `report` and `replay` found and computes nothing of its own; what a source did not tell is a dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from dwcp.allocation.fleet import RESOURCES
from dwcp.allocation.replay import PAIRS_MIN, Against, Replay
from dwcp.allocation.report import Decisions, Fleet, NodeUse, Use
from dwcp.api.workloads import Shape

GAP = "–"
NODES_MAX = 200  # rows; the fullest are kept
WIDTH, ROW, LEFT, RIGHT = 760, 60, 90, 250  # of the picture of costs, pixels
SPAN_MIN = 0.02  # of its axis, to either side
TITLES = {"cpu_milli": "CPU", "memory_mib": "memory", "storage_mib": "storage", "bandwidth_mbps": "link"}
UNITS = {
    "cpu_milli": (1000.0, "cores"),
    "memory_mib": (1024.0, "GiB"),
    "storage_mib": (1024.0, "GiB"),
    "bandwidth_mbps": (1.0, "Mbit/s"),
}
STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5d6b7a; --line: #d5dce4; --page: #fff; --mine: #2f6db5;
  --over: #c2410c; --used: #14304f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8edf2; --soft: #9aa8b6; --line: #36414d; --page: #12171d;
  --mine: #5b9be0; --over: #fb923c; --used: #d6e6f8; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; } p, small { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } .bar { position: relative; height: .7rem; min-width: 5rem; background: var(--line); }
.bar i { position: absolute; left: 0; top: 0; bottom: 0; background: var(--mine); }
.bar i.over { background: var(--over); } .bar b { position: absolute; top: -.1rem; bottom: -.1rem; width: 3px;
  background: var(--used); outline: 1px solid var(--page); }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2.2rem; } dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.3rem; } svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); }
svg .soft { fill: var(--soft); } svg .axis { stroke: var(--line); } svg .zero { stroke: var(--soft); }
svg .mine { stroke: var(--mine); fill: var(--mine); } svg .over { stroke: var(--over); fill: var(--over); }
svg .open { fill: var(--page); }
"""


class Told(Shape, frozen=True):
    """What the page says at its top. `gaps`: the sources that did not answer, each with why."""

    verdict: str
    summary: str
    at: str
    gaps: tuple[tuple[str, str], ...] = ()


def page(told: Told, fleet: Fleet | None, decisions: Decisions | None, replay: Replay | None) -> str:
    """A whole document. None where a source did not answer."""
    gaps = "".join(f"<p>Not known: {escape(name)}: {escape(why)}</p>" for name, why in told.gaps)
    parts = [
        f"<h1>Allocation: {escape(told.verdict)} {escape(told.summary)}</h1><p>{escape(told.at)}</p>{gaps}",
        _tiles(fleet, decisions),
        _section("Costs of the last day's placements against other rules", _costs(replay)),
        _section("Use by site", GAP if fleet is None else _sites(fleet.uses)),
        _section("Use by node", GAP if fleet is None else _nodes(fleet.nodes)),
        _section("What tenants got of what they asked for", GAP if fleet is None else _tenants(fleet)),
        _section("Who decided", GAP if decisions is None else _deciders(decisions)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Allocation, {escape(told.at)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}"


def _tiles(fleet: Fleet | None, decisions: Decisions | None) -> str:
    """The figures that are looked for first."""
    found: list[tuple[str, str]] = []
    if fleet is not None:
        cores = [use for use in fleet.uses if use.resource == "cpu_milli"]
        placed, whole = sum(use.allocated for use in cores), sum(use.capacity for use in cores)
        lost = [each.stranded_cores for each in fleet.stranding]
        stranded = GAP if None in lost or not lost else f"{sum(one or 0.0 for one in lost):.4g}"
        found += [
            ("cores placed", f"{placed / 1000:.4g} of {whole / 1000:.4g}"),
            ("stranded cores", stranded),
            ("fairness (Jain)", _number(fleet.fairness)),
            ("waiting", str(fleet.waiting)),
            ("missed deadlines", f"{fleet.late} of {fleet.with_deadline}"),
        ]
    if decisions is not None:
        found += [
            ("decided by a model", _percent(decisions.model_share)),
            ("agrees with the rule", _percent(decisions.agreement)),
        ]
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in found) + "</dl>"


def _costs(replay: Replay | None) -> str:
    """Each rival a row: the share of its cost that was saved, with its 95 % interval."""
    if replay is None or not replay.workloads:
        return f"<p>{GAP} no placement to compare</p>"
    rivals = list(replay.rivals.items())
    edges = [
        abs(edge)
        for _, one in rivals
        for edge in (one.saved, one.saved_low, one.saved_high)
        if edge is not None
    ]
    span = max(*edges, SPAN_MIN) * 1.1 if edges else SPAN_MIN
    height = ROW * len(rivals) + 40
    rows = "".join(_rival(name, one, 30 + ROW * at, span) for at, (name, one) in enumerate(rivals))
    zero = _x(0.0, span)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="costs against other rules" font-size="13">'
        f'<text class="soft" x="{zero - 10:.1f}" y="14" text-anchor="end">dearer than it</text>'
        f'<text class="soft" x="{zero + 10:.1f}" y="14">cheaper than it</text>'
        f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="20" y2="{height - 10}"/>{rows}</svg>'
        f"<p>{replay.workloads} placements, {replay.by_model} by a model, beside each rule on the same demand. "
        f"The dot: the share of its cost that was saved; the line: the 95 % interval.</p>"
    )


def _rival(name: str, one: Against, top: int, span: float) -> str:
    middle = top + ROW // 2
    surely_dearer = one.saved_high is not None and one.saved_high < 0
    kind = "over" if surely_dearer else "mine"
    marks = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{middle}" y2="{middle}"/>']
    if one.saved_low is not None and one.saved_high is not None:
        low, high = _x(one.saved_low, span), _x(one.saved_high, span)
        marks.append(
            f'<line class="{kind}" stroke-width="4" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        )
    if one.saved is not None:
        shape = f"{kind} open" if one.saved_low is None else kind
        marks.append(f'<circle class="{shape}" cx="{_x(one.saved, span):.1f}" cy="{middle}" r="6"/>')
    label = f"here $ {one.ours_usd:.4g}, there $ {one.theirs_usd:.4g}"
    beyond = f"there {one.theirs_waited} waited, {one.theirs_never} never started"
    right = WIDTH - RIGHT + 12
    return (
        f'<text x="0" y="{middle + 4}">{escape(name)}</text>{"".join(marks)}'
        f'<text x="{right}" y="{middle - 10}">{_saved(one)}</text>'
        f'<text class="soft" x="{right}" y="{middle + 5}">{label}</text>'
        f'<text class="soft" x="{right}" y="{middle + 20}">{beyond}</text>'
    )


def _x(share: float, span: float) -> float:
    return LEFT + (share + span) / (2 * span) * (WIDTH - RIGHT - LEFT)


def _saved(one: Against) -> str:
    if one.saved is None:
        return GAP
    if one.saved_low is None or one.saved_high is None:
        return f"{one.saved:+.1%} (no interval below {PAIRS_MIN})"
    return f"{one.saved:+.1%} ({one.saved_low:+.1%} to {one.saved_high:+.1%})"


def _sites(uses: Sequence[Use]) -> str:
    rows = [
        (
            escape(use.site),
            TITLES[use.resource],
            _cell(use.resource, use.allocated, capacity=use.capacity, used=use.used),
        )
        for use in uses
    ]
    return _table(("site", "resource", "placed"), rows) + "<p>The mark: what is really used, where told.</p>"


def _nodes(nodes: Sequence[NodeUse]) -> str:
    """The fullest first."""
    order = sorted(nodes, key=lambda node: (-_fullness(node), node.name))
    rows = [
        (
            _named(node),
            *(
                _cell(name, node.allocated[name], capacity=node.capacity[name], used=node.used[name])
                for name in RESOURCES
            ),
        )
        for node in order[:NODES_MAX]
    ]
    more = len(order) - NODES_MAX
    left_out = f"<p>and {more} nodes with less</p>" if more > 0 else ""
    return _table(("node", *(TITLES[name] for name in RESOURCES)), rows) + left_out


def _named(node: NodeUse) -> str:
    said = f"{escape(node.site)}, {escape(node.status)}, {len(node.placed)} placed"
    return f"{escape(node.name)}<br><small>{said}</small>"


def _fullness(node: NodeUse) -> float:
    return max(node.allocated[name] / max(node.capacity[name], 1) for name in RESOURCES)


def _cell(resource: str, allocated: int, *, capacity: int, used: int | None) -> str:
    """A bar of what is placed, a mark at what is really used, and both in figures."""
    by, unit = UNITS[resource]
    share = allocated / capacity if capacity else 0.0
    mark = (
        "" if used is None or not capacity else f'<b style="left:{min(used / capacity, 1) * 100:.1f}%"></b>'
    )
    told = "" if used is None else f", used {used / by:.4g}"
    kind = "over" if allocated > capacity else ""
    return (
        f'<div class="bar"><i class="{kind}" style="width:{min(share, 1) * 100:.1f}%"></i>{mark}</div>'
        f"<small>{allocated / by:.4g} of {capacity / by:.4g} {unit}{told}</small>"
    )


def _tenants(fleet: Fleet) -> str:
    rows = [
        (
            escape(each.name) or GAP,
            str(each.workloads),
            _cell(
                "cpu_milli",
                round(each.allocated_cores * 1000),
                capacity=round(each.requested_cores * 1000),
                used=None,
            ),
        )
        for each in fleet.tenants
    ]
    said = f"<p>Jain's index: {_number(fleet.fairness)} (1: all got the same share)</p>"
    return _table(("tenant", "workloads", "cores"), rows) + said


def _deciders(decisions: Decisions) -> str:
    total = max(sum(decisions.by_policy.values()), 1)
    rows = [
        (
            escape(name),
            f'<div class="bar"><i style="width:{count / total * 100:.1f}%"></i></div><small>{count}</small>',
        )
        for name, count in sorted(decisions.by_policy.items(), key=lambda pair: -pair[1])
    ]
    regret = GAP if decisions.regret_usd is None else f"$ {decisions.regret_usd:.6f}"
    return (
        _table(("policy", "decisions since its start"), rows)
        + f"<p>A model's choice costs {regret} more than the rule's, each, by their shadow. "
        + f"Rules instead of a model: {_counts(decisions.fallbacks)}. No room: {_counts(decisions.infeasible)}.</p>"
    )


def _counts(found: Mapping[str, int] | None) -> str:
    said = ", ".join(f"{escape(name)} {count}" for name, count in (found or {}).items() if count)
    return said or ("none" if found else GAP)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`rows` are HTML already."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    return GAP if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return GAP if value is None else f"{value:.1%}"
