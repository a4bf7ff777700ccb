"""The one contract of all operations scripts: options, first line, JSON document, exit codes, records, locks.

A script is a function that takes a `Run` and its own options and returns an `Outcome`:

    @script("deploy-model", answers=Changed, changes=True, target="name")
    def deploy_model(run: Run, name: Annotated[str, typer.Argument(…)]) -> Outcome: …

`script` adds the options that all have, takes the lock of (script, target), writes the run's record, bounds
its time, and turns a fault into the same document as an outcome. Add the function to `commands/ops.py`.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from dwcp.api.health import Verdict
from dwcp.cli import output
from dwcp.cli.environment import Environment, current, using
from dwcp.cli.options import Json, State
from dwcp.cli.output import Table
from dwcp.operations import runs as rules
from dwcp.operations.runs import Document, Record, Section
from dwcp.runtime import failpoints
from dwcp.runtime import runs as kept
from dwcp.runtime.clock import iso
from dwcp.runtime.config import load
from dwcp.runtime.errors import Exit, RuntimeFault
from dwcp.runtime.layout import Layout, find
from dwcp.runtime.runs import OperationsConfig, Runs

BUDGET_S = 300.0
CONFIG_FILE = "operations.yaml"

Quiet = Annotated[bool, typer.Option("--quiet", help="the first line and nothing else")]
NoColor = Annotated[bool, typer.Option("--no-color", help="no colours; also NO_COLOR, or no terminal")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help=f"settings of all scripts; else STATE/{CONFIG_FILE}")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, change nothing")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


class Declined(RuntimeFault):
    """The operator said no: nothing was changed."""

    exit_code = Exit.REFUSED


class BudgetSpent(RuntimeFault):
    """The script took longer than it may; see `budget_s` of its configuration. What it found is not known."""

    exit_code = Exit.UNKNOWN


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a script found. `summary` is one sentence; `exit` where the verdict's own code is not meant;
    `lines` and `table` are for people, `result` and `sections` for programs."""

    verdict: Verdict
    summary: str
    result: object = None
    lines: tuple[str, ...] = ()
    table: Table | None = None
    next: str = ""
    sections: tuple[Section, ...] = ()
    exit: int | None = None

    @property
    def code(self) -> int:
        return rules.exit_of(self.verdict) if self.exit is None else self.exit


@dataclass(slots=True)
class Run:
    """One run under way. `broken_off` is the run before, where it was killed; `if_interrupted` says what an
    interruption at this moment leaves behind."""

    env: Environment
    layout: Layout
    record: Record
    dry_run: bool
    asks: bool
    silent: bool
    budget_s: float
    runs: Runs | None = None
    broken_off: Record | None = None
    fault: RuntimeFault | None = None  # why it cannot even begin
    if_interrupted: str = "nothing is left half done; the same command may be given again"
    unrecorded: str = field(default="", init=False)

    def remark(self, text: str) -> None:
        """Progress: on standard error unless it should be quiet, and in the run's log."""
        if not self.silent:
            output.remark(text)
        self.keep(lambda runs: runs.note(self.record, f"{iso(self.env.clock.now_ms())} {text}"))

    def agree(self, question: str) -> None:
        """Asks where a person is there to answer. Raises `Declined`."""
        if self.asks and not typer.confirm(question, err=True):
            raise Declined("not agreed to: nothing was changed")

    def keep(self, act: Callable[[Runs], object]) -> None:
        """Records as far as the disk allows: a full disk does not stop the operator's work."""
        if self.runs is None:
            return
        try:
            act(self.runs)
        except OSError as exc:
            self.runs = None
            self.unrecorded = f"this run is not recorded: {exc.filename or 'the disk'}: {exc.strerror}"
            output.remark(self.unrecorded)


@dataclass(frozen=True, slots=True)
class _Options:
    """The options that all scripts have."""

    state: Path | None
    config: Path | None
    as_json: bool
    quiet: bool
    no_color: bool
    dry_run: bool
    yes: bool


@dataclass(frozen=True, slots=True)
class Script:
    """What a script is, as a registered function tells it. `answers` is the type of `Document.result`."""

    name: str
    answers: Any  # Any: a type or a description of one
    changes: bool
    target: str
    budget_s: float


