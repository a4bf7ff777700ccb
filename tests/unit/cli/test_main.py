"""Every fault of a user is one sentence and an exit code; the overview needs no command's module."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dwcp.cli import main as cli
from dwcp.cli.environment import Environment
from dwcp.consensus.core.errors import LogCorrupt
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.config import environment
from dwcp.runtime.errors import Contradiction, Exit, NotRunning


def invoke(*arguments: str, state: Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    env = Environment(
        out=out, err=err, clock=ManualClock(), variables=environment({"DWCP_STATE": str(state)})
    )
    code = cli.main(arguments, env)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["frob"], Exit.USAGE, "frob"),
        (["up", "--frob"], Exit.USAGE, "--frob"),
        (["up", "--lease", "soon"], Exit.USAGE, "3s or 30s"),
        (["up", "--replicas", "many"], Exit.USAGE, "replicas"),
        (["init", "--net", "10.0"], Exit.FAILED, "no loopback network"),
        (["init", "--replicas", "3"], Exit.FAILED, "4 to 7"),
        (["status"], Exit.UNKNOWN, "dwcp up"),
        (["token", "revoke", "x"], Exit.UNKNOWN, "dwcp init"),
        (["logs", "dwcp-manager"], Exit.UNKNOWN, "no log"),
        ([], Exit.USAGE, "Usage: dwcp"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    """Goal: no traceback, the right code. Method: one mistake each, on an absent installation."""
    found, out, err = invoke(*arguments, state=tmp_path / "state")

    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_init_once_and_tokens(tmp_path: Path) -> None:
    """Goal: the commands that need no processes work. Method: init twice, then the life of a token."""
    state = tmp_path / "state"
    made = invoke("init", "--net", "127.88", "--json", state=state)
    again = invoke("init", "--json", state=state)
    other = invoke("init", "--net", "127.89", state=state)
    token = invoke("token", "create", "ci", "--role", "operator", "--json", state=state)
    listed = invoke("token", "list", "--json", state=state)
    revoked = invoke("token", "revoke", "ci", state=state)

    assert json.loads(made[1])["made"] is True
    assert json.loads(again[1])["made"] is False
    assert other[0] == Exit.REFUSED
    assert "made with 127.88" in other[2]
    assert len(json.loads(token[1])["token"]) == 43
    assert [entry["name"] for entry in json.loads(listed[1])["tokens"]] == ["operator", "ci"]
    assert (revoked[0], revoked[1]) == (0, "ci is revoked\n")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Contradiction("a"), Exit.REFUSED),
        (NotRunning("a"), Exit.UNKNOWN),
        (LogCorrupt("a"), Exit.FAILED),
        (typer.BadParameter("a"), Exit.USAGE),
        (FileNotFoundError(2, "No such file", "job.yaml"), Exit.FAILED),
        (ZeroDivisionError("a"), Exit.FAILED),
    ],
)
def test_faults_have_codes(fault: Exception, code: Exit) -> None:
    """Goal: one table maps faults. Method: one of each family."""
    sentence, found = cli.explain(fault)

    assert found == code
    assert sentence
    assert "\n" not in sentence


def test_overview_imports_no_command() -> None:
    """Goal: `dwcp --help` stays instant. Method: look at what a fresh interpreter imported."""
    script = (
        "import sys, io; from dwcp.cli import main; from dwcp.cli.environment import Environment\n"
        "main.main(['--help'], Environment(out=io.StringIO()))\n"
        "heavy = {'httpx', 'fastapi', 'rich', 'nacl', 'numpy', 'supervisor', 'cryptography', 'psutil'}\n"
        "print(sorted(heavy & set(sys.modules)), [m for m in sys.modules if m.startswith('dwcp.cli.commands.')])"
    )
    source = str(Path(cli.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "[] []"


def test_state_of_somebody_else_is_a_sentence(tmp_path: Path) -> None:
    """Goal: a state folder that cannot be made is explained. Method: a file stands where it should be."""
    (tmp_path / "state").write_text("")

    code, _, err = invoke("up", state=tmp_path / "state" / "below")

    assert code == Exit.REFUSED
    assert "choose a folder of your own" in err


def test_table_of_codes_names_real_classes() -> None:
    """Goal: a renamed fault does not lose its code. Method: import every name in the table."""
    for name in cli.EXIT_CODES:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), kind), Exception)
