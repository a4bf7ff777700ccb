"""The one contract of operations scripts, on a script made for it."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
import typer

from dwcp.api.health import Verdict
from dwcp.cli import scripts
from dwcp.cli.commands import ops
from dwcp.cli.environment import Environment, using
from dwcp.cli.output import Table
from dwcp.cli.scripts import Outcome, Run, script
from dwcp.operations.runs import Document, Section
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.config import environment
from dwcp.runtime.errors import Contradiction, NotRunning
from dwcp.runtime.runs import Runs


class Swept(msgspec.Struct, frozen=True):
    rooms: int


Body = Callable[[Run], Outcome]


def well(run: Run) -> Outcome:
    run.remark("sweeping")
    return Outcome(
        Verdict.OK,
        "3 rooms are clean",
        Swept(3),
        lines=("dust 4 g",),
        table=Table(("room", "dust"), [("hall", "4 g")]),
        next="./scripts/mop.sh hall",
        sections=(Section("hall", Verdict.OK),),
    )


class Desk:
    """The script `sweep` in a state folder, with its streams."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.out, self.err = io.StringIO(), io.StringIO()

    def sweep(self, body: Body, *arguments: str) -> int:
        @script("sweep", answers=Swept, changes=True, target="house")
        def sweep(run: Run, house: Annotated[str, typer.Argument()]) -> Outcome:
            """Sweep."""
            assert house == "green"
            return body(run)

        app = typer.Typer(add_completion=False)
        app.command()(sweep)
        self.out, self.err = io.StringIO(), io.StringIO()
        variables = environment({"DWCP_STATE": str(self.state)})
        env = Environment(out=self.out, err=self.err, clock=ManualClock(), variables=variables)
        with using(env):
            code = typer.main.get_command(app).main(["green", *arguments], standalone_mode=False)
        assert isinstance(code, int)
        return code

    def document(self) -> Document[Swept]:
        return msgspec.json.decode(self.out.getvalue(), type=Document[Swept])

    @property
    def runs(self) -> Runs:
        return Runs(self.state / "runs")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "state").mkdir()
    return Desk(tmp_path / "state")


def test_people_read_the_verdict_first(desk: Desk) -> None:
    """Goal: verdict, figures, table, next step, in that order; progress elsewhere. Method: read all streams."""
    assert desk.sweep(well) == 0

    lines = desk.out.getvalue().splitlines()
    assert lines[:2] == ["OK 3 rooms are clean", "dust 4 g"]
    assert "hall" in lines[-2]
    assert lines[-1] == "next: ./scripts/mop.sh hall"
    assert desk.err.getvalue() == "sweep: at most 300 s\nsweeping\n"
    assert desk.sweep(well, "--quiet") == 0
    assert (desk.out.getvalue(), desk.err.getvalue()) == ("OK 3 rooms are clean\n", "")


def test_programs_read_one_document(desk: Desk) -> None:
    """Goal: one object of the described shape and nothing else. Method: decode it strictly; the schema has its
    fields; the record on disk agrees."""
    assert desk.sweep(well, "--json", "--dry-run") == 0

    found = desk.document()
    assert (found.schema, found.result, found.dry_run) == ("dwcp.ops.sweep/1", Swept(3), True)
    assert desk.err.getvalue() == ""
    (record,) = desk.runs.all()
    assert (record.id, record.exit, record.target) == (found.run, 0, "green")
    assert (desk.runs.folder / record.id / "log.txt").read_text().endswith("Z sweeping\n")
    described = json.dumps(scripts.schema(scripts.of(ops.SCRIPTS[0])))
    assert all(f'"{field}"' in described for field in msgspec.to_builtins(found))


@pytest.mark.parametrize(
    ("fault", "code", "word"),
    [
        (Contradiction("the gate is closed"), 4, "WARN refused, nothing was changed: the gate is closed"),
        (NotRunning("nobody answers"), 3, "UNKNOWN nobody answers"),
        (ZeroDivisionError("x"), 2, "CRIT a fault in dwcp itself"),
        (KeyboardInterrupt(), 75, "WARN interrupted: nothing is left half done"),
    ],
)
def test_faults_are_outcomes(desk: Desk, fault: BaseException, code: int, word: str) -> None:
    """Goal: every way to end is a verdict, a code, a document and a record. Method: one fault of each kind."""

    def fail(_run: Run) -> Outcome:
        raise fault

    assert desk.sweep(fail) == code
    assert desk.out.getvalue().startswith(word)
    assert desk.sweep(fail, "--json") == code
    assert desk.document().exit == code
    assert desk.document().result is None
    assert [record.exit for record in desk.runs.all()] == [code, code]