def script(
    name: str, *, answers: Any, changes: bool = False, target: str = "", budget_s: float = BUDGET_S
) -> Callable[[Callable[..., Outcome]], Callable[..., int]]:
    """Makes a command of a script. `target` names the parameter that its lock is about; `changes`: it has
    `--dry-run` and `--yes`, and there is one run at a time."""
    told = Script(name, answers, changes, target, budget_s)

    def decorate(body: Callable[..., Outcome]) -> Callable[..., int]:
        @functools.wraps(body)
        def command(**given: Any) -> int:  # Any: options as Typer read them
            options = _Options(**{option: given.pop(option, False) for option in _COMMON})
            return _settled(told, body, given, options)

        hints = typing.get_type_hints(body, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(inspect.signature(body).parameters.values())[1:]
        ]
        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for option, (annotation, default) in _COMMON.items()
            if changes or option not in {"dry_run", "yes"}
        ]
        parameters = [*own, *shared]
        command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
        command.script = told  # type: ignore[attr-defined]
        return command

    return decorate


def of(command: Callable[..., int]) -> Script:
    """What `script` was told about a command."""
    found: Script = command.script  # type: ignore[attr-defined]
    return found


def schema(told: Script) -> dict[str, Any]:
    """The JSON Schema of a script's document."""
    shape: Any = told.answers  # Any: a type that is known when the program runs
    described = msgspec.json.schema(Document[shape])
    return {"$id": rules.schema_name(told.name), **described}


_COMMON: dict[str, tuple[Any, Any]] = {
    "dry_run": (DryRun, False),
    "yes": (Yes, False),
    "state": (State, None),
    "config": (ConfigFile, None),
    "quiet": (Quiet, False),
    "no_color": (NoColor, False),
    "as_json": (Json, False),
}


def _settled(told: Script, body: Callable[..., Outcome], given: dict[str, Any], options: _Options) -> int:
    """Runs it; every way it can end is a document, a record and an exit code."""
    before = os.umask(0o077)  # whatever the caller's is: records are private, and readable by their owner
    try:
        return _carried_out(told, body, given, options)
    finally:
        os.umask(before)


def _carried_out(told: Script, body: Callable[..., Outcome], given: dict[str, Any], options: _Options) -> int:
    run = _begun(told, given, options)
    with using(run.env), _stoppable(run):
        try:
            if run.fault is not None:
                raise run.fault
            if told.changes and not run.dry_run:
                run.remark(f"{told.name}: at most {run.budget_s:g} s")
            with _alone(told, run):
                outcome = body(run, **given)
        except (Exception, KeyboardInterrupt) as exc:
            if hasattr(exc, "format_message"):  # wrong usage: said by the command line itself
                _ended(told, run, Outcome(Verdict.WARN, str(exc), exit=Exit.USAGE))
                raise
            outcome = _faulty(run, exc)
    document = _ended(told, run, outcome)
    _shown(outcome, document, options)
    return outcome.code


def _begun(told: Script, given: dict[str, Any], options: _Options) -> Run:
    env = current()
    if options.no_color:
        env = replace(env, variables=msgspec.structs.replace(env.variables, no_color=True))
    layout, config, fault = _configured(options, env)
    record = Record(
        id="",
        script=told.name,
        target=str(given.get(told.target, "")) if told.target else "",
        argv=rules.redacted(sys.argv[1:]),
        actor=kept.actor(env.variables.sudo_user),
        host=kept.host(),
        pid=os.getpid(),
        started_ms=env.clock.now_ms(),
        dry_run=bool(options.dry_run),
        config_epoch=kept.epoch_of(layout.cluster),
    )
    folder = config.runs_dir or layout.root / "runs"
    if config.failpoints:
        failpoints.arm(config.failpoints, folder, testing=config.testing)
    run = Run(
        env=env,
        layout=layout,
        record=record,
        dry_run=bool(options.dry_run),
        asks=env.out.isatty() and not (options.yes or options.dry_run or options.as_json),
        silent=options.quiet or options.as_json,
        budget_s=config.budget_s or told.budget_s,
        runs=Runs(folder) if config.runs_dir or layout.root.is_dir() else None,
        fault=fault,
    )
    run.keep(lambda runs: runs.forget(before_ms=record.started_ms - int(config.runs_days * 86_400_000)))
    run.keep(lambda runs: setattr(run, "record", runs.begin(record)))
    return run


