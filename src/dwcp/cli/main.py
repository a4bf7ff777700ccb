"""`dwcp`: finds the command, runs it, and turns every fault into one sentence and an exit code.

Adding a command: write `cli/commands/NAME.py`, which has either a function named like the
command (a Typer command) or a `typer.Typer` named `app` (a group such as `dwcp ledger
get`); add one `Entry` to `COMMANDS`. The module is imported only when its command is
used, so `dwcp --help` stays instant. A command prints through `cli.output`, takes its
streams and clock from `cli.environment.current()`, has `--json`, shows an example in its
docstring (a line that begins with "Example:"), and signals an outcome by raising a fault
of its package or `typer.Exit(code)` with a code of `Exit`. Map new faults in `EXIT_CODES`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import typer
import typer.main
from typer.core import TyperGroup

from dwcp.cli.environment import Environment, using
from dwcp.runtime.errors import Exit

if TYPE_CHECKING:
    from typer import _click


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: where its code is and what the overview says about it."""

    name: str
    module: str  # below dwcp.cli.commands
    section: str
    help: str


PLATFORM, WORK, DATA, LEDGER = "The platform", "Work", "Data", "The ledger"

COMMANDS: tuple[Entry, ...] = (
    Entry("init", "platform", PLATFORM, "make keys, genesis and journals, once"),
    Entry("up", "platform", PLATFORM, "start everything and wait until it is ready"),
    Entry("down", "platform", PLATFORM, "stop everything"),
    Entry("status", "platform", PLATFORM, "show what runs and how it is"),
    Entry("logs", "logs", PLATFORM, "show the logs of services or of a workload"),
    Entry("token", "token", PLATFORM, "make, list and revoke access tokens"),
    Entry("model", "model", PLATFORM, "deploy, try and withdraw learned models"),
    Entry("ops", "ops", PLATFORM, "run the operations scripts, show their runs"),
    Entry("doctor", "doctor", PLATFORM, "check this machine and this installation"),
    Entry("submit", "submit", WORK, "submit a job with its files"),
    Entry("watch", "watch", WORK, "follow a workload"),
    Entry("cancel", "cancel", WORK, "cancel a workload"),
    Entry("workloads", "workloads", WORK, "list workloads, or show one"),
    Entry("output", "output", WORK, "fetch and verify a workload's output"),
    Entry("nodes", "nodes", WORK, "list worker machines"),
    Entry("drain", "drain", WORK, "take a worker machine out of service, or back"),
    Entry("rebalance", "rebalance", WORK, "move work to where it costs less"),
    Entry("allocate", "allocate", WORK, "train and judge policies that place workloads"),
    Entry("send", "send", DATA, "send files to another site, or fetch them"),
    Entry("compress", "compress", DATA, "compress files, directories and pipes"),
    Entry("decompress", "compress", DATA, "unpack and verify what was compressed"),
    Entry("ledger", "ledger", LEDGER, "read and write the control log"),
    Entry("receipt", "receipt", LEDGER, "fetch receipts and verify them offline"),
    Entry("sim", "sim", LEDGER, "run the deterministic simulator"),
)

# Faults by their full name, most special first, so that no package is imported to look one up.
EXIT_CODES: dict[str, Exit] = {
    "dwcp.runtime.client.Indeterminate": Exit.UNKNOWN,
    "dwcp.runtime.client.Overloaded": Exit.UNKNOWN,
    "dwcp.runtime.client.Refused": Exit.REFUSED,
    "dwcp.consensus.core.errors.CoreError": Exit.FAILED,
    "dwcp.control.errors.ControlError": Exit.REFUSED,
    "dwcp.compression.errors.PayloadRefused": Exit.REFUSED,
    "dwcp.compression.errors.PayloadChanged": Exit.REFUSED,
    "dwcp.compression.errors.TransferError": Exit.FAILED,
}


class Commands(TyperGroup):
    """The group of all commands; imports one when it is asked for."""

    def list_commands(self, ctx: _click.Context) -> list[str]:  # noqa: ARG002  # Typer's signature
        return [entry.name for entry in COMMANDS]

    def get_command(self, ctx: _click.Context, cmd_name: str) -> _click.Command | None:  # noqa: ARG002
        for entry in COMMANDS:
            if entry.name == cmd_name:
                return load_command(entry)
        return None

    def format_help(self, ctx: _click.Context, formatter: _click.HelpFormatter) -> None:  # noqa: ARG002
        formatter.write(overview())


