"""Every route of the allocator over HTTP, in process: the real app, a placer of random weights, a registry on disk."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import typer
from tests.unit.allocation.serving import placers
from tests.unit.services.allocator.desks import Bench, nodes, wanted

from dwcp.allocation.heuristics import DEFAULT
from dwcp.allocation.serving.rehearsal import Rehearsal
from dwcp.allocation.serving.scene import Terrain
from dwcp.api import allocator as api
from dwcp.api import models as models_api
from dwcp.api.requests import Request, answer, refusal
from dwcp.api.workloads import NodeStatus
from dwcp.cli import calls
from dwcp.cli.calls import ControlPlane
from dwcp.cli.commands import model as commands
from dwcp.cli.environment import Environment, using
from dwcp.models.artefact import Made
from dwcp.models.lifecycle import Verdict, Word
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.config import environment
from dwcp.runtime.http import Health, Refusal, application, refused
from dwcp.services.allocator.placers import Placers
from dwcp.services.allocator.routes import add_routes, at_once
from dwcp.services.model_routes import add_model_routes


class App:
    """The routes over a desk whose registry is on disk."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.app = application(Health("maddpg-allocator", version="0"), self.bench.telemetry)
        add_routes(self.app, self.bench.desk)
        add_model_routes(self.app, Placers(self.bench.stage, self.bench.key, self.bench.clock))

    def send(self, asked: Request) -> httpx.Response:
        async def exchange() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://allocator") as client:
                return await client.request(
                    asked.method, asked.path, content=asked.body, headers=asked.headers
                )

        return asyncio.run(exchange())

    def get(self, path: str) -> httpx.Response:
        return self.send(Request("GET", path))

    def post(self, path: str, body: object) -> httpx.Response:
        return self.send(Request("POST", path, msgspec.json.encode(body)))

    def tell(self) -> str:
        change = api.NodesChange(upsert=nodes(), replace=True)
        return answer(api.FleetRevision, self.send(api.change_nodes(change)).content).fleet

    def value(self, series: str) -> float:
        return self.bench.value(series)


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


def test_nodes_are_told_drained_and_shown(app: App) -> None:
    """Goal: the fleet over HTTP. Method: tell, drain, read; then a stale revision and a node that nobody knows."""
    fleet = app.tell()
    drained = app.post("/v1/nodes", {"drain": ["n000"], "fleet": fleet})
    seen = answer(api.SeenNodes, app.get("/v1/nodes").content)

    assert (drained.status_code, len(seen.nodes)) == (200, 6)
    assert seen.nodes[0].node.status is NodeStatus.DRAINING
    stale = app.post("/v1/nodes", {"drain": ["n001"], "fleet": fleet})
    assert (stale.status_code, refusal(stale.content, status=409).code) == (409, "stale_fleet")
    assert app.post("/v1/nodes", {"remove": ["nobody"]}).status_code == 404


def test_a_decision_is_explained_and_an_unknown_one_is_not(app: App) -> None:
    """Goal: "why this node" by the identity in the answer. Method: place by a model, read its record; read another."""
    app.bench.serve(placers.made(tuned=True))
    placed = answer(api.PlaceAnswer, app.send(api.place(wanted(fleet=app.tell()))).content)
    told = answer(api.Explanation, app.get(f"/v1/decisions/{placed.decision}").content)

    assert (told.node, told.by, len(told.candidates)) == (placed.node, "model", 6)
    assert told.contributions
    assert app.get("/v1/decisions/nothing-1").status_code == 404


def test_simulate_and_whatif_answer_and_change_nothing(app: App) -> None:
    """Goal: dry questions. Method: both over HTTP; what the fleet holds and what is counted before and after."""
    fleet = app.tell()
    dry = answer(api.PlaceAnswer, app.post("/v1/simulate", wanted(fleet=fleet)).content)
    question = api.WhatIf(items=(wanted("a"), wanted("b")), fleet=fleet, drain=("n000", "n001"))
    told = answer(api.WhatIfAnswer, app.post("/v1/whatif", question).content)

    assert dry.node
    assert len(dry.candidates) == 6
    assert (told.placed_before, told.placed_after) == (2, 2)
    assert {one.node for one in told.after}.isdisjoint({"n000", "n001"})
    held = answer(api.SeenNodes, app.get("/v1/nodes").content).nodes
    assert all(one.reserved.cpu_milli == 0 for one in held)
    assert app.value("dwcp_maddpg_optimization_seconds_count") == 0
    assert app.post("/v1/whatif", {"fleet": "x.1", "items": []}).status_code == 409


