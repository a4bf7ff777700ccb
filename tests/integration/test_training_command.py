"""The program that trains the selector, as the playbook types it: `python3 models/compression_selector.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
ML = ROOT / "backend" / "ml"


def run(*line: str, cwd: Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """With an empty environment, so that everything is found from the file's own place."""
    env = {"PATH": os.defpath, "HOME": str(cwd)}
    command = [sys.executable, *line]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("--out", "/proc/x", "--shipped"), "/proc/x"),
        (("--minutes", "-1"), "not above 0"),
        (("--scale", "0"), "not above 0"),
        (("--quick", "--lines", "/nonexistent/lines", "--out", "here"), "/nonexistent/lines"),
    ],
    ids=["no place", "no time", "nothing", "no lines"],
)
def test_mistakes_are_sentences(tmp_path: Path, line: tuple[str, ...], told: str) -> None:
    """Goal: no traceback, exit code 2, from any folder and through a link. Method: a mistake each."""
    link = tmp_path / "train.py"
    link.symlink_to(ML / "models" / "compression_selector.py")

    done = run(str(link), *line, cwd=tmp_path)

    assert (done.returncode, told in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_quick_training_makes_a_model_that_loads(tmp_path: Path) -> None:
    """Goal: the playbook's two lines do what they say, from the folder that it names. Method: a quick run into a
    folder; the artefact is loaded with all its checks, the card has regret; the validation has numbers and limits."""
    from dwcp.compression import model, model_shipped
    from dwcp.models.artefact import Made

    done = run("models/compression_selector.py", "--quick", "--out", str(tmp_path / "m"), cwd=ML, seconds=400)
    assert done.returncode == 0, done.stderr
    names = (model_shipped.MANIFEST, model_shipped.WEIGHTS)
    made = Made(*((tmp_path / "m" / name).read_bytes() for name in names))
    assert model.load(made)[1].digest == made.digest
    assert "| zstd-3 |" in (tmp_path / "m/compression-selector.md").read_text(encoding="utf-8")

    checked = run("-m", "tests.test_compression_selector", "--seconds", "20", cwd=ML, seconds=400)
    found = json.loads(checked.stdout.splitlines()[-1])
    assert (found["digests_equal_twice"], "passed" in found) == (1, True)