def _configured(options: _Options, env: Environment) -> tuple[Layout, OperationsConfig, RuntimeFault | None]:
    """The installation, the settings, and why they cannot be used: then the defaults stand in for the record."""
    layout = find(options.state, env.variables)
    path = options.config.expanduser().absolute() if options.config else layout.root / CONFIG_FILE
    if options.config is None and not path.is_file():
        return layout, OperationsConfig(), None
    try:
        config = load(path, OperationsConfig)
        failpoints.parse(config.failpoints, testing=config.testing)
    except RuntimeFault as fault:
        return layout, OperationsConfig(), fault
    return find(options.state or config.state, env.variables), config, None


@contextmanager
def _alone(told: Script, run: Run) -> Iterator[None]:
    """Held while something may be changed. Raises `Busy`."""
    runs = run.runs
    held = runs.alone(run.record) if runs is not None and told.changes and not run.dry_run else nullcontext()
    with held:
        if runs is not None and told.changes and not run.dry_run:
            run.broken_off = runs.broken_off(run.record)
        yield


@contextmanager
def _stoppable(run: Run) -> Iterator[None]:
    """SIGTERM and a closed terminal stop it as Ctrl-C does, its time stops it too; in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, functools.partial(_spent, run.budget_s))
    signal.setitimer(signal.ITIMER_REAL, run.budget_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _spent(budget_s: float, _number: int, _frame: FrameType | None) -> NoReturn:
    raise BudgetSpent(f"it took more than its {budget_s:g} s; set budget_s higher, or look at `dwcp status`")


def _faulty(run: Run, exc: BaseException) -> Outcome:
    """A fault as an outcome: refused and interrupted are no success, and no damage."""
    from dwcp.cli.main import explain

    if isinstance(exc, KeyboardInterrupt | typer.Abort):
        return Outcome(Verdict.WARN, f"interrupted: {run.if_interrupted}", exit=Exit.INTERRUPTED)
    sentence, code = explain(exc)
    text = f"refused, nothing was changed: {sentence}" if code == Exit.REFUSED else sentence
    return Outcome(rules.verdict_of(code), text, exit=code)


def _ended(told: Script, run: Run, outcome: Outcome) -> bytes:
    """The document, and the record of the run."""
    now_ms = run.env.clock.now_ms()
    document: Document[Any] = Document(
        schema=rules.schema_name(told.name),
        run=run.record.id,
        script=told.name,
        target=run.record.target,
        dry_run=run.dry_run,
        started=iso(run.record.started_ms),
        ended=iso(now_ms),
        budget_s=run.budget_s,
        exit=outcome.code,
        verdict=outcome.verdict,
        summary=outcome.summary,
        next=outcome.next,
        sections=outcome.sections,
        result=outcome.result,
    )
    text = msgspec.json.encode(document, enc_hook=str)
    ended = msgspec.structs.replace(
        run.record,
        ended_ms=now_ms,
        exit=outcome.code,
        verdict=outcome.verdict.value,
        summary=outcome.summary,
    )
    if run.record.id:
        run.keep(lambda runs: runs.end(ended, text))
    return text


def _shown(outcome: Outcome, document: bytes, options: _Options) -> None:
    head = rules.headline(outcome.verdict, outcome.summary)
    if options.as_json:
        current().out.write(document.decode() + "\n")
        if outcome.code in {Exit.FAILED, Exit.UNKNOWN, Exit.REFUSED, Exit.INTERRUPTED}:
            output.remark(outcome.summary)
    elif options.quiet:
        output.show(None, as_json=False, text=head)
    else:
        output.show(None, as_json=False, text="\n".join([head, *outcome.lines]), table=outcome.table)
        if outcome.next:
            output.show(None, as_json=False, text=f"next: {outcome.next}")
