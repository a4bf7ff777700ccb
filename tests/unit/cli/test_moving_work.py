"""`dwcp rebalance` and the allocation report: what they say for each outcome."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
import typer

from dwcp.api.allocator import Day, Dealt, Prices
from dwcp.api.manager import NodeList, NodeView, Reach, WorkloadList
from dwcp.api.rebalance import Cost, Move, Plan, Rebalance, RebalanceView, Standing
from dwcp.api.workloads import Allocation, Capacity, Node
from dwcp.cli import calls, scraping
from dwcp.cli.calls import ControlPlane, ServiceUnavailable
from dwcp.cli.commands import allocation_report, rebalance
from dwcp.cli.environment import Environment, using
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.config import environment
from dwcp.runtime.errors import NotRunning

MOVES = (Move("w-aaaaaaaaaa", 1, "oslo", "rome", 5), Move("w-bbbbbbbbbb", 2, "oslo", "lima"))
PLAN = Plan(MOVES, Cost(wait=0.2), Cost(mig=0.05), 0.15, policy="greedy")
EMPTY = Plan((), Cost(), Cost(), 0.0, "no move gains $0.01 or more")
Handler = Callable[[httpx.Request], httpx.Response]


class Desk:
    """A state folder, and a manager that answers by a function."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch, handler: Handler) -> None:
        self.state, self.out, self.err = state, io.StringIO(), io.StringIO()

        @contextmanager
        def plane(_env: object, _layout: object, _name: str = ""):  # type: ignore[no-untyped-def]
            with httpx.Client(transport=httpx.MockTransport(handler)) as client:
                yield ControlPlane(client, "https://manager")

        monkeypatch.setattr(calls, "control_plane", plane)
        monkeypatch.setattr(calls, "service", plane)

    def run(self, command: Callable[..., int], *arguments: str) -> int:
        app = typer.Typer(add_completion=False)
        app.command()(command)
        self.out, self.err = io.StringIO(), io.StringIO()
        variables = environment({"DWCP_STATE": str(self.state)})
        env = Environment(out=self.out, err=self.err, clock=ManualClock(), variables=variables)
        with using(env):
            code = typer.main.get_command(app).main(list(arguments), standalone_mode=False)
        assert isinstance(code, int)
        return code


def body(answer: object) -> httpx.Response:
    return httpx.Response(200, content=msgspec.json.encode(answer))


def manager(plan: Plan, *standings: Standing, ended: bool = True) -> tuple[Handler, list[str]]:
    """A manager that plans this, takes orders, and shows them so."""
    asked: list[str] = []
    ordered: list[Rebalance] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.url.path.endswith(":plan"):
            return body(plan)
        if request.method == "POST":
            wanted = json.loads(request.content)
            ordered.append(Rebalance(id=wanted["id"], moves=plan.moves, by="ann", ended=ended))
        kept = ordered[-1] if ordered else Rebalance(id="", moves=(), ended=True)
        return body(RebalanceView(kept, standings if ordered else ()))

    return handle, asked


def test_a_dry_run_shows_the_plan_and_orders_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: look before leaping. Method: --dry-run; the requests that were made; the first line."""
    handler, asked = manager(PLAN)
    desk = Desk(tmp_path, monkeypatch, handler)

    assert desk.run(rebalance.rebalance, "--dry-run") == 0
    assert desk.out.getvalue().startswith("OK 2 moves would gain $0.1500; nothing was changed\n")
    assert "wait $0.2000 to $0.0000" in desk.out.getvalue()
    assert asked == ["POST /api/v1/rebalance:plan"]


@pytest.mark.parametrize(
    ("standings", "ended", "code", "said"),
    [
        ((Standing.MOVED, Standing.MOVED), True, 0, "OK 2 of 2 workloads have moved"),
        ((Standing.MOVED, Standing.STAYED), True, 1, "WARN 1 of 2 workloads have moved; 1 stayed"),
        (
            (Standing.MOVED, Standing.WAITING),
            False,
            3,
            "UNKNOWN 1 of 2 workloads have moved; the rest goes on",
        ),
    ],
)
def test_an_order_is_followed_to_its_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    standings: tuple[Standing, ...],
    ended: bool,
    code: int,
    said: str,
) -> None:
    """Goal: the exit code says how it went. Method: all moved, one stayed, not over when the wait is."""
    handler, _ = manager(PLAN, *standings, ended=ended)
    desk = Desk(tmp_path, monkeypatch, handler)

    assert desk.run(rebalance.rebalance, "--yes", "--wait", "0") == code
    assert desk.out.getvalue().startswith(said)


def test_nothing_to_gain_is_well_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: an empty plan is no failure and no order. Method: --yes, as one JSON document."""
    handler, asked = manager(EMPTY)
    desk = Desk(tmp_path, monkeypatch, handler)

    assert desk.run(rebalance.rebalance, "--yes", "--json") == 0
    document = json.loads(desk.out.getvalue())
    assert document["summary"] == "nothing is moved: no move gains $0.01 or more"
    assert asked == ["POST /api/v1/rebalance:plan"]
    assert desk.run(rebalance.rebalance, "--show") == 0
    assert "no plan was ever ordered" in desk.out.getvalue()


PRICES = Prices({}, 0.02, 0.002, {}, {})


def fleet_only(request: httpx.Request) -> httpx.Response:
    if request.url.path == "/v1/day":
        return body(Day(0, 0, PRICES, ()))
    if request.url.path.endswith("nodes"):
        return body(NodeList(nodes=(), revision=1))
    return body(WorkloadList(workloads=(), revision=1))


