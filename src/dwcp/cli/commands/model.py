"""`dwcp model`: learned models, from staging over a canary to all streams, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dwcp.api import models as api
from dwcp.api.models import Changed
from dwcp.cli import output
from dwcp.cli.commands import model_text
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State
from dwcp.cli.scripts import DryRun, Outcome, Run, Yes, script
from dwcp.cli.trying import Judged
from dwcp.runtime.errors import RuntimeFault
from dwcp.runtime.failpoints import failpoint

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Deploy, try and withdraw learned models."
)


class DeployFailed(RuntimeFault):
    """The staging instance could not serve by the model: its log is named. What was staged before still is."""


SELECTOR = "compression-api"
NAMES = {
    "compression-selector": SELECTOR,
    "maddpg-placer": "maddpg-allocator",
}  # model: service that it serves in
_SERVICES = " or ".join(NAMES.values())
Service = Annotated[str, typer.Argument(help=f"the service: {_SERVICES}")]
Whose = Annotated[str, typer.Option("--service", help=f"whose models: {_SERVICES}")]


@app.command("list")
def list_models(whose: Whose = SELECTOR, state: State = None, as_json: Json = False) -> None:
    """List the models that this installation has admitted, their roles and what their evaluations said.

    Example: dwcp model list --service maddpg-allocator --json
    """
    from dwcp.cli.calls import service

    _require_service(whose)
    env = current()
    with service(env, env.layout(state), whose) as calls:
        found = calls.ask(api.Models, api.models())
    output.show(found, as_json=as_json, text=model_text.verdict(found), table=model_text.table(found))


@app.command("show")
def show(
    digest: Annotated[str, typer.Argument(help="the model's digest, or how it begins")],
    whose: Whose = SELECTOR,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show a model's manifest: what it was trained on, how it measured, how it is tested.

    Example: dwcp model show 3f2a
    """
    import json

    from dwcp.cli.calls import service

    _require_service(whose)
    env = current()
    with service(env, env.layout(state), whose) as calls:
        found = calls.ask(api.Shown, api.show(digest))
    manifest = json.loads(bytes(found.manifest))
    answer = {"digest": found.digest, "manifest": manifest}
    output.show(answer, as_json=as_json, text=json.dumps(answer, indent=2, ensure_ascii=False))


@app.command("deploy")
@script("deploy-model", answers=Changed, changes=True, target="name")
def deploy_model(
    run: Run,
    name: Annotated[str, typer.Argument(help=f"the model: {' or '.join(NAMES)}")],
    stage: Annotated[str, typer.Argument(help="where to: staging")],
    version: Annotated[
        Path | None, typer.Option("--version", help="folder of the trained model; else the newest one")
    ] = None,
) -> Outcome:
    """Check a trained model and make it the next candidate. It decides nothing before a canary.

    A selector: an instance of the service that runs by it is started and asked: every form of question, the same
    answer twice, a decision within 2 ms, a stream there and back. A placer: its golden vectors. Exit codes: 0 staged,
    2 its files cannot be read or that instance fails, 3 the service does not answer, 4 a gate is closed,
    75 interrupted.

    Example: ./scripts/deploy-model.sh compression-selector staging
    (the same as dwcp ops deploy-model …, dwcp model deploy …)
    """
    from dwcp.cli.calls import ServiceRefused, service
    from dwcp.cli.trained import files_of

    if name not in NAMES or stage != "staging":
        known = ", ".join(f"`{one} staging`" for one in NAMES)
        raise typer.BadParameter(f"{name} {stage}: what can be deployed is {known}")
    made = files_of(run.layout, name, version)
    if NAMES[name] == SELECTOR:
        run.remark("a staging instance serves by it and is asked before anything is staged")
    # A staging instance starts, loads and answers meanwhile: on a busy host longer than any other question.
    with service(run.env, run.layout, NAMES[name], timeout_s=run.budget_s) as calls:
        try:
            changed = calls.ask(Changed, api.deploy(api.Upload(made.manifest, made.weights, run.dry_run)))
        except ServiceRefused as refused:
            if refused.code == "staging_failed":
                raise DeployFailed(str(refused)) from refused
            raise
    failpoint("ops.deploy.after_stage")
    return model_text.changed(changed, after=f"./scripts/canary-deploy.sh {NAMES[name]} 10%")


