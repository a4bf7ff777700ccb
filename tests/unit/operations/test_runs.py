"""What every operations script's run has in common: verdicts, codes, and what must not be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.api.health import Verdict
from dwcp.operations import runs
from dwcp.operations.runs import Section


def test_unknown_is_never_a_success() -> None:
    """Goal: nobody reads 0 where nothing was measured. Method: every verdict's code, and the way back."""
    assert {verdict.value: runs.exit_of(verdict) for verdict in Verdict} == {
        "ok": 0,
        "warn": 1,
        "crit": 2,
        "unknown": 3,
    }
    assert [runs.verdict_of(code) for code in (0, 1, 2, 3, 4, 75, 64)] == [
        Verdict.OK,
        Verdict.WARN,
        Verdict.CRIT,
        Verdict.UNKNOWN,
        Verdict.WARN,
        Verdict.WARN,
        Verdict.CRIT,
    ]


def test_a_part_that_is_down_is_the_verdict() -> None:
    """Goal: one dead source is named and the rest still counts. Method: parts of each kind, and none."""
    well = Section("log", Verdict.OK)
    dead = Section("prometheus", Verdict.UNKNOWN, "does not answer")
    worn = Section("disk", Verdict.WARN, "81 % full")

    assert runs.judged([well, well]) == (Verdict.OK, "2 of 2 parts are well")
    assert runs.judged([well, worn, dead]) == (Verdict.UNKNOWN, "prometheus: does not answer; also disk")
    assert runs.judged([]) == (Verdict.UNKNOWN, "nothing was looked at")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["x", "--token", "abc", "y"], ("x", "--token", "***", "y")),
        (["--api-secret=abc", "z"], ("--api-secret=***", "z")),
        (["--password", "--json"], ("--password", "--json")),
        (["--state", "/a", "tokens"], ("--state", "/a", "tokens")),
    ],
)
def test_secrets_are_not_recorded(argv: list[str], shown: tuple[str, ...]) -> None:
    """Goal: a record can be read by anyone on call. Method: options with and without secrets."""
    assert runs.redacted(argv) == shown


@given(st.text(max_size=200))
def test_file_names_lead_nowhere(text: str) -> None:
    """Goal: a target is a name in one folder. Method: any text."""
    name = runs.file_name(text)

    assert name
    assert len(name) <= 80
    assert "/" not in name
    assert name not in {".", ".."}
