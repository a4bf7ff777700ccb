"""A canary's trial as the command line sees it: ask until there is a verdict, and drive it where it is quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dwcp.api import models as api
from dwcp.api.models import Changed, Evaluation, Models
from dwcp.api.requests import Request
from dwcp.operations.runs import Record
from dwcp.runtime.clock import Clock

if TYPE_CHECKING:
    from dwcp.cli.calls import ControlPlane

_ROUND = 8  # questions between two looks
_PAUSE_S = 0.25
_LOOK_S = 5.0  # between two lines of progress


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to wait, and what to ask meanwhile. `replay`: None for nothing, "/" for the usual folders."""

    wait_s: float
    replay: Path | None


class Judged(msgspec.Struct, frozen=True):
    """How a trial ended, or stood when the time was over. `verdict`: pass, fail, inconclusive; "" where none
    was asked for, at 100 % and on a dry run."""

    digest: str
    did: str
    verdict: str
    samples: int
    replayed: int
    evaluation: Evaluation | None
    models: Models


def judge(
    calls: ControlPlane, begun: Changed, plan: Plan, *, clock: Clock, remark: Callable[[str], None]
) -> Judged:
    """Waits for the verdict on the canary that has begun."""
    questions = _questions(plan)
    started_ms = said_ms = clock.monotonic_ms()
    found, evaluation, replayed = begun.models, begun.models.evaluation, 0
    while True:
        told = next((model for model in found.models if model.digest == begun.digest), None)
        evaluation = found.evaluation or evaluation
        if told is not None and told.verdict in {"pass", "fail"}:
            return Judged(begun.digest, begun.did, told.verdict, told.samples, replayed, evaluation, found)
        now_ms = clock.monotonic_ms()
        if now_ms - started_ms >= plan.wait_s * 1000:
            samples = evaluation.samples if evaluation else 0
            return Judged(begun.digest, begun.did, "inconclusive", samples, replayed, evaluation, found)
        if evaluation and now_ms - said_ms >= _LOOK_S * 1000:
            said_ms = now_ms
            share = f"{100 * evaluation.share_seen:.1f} % of the questions seen"
            remark(f"{evaluation.samples} of {evaluation.samples_needed} pairs, {share}")
        for question in islice(questions, _ROUND):
            replayed += _asked(calls, question)
        time.sleep(_PAUSE_S)
        found = calls.ask(Models, api.models())


def judged_meanwhile(calls: ControlPlane, killed: Record | None) -> Judged | None:
    """The failure that the run before did not live to tell: the service has rolled back by itself."""
    if killed is None:
        return None
    found = calls.ask(Models, api.models())
    for model in found.models:
        if model.verdict == "fail" and model.judged_at_ms >= killed.started_ms and not found.roles.canary:
            return Judged(model.digest, "judged meanwhile", "fail", model.samples, 0, None, found)
    return None


def _asked(calls: ControlPlane, question: Request) -> bool:
    """Whether it was answered; a service that is busy with real streams is left alone."""
    from dwcp.cli.calls import ServiceRefused

    try:
        calls.ask(dict[str, Any], question)  # Any: the answer itself is not looked at
    except ServiceRefused as refused:
        if refused.code != "overloaded":
            raise
        return False
    return True


def _questions(plan: Plan) -> Iterator[Request]:
    from dwcp.cli.replay import FOLDERS, gather

    if plan.replay is None:
        return iter(())
    folders = FOLDERS if plan.replay == Path("/") else (plan.replay,)
    return gather(folders).questions()