@app.command("canary")
@script("canary-deploy", answers=Judged, changes=True, target="name", budget_s=900.0)
def canary_deploy(
    run: Run,
    name: Service,
    share: Annotated[
        str,
        typer.Argument(help="of the streams (a placer: the sites), by the hash of their ids: 10%; 100%: all"),
    ],
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, max=800, help="seconds to wait for a verdict")
    ] = 120.0,
    replay: Annotated[
        Path | None, typer.Option(help="folder whose files are asked about; else this machine's public ones")
    ] = None,
    no_replay: Annotated[
        bool, typer.Option("--no-replay", help="judge by the streams that come alone")
    ] = False,
) -> Outcome:
    """Let the staged model decide for a share of the streams and judge it beside the active one.

    Both choices are tried on samples and priced, in pairs; a placer's on real placements alone. Exit codes: 0 pass,
    2 fail: rolled back by itself, 3 not known yet: it stays, 4 refused, 75 interrupted: it stays. The service judges
    by itself: a run that was killed is gone on with by the same line, or its verdict told. 100% needs a pass of the
    same model within a day.

    Example: ./scripts/canary-deploy.sh compression-api 10%
    (the same as dwcp ops canary-deploy …, dwcp model canary …)
    """
    from dwcp.cli.calls import service
    from dwcp.cli.trying import Plan, judge, judged_meanwhile

    pct = _percent(name, share)
    run.agree(f"let the candidate decide for {pct} % of the {_parts(name)} of {name}?")
    with service(run.env, run.layout, name) as calls:
        missed = judged_meanwhile(calls, run.broken_off)
        if missed is not None:
            return model_text.judged(missed, name)
        changed = calls.ask(Changed, api.canary(pct, dry_run=run.dry_run))
        failpoint("ops.canary.after_start")
        if run.dry_run or pct == 100:
            return model_text.promoted(changed, after=f"dwcp model rollback {name}")
        plan = Plan(wait_s, None if no_replay or name != SELECTOR else replay or Path("/"))
        run.if_interrupted = "the canary keeps its share; the same command goes on with it"
        found = judge(calls, changed, plan, clock=run.env.clock, remark=run.remark)
        failpoint("ops.canary.before_verdict")
        return model_text.judged(found, name)


@app.command("rollback")
def rollback(
    name: Service, dry_run: DryRun = False, yes: Yes = False, state: State = None, as_json: Json = False
) -> None:
    """End the canary, or go back to the model before the last deployment.

    Example: dwcp model rollback compression-api --yes
    """
    from dwcp.cli.calls import service

    _require_service(name)
    env = current()
    _agree(f"roll the model of {name} back?", yes=yes or dry_run or as_json)
    with service(env, env.layout(state), name) as calls:
        changed = calls.ask(Changed, api.roll_back(dry_run=dry_run))
    told = model_text.changed(changed, after=f"dwcp model list --service {name}")
    text = "\n".join([f"OK {told.summary}", f"next: {told.next}"])
    output.show(changed, as_json=as_json, text=text, table=told.table)


def _percent(name: str, share: str) -> int:
    _require_service(name)
    text = share.removesuffix("%")
    if not text.isdigit() or not text.isascii() or not 1 <= int(text) <= 100:
        raise typer.BadParameter(f"{share!r} is no share: say 1% to 100%")
    return int(text)


def _require_service(name: str) -> None:
    if name not in NAMES.values():
        raise typer.BadParameter(f"{name!r} has no models: say {_SERVICES}")


def _parts(name: str) -> str:
    """What a canary gets a share of."""
    return "streams" if name == SELECTOR else "sites"


def _agree(question: str, *, yes: bool) -> None:
    """Asks where a person is there to answer."""
    if not yes and current().out.isatty():
        typer.confirm(question, abort=True)