def load_command(entry: Entry) -> _click.Command:
    """The command itself. Its module may be absent in a partial checkout: that is a usage error."""
    module = importlib.import_module(f"dwcp.cli.commands.{entry.module}")
    found = getattr(module, "app", None)
    if isinstance(found, typer.Typer):
        found._add_completion = False  # `dwcp` itself has it; a group's own would shadow it
        return typer.main.get_command(found)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(entry.name)(getattr(module, entry.name))
    return typer.main.get_command(single)


def overview() -> str:
    """The text of `dwcp --help`, made from `COMMANDS` alone."""
    lines = [
        "Usage: dwcp COMMAND [OPTIONS] …",
        "",
        "Place, ship, run and prove work across sites joined by slow, untrusted links.",
    ]
    for section in (PLATFORM, WORK, DATA, LEDGER):
        lines += ["", f"{section}:"]
        lines += [f"  {entry.name:<11} {entry.help}" for entry in COMMANDS if entry.section == section]
    lines += [
        "",
        "Options:",
        "  --version               show the version and exit",
        "  --install-completion    install completion for your shell",
        "  --show-completion       print completion for your shell",
        "  --help                  show this; `dwcp COMMAND --help` tells more",
        "",
        "Exit codes: 0 ok, 1 findings, 2 failed, 3 unknown, 4 refused, 64 usage, 75 interrupted.",
        "",
        "Example: dwcp up && dwcp submit example/job.yaml --wait",
        "",
    ]
    return "\n".join(lines)


def _version(wanted: bool) -> None:
    if wanted:
        from dwcp import __version__

        typer.echo(__version__)
        raise typer.Exit(0)


def group() -> _click.Command:
    """The whole command line as one command."""
    app = typer.Typer(cls=Commands, rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", callback=_version, is_eager=True, help="show the version"
        ),
    ) -> None:
        """Place, ship, run and prove work."""

    return typer.main.get_command(app)


def main(arguments: Sequence[str], environment: Environment) -> int:
    """Runs one command line; never raises for anything a user can cause."""
    if not arguments:
        environment.err.write(overview())
        return Exit.USAGE
    with using(environment):
        try:
            result = group().main(list(arguments), prog_name="dwcp", standalone_mode=False)
        except BaseException as exc:  # noqa: BLE001  # the outermost frame: every fault becomes a sentence
            return _settle(exc, environment)
        return result if isinstance(result, int) else Exit.OK


def run() -> NoReturn:
    """The program `dwcp`."""
    sys.exit(main(sys.argv[1:], Environment()))


def _settle(exc: BaseException, environment: Environment) -> int:
    """One sentence on standard error, one exit code."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, SystemExit):
        return exc.code if isinstance(exc.code, int) else Exit.OK
    if isinstance(exc, typer.Exit):
        return exc.exit_code
    if isinstance(exc, KeyboardInterrupt | typer.Abort):
        environment.err.write("interrupted; nothing was rolled back, the same command may be given again\n")
        return Exit.INTERRUPTED
    if isinstance(exc, BrokenPipeError):
        return Exit.OK
    sentence, code = explain(exc)
    environment.err.write(sentence + "\n")
    return code


def explain(exc: BaseException) -> tuple[str, Exit]:
    """The sentence for a fault, and its exit code."""
    format_message = getattr(exc, "format_message", None)
    if format_message is not None:  # Typer's own: wrong usage
        hint = "see `dwcp --help`"
        context = getattr(exc, "ctx", None)
        if context is not None:
            hint = f"see `{context.command_path} --help`"
        text = format_message().rstrip(".") or "missing command"
        return f"{text}; {hint}", Exit.USAGE
    code = getattr(exc, "exit_code", None)
    if isinstance(code, Exit):
        return str(exc), code
    for kind in type(exc).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in EXIT_CODES:
            return str(exc), EXIT_CODES[name]
    if type(exc).__module__.startswith("dwcp.") and not isinstance(exc, AssertionError):
        return str(exc), Exit.FAILED  # ours, written for people; an AssertionError is our own mistake
    return _foreign(exc)


def _foreign(exc: BaseException) -> tuple[str, Exit]:
    kind = type(exc)
    if kind.__module__.partition(".")[0] in {"httpx", "httpcore"}:
        return f"a service did not answer ({str(exc) or kind.__name__}): see `dwcp status`", Exit.UNKNOWN
    if isinstance(exc, UnicodeEncodeError):
        return f"{exc.object[:60]!a} holds bytes that are no UTF-8 text: write it as text", Exit.USAGE
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename or 'the system'}: {exc.strerror}", Exit.FAILED
    return f"a fault in dwcp itself ({_place(exc)}): {kind.__name__}: {exc}; please report it", Exit.FAILED


def _place(exc: BaseException) -> str:
    trace: Any = exc.__traceback__  # Any: walked to its end below
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}" if trace is not None else "?"


if __name__ == "__main__":
    run()
