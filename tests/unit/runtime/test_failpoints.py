"""Failpoints do nothing unless armed, and arming is refused outside of tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dwcp.runtime import failpoints
from dwcp.runtime.errors import ConfigInvalid

POINT = "agent.running.before_commit"


@pytest.fixture(autouse=True)
def _disarmed(tmp_path: Path) -> Iterator[None]:
    yield
    failpoints.arm([], tmp_path, testing=False)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("agent.runing.before=kill", "no point is named"),
        (f"{POINT}=explode", "must be kill, error or pause"),
        (f"{POINT}=pause:-1", "must be"),
        (f"{POINT}=pause:", "must be"),
        (POINT, "must be"),
    ],
)
def test_wrong_specs_are_refused(tmp_path: Path, spec: str, words: str) -> None:
    """Goal: a misspelt point cannot make a test pass silently. Method: one mistake each."""
    with pytest.raises(ConfigInvalid, match=words):
        failpoints.arm([spec], tmp_path, testing=True)


def test_production_refuses_failpoints(tmp_path: Path) -> None:
    """Goal: only `testing: true` arms anything. Method: arm without it."""
    with pytest.raises(ConfigInvalid, match="testing: true"):
        failpoints.arm([f"{POINT}=error"], tmp_path, testing=False)

    failpoints.failpoint(POINT)


def test_error_is_raised_at_its_point_only(tmp_path: Path) -> None:
    """Goal: `error` hits the named point. Method: arm one, pass another."""
    failpoints.arm([f"{POINT}=error"], tmp_path, testing=True)

    failpoints.failpoint("agent.running.after_commit")
    with pytest.raises(failpoints.FailpointError):
        failpoints.failpoint(POINT)


def test_kill_happens_once_per_data_folder(tmp_path: Path) -> None:
    """Goal: a restarted process passes where it was killed. Method: run the same process twice."""
    script = (
        "import sys; from pathlib import Path; from dwcp.runtime import failpoints as f\n"
        f"f.arm(['{POINT}=kill'], Path(sys.argv[1]), testing=True); f.failpoint('{POINT}'); print('passed')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(failpoints.__file__).parents[2])}

    ends = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for _ in range(2)
    ]

    assert ends[0].returncode == -signal.SIGKILL
    assert (ends[1].returncode, ends[1].stdout) == (0, "passed\n")
    assert failpoints.has_fired(POINT, tmp_path)


def test_every_point_has_a_sentence() -> None:
    """Goal: the list explains itself. Method: look at every entry."""
    assert [name for name, sentence in failpoints.POINTS.items() if len(sentence.split()) < 3] == []
