"""Makes docs/allocation/results.md from the results that `bench_allocator.py --save` left; a test compares the two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "allocator"
PAGE = ROOT / "docs" / "allocation" / "results.md"
BLIND = ("balance", "best-fit-l2", "kube-default", "random")
COLUMNS = (
    "load", "windows", "rival", "cost", "rival, bounded", "bound", *BLIND, "lost value", "model", "model's share",
    "gap closed", "saved", "won back", "p50, p99 ms", "verdict",
)  # fmt: skip
QUOTED_SEEDS = 10  # fewer are a check for regressions and support no claim
HEAD = """# Results of the allocation benchmark

<!-- Made by `benchmarks/bench_allocator.py --save`; a test compares it with the saved results. -->

Dollars per 1,000 workloads, lower is better. Rival: the cheapest policy without learning, chosen on validation windows.
The bound is clairvoyant and covers SLA, waiting, WAN and energy; "rival, bounded" is the rival's cost on those.
"better" and "worse" need an interval of the gap closed that excludes 0 and at least 10 seeds.
Saved: what the model costs less than the rival, all components. Won back: its share of what old information costs
(the stale rival minus the rival that is best with full information, in the same windows). Times: one decision.
"""


def save(answer: dict[str, Any], name: str, command: str) -> None:
    """Keeps the result under `name` and makes the page anew."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = {"command": command, **answer}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(render(saved()))


def saved() -> dict[str, dict[str, Any]]:
    return {place.stem: json.loads(place.read_text()) for place in sorted(RESULTS.glob("*.json"))}


def render(results: dict[str, dict[str, Any]]) -> str:
    return "\n".join([HEAD, *(_section(name, one) for name, one in results.items())])


def _section(name: str, answer: dict[str, Any]) -> str:
    facts = f"Commit {answer['commit']}, {answer['machine']}, {answer['cpu_seconds']:g} s of CPU"
    lines = [f"## {name}\n", f"`{answer['command']}`\n", f"{facts}, digest {answer['digest']}.\n"]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += [_row(one, answer["seeds"]) for one in answer["results"]]
    return "\n".join([*lines, ""])


def _row(one: dict[str, Any], seeds: int) -> str:
    costs = one["cost_per_1k"]
    blind = [f"{costs[name]:.2f}" for name in BLIND]
    cells = [
        f"{one['load']:g}",
        str(one["windows"]),
        one["rival"],
        f"{costs[one['rival']]:.2f}",
        f"{one['rival_bounded']:.2f}",
        "unknown" if one["bound"] is None else f"{one['bound']:.2f}",
        *blind,
        f"{100 * one['violations_size_weighted']:.2f} %",
        one["model"],
        f"{100 * one['model_share']:.1f} %" if one["model"] != "none" else "-",
        _gap(one),
        _saved(one),
        _won_back(one),
        _times(one),
        _verdict(one, seeds),
    ]
    return "| " + " | ".join(cells) + " |"


def _gap(one: dict[str, Any]) -> str:
    if one["gap_closed"] is None:
        return "none" if one["no_gap"] else "-"
    low, high = 100 * one["gap_closed_low"], 100 * one["gap_closed_high"]
    return f"{100 * one['gap_closed']:.1f} % ({low:.1f} … {high:.1f})"


def _saved(one: dict[str, Any]) -> str:
    if one["model"] == "none":
        return "-"
    found = one["saved"]
    return f"{found['mean']:.2f} ({found['low']:.2f} … {found['high']:.2f})"


def _won_back(one: dict[str, Any]) -> str:
    """Told with old information alone, and only where that has a price."""
    share = one.get("won_back")
    return "-" if share is None else f"{100 * share:.0f} % of {one['stale_price_per_window']:.2f} a window"


def _times(one: dict[str, Any]) -> str:
    """The rolling program has none: it decides about many at once."""
    return f"{one['decision_ms_p50']:.2f}, {one['decision_ms_p99']:.2f}" if "decision_ms_p50" in one else "-"


def _verdict(one: dict[str, Any], seeds: int) -> str:
    if seeds < QUOTED_SEEDS and one["verdict"] in ("better", "worse"):
        return "too few seeds"
    return str(one["verdict"])