def test_a_report_goes_on_where_a_source_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: unknown is never 0, the rest is told, and what was known last. Method: the allocator answers, then
    not any more."""
    down: set[str] = set()
    monkeypatch.setattr(calls, "require_installed", lambda _layout: None)

    def answering(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/day" and down:
            raise httpx.ConnectError("refused", request=request)
        return fleet_only(request)

    def scrape(_env: object, _layout: object, service: str) -> scraping.Samples:
        if service in down:
            raise NotRunning(f"{service} does not answer")
        return {"dwcp_maddpg_optimization_total": [({"policy": "best-fit"}, 4.0)]}

    monkeypatch.setattr(scraping, "scrape", scrape)
    monkeypatch.setattr(scraping, "agents", lambda _layout: ["dwcp-agent-oslo"])
    desk = Desk(tmp_path, monkeypatch, answering)
    report = allocation_report.resource_allocation_report

    assert desk.run(report) == 0, desk.out.getvalue()
    assert "WAN bytes sent: - (dwcp-agent-oslo -)" in desk.out.getvalue(), "not counted is a gap"
    down.add("maddpg-allocator")
    assert desk.run(report, "--json") == 3
    document = json.loads(desk.out.getvalue())
    assert document["result"]["decisions"] is None
    assert document["result"]["last_known"]["decisions"]["by_policy"] == {"best-fit": 4}
    assert {part["name"]: part["verdict"] for part in document["sections"]} == {
        "fleet": "ok",
        "placements": "unknown",
        "replay": "unknown",
        "commits": "ok",
        "wan": "ok",
    }


@pytest.mark.parametrize(("home", "code", "said"), [("rome", 0, "cheaper"), ("oslo", 1, "dearer")])
def test_the_day_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, code: int, said: str
) -> None:
    """Goal: placements that are surely dearer than first-fit's are a finding. Method: 40 workloads in rome, whose data
    is there; and whose data is in oslo, where first-fit begins."""
    room = Capacity(4000, 4096, 1000, 100)
    views = [
        NodeView(Node(f"n-{site}", site, "a:1", room), Allocation(), Reach.REACHABLE)
        for site in ("oslo", "rome")
    ]
    day = [
        Dealt(
            f"w{at}", "n-rome", "rule", at, at, at + 1, Capacity(9, 9, 9, 0), "", home, 10**9, 1, 60.0, 600.0
        )
        for at in range(0, 400, 10)
    ]

    def answering(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/day":
            return body(Day(0, 500, PRICES, tuple(day)))
        if request.url.path.endswith("nodes"):
            return body(NodeList(nodes=tuple(views), revision=1))
        return body(WorkloadList(workloads=(), revision=1))

    monkeypatch.setattr(calls, "require_installed", lambda _layout: None)
    monkeypatch.setattr(scraping, "scrape", lambda *_: {"dwcp_maddpg_optimization_total": []})
    monkeypatch.setattr(scraping, "agents", lambda _layout: [])
    desk = Desk(tmp_path, monkeypatch, answering)

    assert desk.run(allocation_report.resource_allocation_report) == code, desk.out.getvalue()
    assert f"% {said} (95 %:" in desk.out.getvalue()
    assert "the day's 40 placements (0 by a model) beside drf" in desk.out.getvalue()
    page = next(line for line in desk.out.getvalue().splitlines() if line.startswith("page: "))[6:]
    assert f"{'+' if code == 0 else '-'}" in page_of(Path(page))
    assert Path(page).parent.joinpath("answer.json").exists(), "beside the record of the run"


def page_of(place: Path) -> str:
    """What it says of first-fit: the share saved."""
    found = re.search(r">([+-][\d.]+%) \(", place.read_text())
    assert found
    return found[1]


def test_the_page_goes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: `--out`, and a sentence where nothing can be written. Method: a file, then a folder."""
    monkeypatch.setattr(calls, "require_installed", lambda _layout: None)
    monkeypatch.setattr(scraping, "scrape", lambda *_: {"dwcp_maddpg_optimization_total": []})
    monkeypatch.setattr(scraping, "agents", lambda _layout: [])
    desk = Desk(tmp_path / "state", monkeypatch, fleet_only)
    report, place = allocation_report.resource_allocation_report, tmp_path / "page.html"

    assert desk.run(report, "--out", str(place), "--json") == 0, desk.out.getvalue()
    assert json.loads(desk.out.getvalue())["result"]["page"] == str(place)
    assert place.read_text().startswith("<!doctype html>")
    assert desk.run(report, "--out", str(tmp_path)) == 3
    assert "give another file" in desk.out.getvalue()


def test_a_report_on_nothing_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no installation is no damage and no success. Method: an empty state folder."""
    desk = Desk(tmp_path, monkeypatch, fleet_only)

    assert desk.run(allocation_report.resource_allocation_report) == 3
    assert "nothing is installed" in desk.out.getvalue()


def test_metrics_are_read_by_sample_and_junk_gets_a_sentence() -> None:
    """Goal: the exposition format, and nothing else. Method: a counter with labels; text that is none."""
    found = scraping.parse('# TYPE a counter\na_total{x="y"} 3\n', service="s")

    assert found["a_total"] == [({"x": "y"}, 3.0)]
    with pytest.raises(ServiceUnavailable, match="cannot be read"):
        scraping.parse("a{b 1\n", service="s")