def test_bytes_between_sites_and_the_parts_of_the_time_are_counted(app: App) -> None:
    """Goal: what the allocator can know is in /metrics, from 0. Method: a placement at home, one away, one request's
    parts; a site that no node has gets no series of its own."""
    fleet = app.tell()
    assert app.value('dwcp_maddpg_wan_bytes_total{dst="none",src="none"}') == 0
    for stage in ("features", "score", "commit"):
        assert app.value(f'dwcp_maddpg_decision_seconds_count{{stage="{stage}"}}') == 0
    home = wanted("home", site="oslo", data_site="oslo", data_bytes=10**6, fleet=fleet)
    away = wanted("away", site="oslo", data_site="rome", data_bytes=10**6, fleet=fleet)
    strange = wanted("strange", site="oslo", data_site="mars", data_bytes=7, fleet=fleet)
    for one in (home, away, strange):
        assert app.send(api.place(one)).status_code == 200

    assert app.value('dwcp_maddpg_wan_bytes_total{dst="oslo",src="rome"}') == 10**6
    assert app.value('dwcp_maddpg_wan_bytes_total{dst="oslo",src="other"}') == 7
    assert 'src="mars"' not in app.get("/metrics").text
    assert app.value('dwcp_maddpg_decision_seconds_count{stage="score"}') == 3


def test_a_placer_goes_from_staging_to_all_sites_and_back(app: App) -> None:
    """Goal: the life of a model over HTTP. Method: each step before its time is refused; a pass is noted by hand."""
    made = placers.made(1, tuned=True)
    assert app.send(models_api.canary(10)).status_code == 409
    staged = answer(
        models_api.Changed,
        app.send(models_api.deploy(models_api.Upload(made.manifest, made.weights))).content,
    )
    assert staged.models.roles.staged == staged.digest
    assert app.send(models_api.show(staged.digest[:8])).status_code == 200
    assert app.send(models_api.show("ffff")).status_code == 404
    assert app.send(models_api.canary(30)).status_code == 200
    assert app.send(models_api.canary(100)).status_code == 409
    registry = app.bench.stage.registry
    assert registry is not None
    word = Word(Verdict.PASS, app.bench.clock.now_ms(), 300)
    registry.change(lambda state: state.judged(staged.digest, word))
    full = answer(models_api.Changed, app.send(models_api.canary(100)).content)

    assert full.models.roles.active == staged.digest
    assert answer(api.ModelInfo, app.get("/v1/model").content).model == staged.digest
    assert answer(models_api.Changed, app.send(models_api.roll_back()).content).models.roles.active == ""


def test_a_damaged_upload_is_refused(app: App) -> None:
    """Goal: nothing unchecked is admitted. Method: another's weights under a manifest."""
    made, other = placers.made(1), placers.made(2)
    got = app.send(models_api.deploy(models_api.Upload(made.manifest, other.weights)))

    assert (got.status_code, refusal(got.content, status=422).code) == (422, "model_refused")
    assert answer(models_api.Models, app.send(models_api.models()).content).models == ()


def rehearsing(app: App, *, tick_s: float = 0.0) -> None:
    """Models rehearse from now on; each look at the CPU time is `tick_s` later."""
    ticks = itertools.count()
    bench = app.bench
    bench.stage.rehearsal = lambda: Rehearsal(
        bench.desk.records.newest(50),
        DEFAULT,
        Terrain(),
        deadline_s=0.010,
        cpu_s=lambda: next(ticks) * tick_s,
        decisions=100,
    )


def test_a_late_placer_is_refused_and_nothing_has_changed(app: App) -> None:
    """Goal: what would be late is neither staged nor tried. Method: CPU time that runs, at the deployment; then at
    the canary of a model that was staged in time; the one staged before stays."""
    rehearsing(app, tick_s=0.011)
    made = placers.made(1, tuned=True)
    late = app.send(models_api.deploy(models_api.Upload(made.manifest, made.weights)))
    assert (late.status_code, refusal(late.content, status=422).code) == (422, "model_refused")
    assert answer(models_api.Models, app.send(models_api.models()).content).models == ()
    rehearsing(app)
    upload = models_api.Upload(made.manifest, made.weights)
    staged = answer(models_api.Changed, app.send(models_api.deploy(upload)).content)
    rehearsing(app, tick_s=0.011)
    assert app.send(models_api.canary(10)).status_code == 422

    roles = answer(models_api.Models, app.send(models_api.models()).content).roles
    assert (staged.checks["rehearsed"], roles.staged, roles.canary) == (100, staged.digest, "")


def test_a_placer_rehearses_beside_requests_that_are_answered(app: App) -> None:
    """Goal: a swap stops nobody, its progress is said, and going back needs no rehearsal. Method: place while a model
    rehearses, reading `/v1/model`; then a rehearsal that nothing passes, and a roll-back."""
    bench, fleet = app.bench, app.tell()
    first = bench.admit(placers.made(2, tuned=True), active="")
    rehearsing(app)
    made = placers.made(1, tuned=True)
    digest = bench.stage.registry.admit(made, signer=bench.key).digest  # type: ignore[union-attr]

    async def swapped() -> set[str]:
        said = set()
        change = {"active": digest, "previous": first}
        bench.stage.registry.change(lambda state: msgspec.structs.replace(state, **change))  # type: ignore[union-attr]
        task = asyncio.create_task(bench.stage.refresh())
        while not task.done():
            assert bench.desk.place(wanted(fleet=fleet)).model in (first, digest)
            said.add(bench.desk.model().detail.rpartition("; ")[2])
            await asyncio.wait({task}, timeout=0.002)
        return said

    said = asyncio.run(swapped())
    assert any(one.startswith(f"model {digest[:12]} rehearses: ") for one in said)
    assert bench.desk.place(wanted(fleet=fleet)).model == digest
    rehearsing(app, tick_s=1.0)
    assert app.send(models_api.roll_back()).status_code == 200
    assert bench.desk.place(wanted(fleet=fleet)).model == first