def test_the_second_start_is_refused(desk: Desk) -> None:
    """Goal: one run per target; looking is allowed. Method: start it again from within itself."""
    other = Desk(desk.state)
    codes: list[int] = []

    def twice(_run: Run) -> Outcome:
        codes.append(other.sweep(well))
        codes.append(other.sweep(well, "--dry-run"))
        return Outcome(Verdict.OK, "swept")

    assert desk.sweep(twice) == 0
    assert codes == [4, 0]
    assert other.sweep(well) == 0


def test_a_run_that_was_killed_is_told_of(desk: Desk) -> None:
    """Goal: a script can go on where a killed one was. Method: a record without an end is put there."""
    seen: list[bool] = []

    def look(run: Run) -> Outcome:
        seen.append(run.broken_off is not None)
        return Outcome(Verdict.OK, "swept")

    desk.sweep(look)
    (record,) = desk.runs.all()
    path = desk.runs.folder / record.id / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"exit": 0', b'"exit": null'))
    desk.sweep(look)

    assert seen == [False, True]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_interruption(desk: Desk, number: int) -> None:
    """Goal: cron and systemd end it cleanly. Method: the signal, to this process, from within the script."""

    def stopped(run: Run) -> Outcome:
        run.if_interrupted = "half is swept"
        os.kill(os.getpid(), number)
        return Outcome(Verdict.OK, "swept")

    assert desk.sweep(stopped) == 75
    assert desk.out.getvalue() == "WARN interrupted: half is swept\n"
    assert [record.exit for record in desk.runs.all()] == [75]


def test_the_budget_ends_it_as_unknown(desk: Desk) -> None:
    """Goal: nothing hangs for ever, and that is no success. Method: a budget of 20 ms from the configuration."""
    (desk.state / "operations.yaml").write_text("budget_s: 0.02\n")

    def endless(_run: Run) -> Outcome:
        signal.pause()
        return Outcome(Verdict.OK, "swept")

    assert desk.sweep(endless) == 3
    assert "more than its 0.02 s" in desk.out.getvalue()


def test_configuration_and_records_elsewhere(desk: Desk, tmp_path: Path) -> None:
    """Goal: `--config` is used. Method: records in a folder that it names, with any umask of the caller."""
    (tmp_path / "own.yaml").write_text(f"runs_dir: {tmp_path / 'elsewhere'}\n")
    before = os.umask(0o777)
    try:
        assert desk.sweep(well, "--config", str(tmp_path / "own.yaml")) == 0
    finally:
        os.umask(before)

    assert [record.exit for record in Runs(tmp_path / "elsewhere").all()] == [0]
    assert not desk.runs.folder.exists()


@pytest.mark.parametrize("text", ["budget: 3\n", "failpoints: [ops.canary.after_start=kill]\n", "{"])
def test_settings_that_cannot_be_used(desk: Desk, text: str) -> None:
    """Goal: one document there too, and nothing is done. Method: an unknown key, failpoints outside tests, no YAML."""
    (desk.state / "operations.yaml").write_text(text)

    def never(_run: Run) -> Outcome:
        raise AssertionError

    assert desk.sweep(never, "--json") == 2
    assert desk.document().verdict is Verdict.CRIT
    assert [record.exit for record in desk.runs.all()] == [2]


def test_work_goes_on_without_a_record(desk: Desk) -> None:
    """Goal: a disk that takes no record does not stop the operator. Method: a file stands where records go; and
    without an installation nothing is made."""
    (desk.state / "runs").write_text("")
    assert desk.sweep(well, "--dry-run") == 0
    assert "not recorded" in desk.err.getvalue()

    away = Desk(desk.state / "absent")
    assert away.sweep(well) == 0
    assert not away.state.exists()
