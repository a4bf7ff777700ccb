"""How `dwcp model` speaks: a verdict first, the models as a table, and what to do next."""

from __future__ import annotations

from dataclasses import replace

from dwcp.api.health import Verdict
from dwcp.api.models import Changed, Evaluation, Models
from dwcp.cli.output import Table
from dwcp.cli.scripts import Outcome
from dwcp.cli.trying import Judged
from dwcp.runtime.clock import iso

_WORDS = {"pass": Verdict.OK, "fail": Verdict.CRIT, "inconclusive": Verdict.UNKNOWN}


def verdict(found: Models) -> str:
    """The first line about how things stand."""
    if found.trouble:
        return f"WARN {found.trouble}"
    if found.drifted:
        return f"WARN the data has changed since the model began: {', '.join(found.drifted)}"
    active = found.roles.active[:12] or f"none: {_without(found)} answers"
    text = f"OK {found.name}, active: {active}"
    return f"{text}; {_evaluation(found.evaluation)}" if found.evaluation else text


def changed(done: Changed, *, after: str) -> Outcome:
    """A step of the lifecycle that was taken, or would be."""
    checks = ", ".join(f"{name} {value:.4g}" for name, value in done.checks.items())
    return Outcome(
        Verdict.OK,
        f"{'would be ' if done.dry_run else ''}{done.did}: {done.digest[:12] or _without(done.models)}",
        done,
        lines=(checks,) if checks else (),
        table=table(done.models),
        next=after,
    )


def promoted(done: Changed, *, after: str) -> Outcome:
    """The same about a canary's step that is not waited for."""
    step = Judged(done.digest, done.did, "", 0, 0, done.models.evaluation, done.models)
    return replace(changed(done, after=after), result=step)


def judged(found: Judged, name: str) -> Outcome:
    """Verdict, numbers, next step; `name` is the service."""
    after = {
        "pass": f"./scripts/canary-deploy.sh {name} 100%",
        "fail": "dwcp model list; train another model, then deploy it",
        "inconclusive": f"./scripts/canary-deploy.sh {name} 10% --wait 600, or dwcp model rollback {name}",
    }[found.verdict]
    sentence = {
        "pass": "it is surely no worse than what serves",
        "fail": "it is worse; it was rolled back by itself",
        "inconclusive": "not known yet; it keeps its share",
    }[found.verdict]
    numbers = f"{found.samples} pairs, {found.replayed} questions replayed"
    if found.evaluation:
        numbers += f"; {_evaluation(found.evaluation)}"
    return Outcome(
        _WORDS[found.verdict],
        f"{found.digest[:12]}: {sentence}",
        found,
        lines=(numbers,),
        table=table(found.models),
        next=after,
    )


def table(found: Models) -> Table:
    rows = [
        (
            model.digest[:12],
            model.version,
            ", ".join(model.roles),
            model.verdict or "-",
            str(model.samples),
            iso(model.judged_at_ms) if model.judged_at_ms else "-",
        )
        for model in found.models
    ]
    return Table(("model", "version", "role", "verdict", "pairs", "judged"), rows)


def _without(found: Models) -> str:
    """What answers where no model is active."""
    return found.otherwise or "what needs no model"


def _evaluation(told: Evaluation) -> str:
    if told.log_cost_low is None or told.log_cost_high is None:
        return f"{told.samples} of {told.samples_needed} pairs"
    low, high = 100 * told.log_cost_low, 100 * told.log_cost_high
    return (
        f"{told.samples} of {told.samples_needed} pairs, time {100 * told.log_cost_mean:+.2f} % "
        f"({low:+.2f} to {high:+.2f}), p99 of selecting {told.selection_p99_us:.0f} µs, "
        f"{100 * told.share_seen:.1f} % of the questions seen"
    )