class Typed:
    """`dwcp model …` as typed, each call answered by the real app."""

    def __init__(self, app: App, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state, self.asked = state, []  # type: tuple[Path, list[str]]

        @contextmanager
        def service(_env: object, _layout: object, name: str, **_how: float) -> Iterator[ControlPlane]:
            self.asked.append(name)

            def handle(request: httpx.Request) -> httpx.Response:
                body = request.read()
                got = app.send(Request(request.method, request.url.raw_path.decode(), body))
                return httpx.Response(got.status_code, content=got.content)

            with httpx.Client(transport=httpx.MockTransport(handle)) as client:
                yield ControlPlane(client, "https://allocator", who=name)

        monkeypatch.setattr(calls, "service", service)

    def run(self, command: Callable[..., Any], *arguments: str) -> tuple[Any, str]:
        """The exit code, and what was printed."""
        app = typer.Typer(add_completion=False)
        app.command()(command)
        out = io.StringIO()
        variables = environment({"DWCP_STATE": str(self.state)})
        env = Environment(out=out, err=io.StringIO(), clock=ManualClock(), variables=variables)
        with using(env):
            code = typer.main.get_command(app).main(list(arguments), standalone_mode=False)
        return code, out.getvalue()


def _trained(folder: Path, made: Made) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(made.manifest)
    (folder / "weights.safetensors").write_bytes(made.weights)
    return folder


def test_the_commands_know_the_allocators_models(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: deploy, list, show, canary and roll back of `maddpg-placer` as typed. Method: through the real routes; a
    canary that nobody asks about stays inconclusive and keeps its share."""
    typed = Typed(app, tmp_path / "state", monkeypatch)
    folder = _trained(tmp_path / "trained", placers.made(3, tuned=True))
    code, text = typed.run(commands.deploy_model, "maddpg-placer", "staging", "--version", str(folder))
    assert (code, text[:10]) == (0, "OK staged:")
    listed = json.loads(typed.run(commands.list_models, "--service", "maddpg-allocator", "--json")[1])
    digest = listed["roles"]["staged"]
    assert listed["name"] == "maddpg-placer"
    assert listed["otherwise"] in {"the rule", "the model that shipped"}
    shown = json.loads(typed.run(commands.show, digest[:8], "--service", "maddpg-allocator", "--json")[1])
    assert shown["manifest"]["version"] == f"{placers.LABEL}-3"
    code, text = typed.run(commands.canary_deploy, "maddpg-allocator", "20%", "--wait", "0")
    assert (code, "dwcp model rollback maddpg-allocator" in text) == (3, True)
    told = typed.run(commands.rollback, "maddpg-allocator", "--yes")[1]
    assert told.startswith(f"OK rolled back: {listed['otherwise']}")

    assert app.bench.stage.state.canary == ""
    assert set(typed.asked) == {"maddpg-allocator"}
    with pytest.raises(typer.BadParameter, match="maddpg-allocator"):
        typed.run(commands.list_models, "--service", "nobody")


def _at_once(app: App, asked: Request) -> tuple[int, bytes]:
    """Past the app, as a connection does it."""
    found = next(one for one in at_once(app.bench.desk) if one.path == asked.path)
    try:
        return 200, found.answer({}, asked.body)
    except Refusal as refusal:
        response = refused(refusal)
        return response.status_code, bytes(response.body)


def test_hot_routes_answer_alike_past_the_app(tmp_path: Path) -> None:
    """Goal: whether a connection or the app answers, the bytes are the same. Method: two desks on equal clocks are
    asked the same, good and bad, one each way."""
    through, past = App(tmp_path / "a"), App(tmp_path / "b")
    fleet = through.tell()
    assert past.tell() == fleet
    items = tuple(wanted(f"b{number}", cpu=700) for number in range(5))
    questions = [
        api.place(wanted(fleet=fleet, commit=True)),
        api.place(wanted("carried", cpu=500)),
        api.place_batch(api.BatchRequest(items=items, fleet=fleet)),
        api.release("w"),
        api.release("nobody"),
        api.place(wanted(fleet="elsewhere.1")),
        api.place(wanted(fleet=fleet, policy="no-such-rule")),
        api.place_batch(api.BatchRequest(items=items * 7, fleet=fleet)),
        Request("POST", "/v1/place", b"{"),
        Request("POST", "/v1/release", b""),
    ]
    seen = []
    for asked in questions:
        one = through.send(asked)
        assert (one.status_code, one.content) == _at_once(past, asked)
        seen.append(one.status_code)
    assert seen == [200, 200, 200, 200, 200, 409, 422, 422, 422, 422]
