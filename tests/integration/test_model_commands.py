"""`dwcp model` and the playbook's scripts against a real compression-api, from staging to 100 % and back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.integration.compression_service import ROOT, Installed, installation, serving
from tests.unit.services.compression_api import scene

from dwcp.compression.calibration import reference_blocks
from dwcp.models.artefact import Made

pytestmark = pytest.mark.process

WORDS = reference_blocks()[0][:20_000]


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    """Made once for all tests here."""
    with installation() as made:
        yield made


def _trained(folder: Path, made: Made) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(made.manifest)
    (folder / "weights.safetensors").write_bytes(made.weights)
    return folder


def _words(folder: Path) -> Path:
    """Files that compress well, so that a model that never compresses is clearly worse."""
    folder.mkdir()
    for number in range(4):
        path = folder / f"words-{number}.txt"
        path.write_bytes(WORDS)
        path.chmod(0o644)
    return folder


def test_the_playbook_from_staging_to_everybody(installed: Installed, tmp_path: Path) -> None:
    """Goal: lines 262 to 268 of the playbook with their exit codes. Method: a model that chooses
    as the table does; 100 % before the canary is refused; then pass, deploy, roll back; a service
    that is started again serves what was deployed."""
    sound = _trained(tmp_path / "sound", scene.model(cautious=True))
    files = str(_words(tmp_path / "words"))
    with serving(installed, "tests.integration.linear_service") as one:
        assert one.model("canary", "compression-api", "10%", code=4)
        dry = one.model("deploy", "compression-selector", "staging", "--version", str(sound), "--dry-run")
        assert (dry["dry_run"], one.model("list")["models"]) == (True, [])
        staged = one.model("deploy", "compression-selector", "staging", "--version", str(sound))
        refused = one.dwcp("model", "canary", "compression-api", "100%")
        assert (refused.returncode, "has not been evaluated" in refused.stdout) == (4, True)
        waiting = one.model("canary", "compression-api", "10%", "--wait", "0", "--no-replay", code=3)
        assert waiting["verdict"] == "inconclusive"
        judged = one.model("canary", "compression-api", "10%", "--replay", files, "--wait", "90")
        assert (judged["digest"], judged["verdict"]) == (staged["digest"], "pass")
        assert judged["replayed"] > 100
        full = one.model("canary", "compression-api", "100%")
        assert full["models"]["roles"]["active"] == staged["digest"]
    with serving(installed, "tests.integration.linear_service") as again:
        info = httpx.get(f"{again.plain}/api/v1/model/info", trust_env=False).json()
        assert (info["digest"], info["tier"]) == (staged["digest"], "model")
        assert again.model("rollback", "compression-api")["models"]["roles"]["active"] == ""


def test_a_harmful_model_ends_with_2_and_is_gone(installed: Installed, tmp_path: Path) -> None:
    """Goal: fail is exit 2 and rolled back. Method: a model that believes in no codec at all."""
    harmful = _trained(tmp_path / "harmful", scene.model(version="bad", always="none"))
    files = str(_words(tmp_path / "words"))
    with serving(installed, "tests.integration.linear_service") as one:
        digest = one.model("deploy", "compression-selector", "staging", "--version", str(harmful))["digest"]
        judged = one.model("canary", "compression-api", "50%", "--replay", files, "--wait", "90", code=2)
        assert (judged["verdict"], judged["models"]["roles"]["canary"]) == ("fail", "")
        assert one.model("show", digest[:10])["manifest"]["version"] == "bad"
        text = one.dwcp("model", "list").stdout
        assert text.startswith("OK compression-selector")
        assert "fail" in text


def test_a_staging_instance_that_cannot_serve_changes_nothing(installed: Installed, tmp_path: Path) -> None:
    """Goal: exit 2, what was staged before still is, nothing is left running. Method: the staging instance's port
    is taken; then it is free and the same files pass, asked through a real instance."""
    sound = _trained(tmp_path / "sound", scene.model(version="one", cautious=True))
    line = ("deploy", "compression-selector", "staging", "--version", str(sound))
    with serving(installed, "tests.integration.linear_service") as one:
        before = one.model("list")["roles"]
        host = one.plain.removeprefix("http://").partition(":")[0]
        with socket.create_server((host, 5001)):
            failed = one.dwcp("model", *line)
        assert (failed.returncode, "CRIT the staging instance" in failed.stdout) == (2, True)
        assert "see " in failed.stdout
        assert one.model("list")["roles"] == before
        staged = one.model(*line)
        assert staged["checks"]["staging_answers"] >= 20
        assert 0 < staged["checks"]["selection_s_p50"] < 0.002
        assert one.model("list")["roles"]["staged"] == staged["digest"]
        with pytest.raises(ConnectionRefusedError), socket.create_connection((host, 5001)):
            pass
        assert psutil.Process(one.pid).children() == []


def test_a_canary_outlives_its_command_and_its_service(installed: Installed, tmp_path: Path) -> None:
    """Goal: kill -9 loses nothing. Method: the deployment's command dies once, its line goes again; the canary's
    dies once after the start (the canary keeps its
    share; its run has no end), the service dies too, the same line passes; another command dies just before it
    would tell of a failure: the service has withdrawn the model by itself, and the same line says so with 2."""
    config = installed.layout.root / "operations.yaml"
    sound = _trained(tmp_path / "sound", scene.model(version="two", cautious=True))
    harmful = _trained(tmp_path / "harmful", scene.model(version="worse", always="none"))
    files = str(_words(tmp_path / "words"))
    line = ("ops", "canary-deploy", "compression-api", "20%", "--replay", files, "--wait", "90")
    try:
        with serving(installed, "tests.integration.linear_service") as one:
            deploy = ("deploy", "compression-selector", "staging", "--version", str(sound))
            config.write_text("testing: true\nfailpoints: [ops.deploy.after_stage=kill]\n")
            assert one.dwcp("model", *deploy).returncode == -signal.SIGKILL
            digest = one.model(*deploy)["digest"]
            config.write_text("testing: true\nfailpoints: [ops.canary.after_start=kill]\n")
            assert one.dwcp(*line).returncode == -signal.SIGKILL
            assert one.model("list")["roles"]["canary"] == digest
            (run,) = json.loads(one.dwcp("ops", "runs", "--most", "1", "--json").stdout)["runs"]
            assert (run["script"], run["exit"]) == ("canary-deploy", None)
            os.kill(one.pid, signal.SIGKILL)
        with serving(installed, "tests.integration.linear_service") as one:
            assert one.model("list")["roles"]["canary"] == digest
            resumed = one.dwcp(*line)
            assert (resumed.returncode, resumed.stdout[:3]) == (0, "OK "), resumed.stdout + resumed.stderr
            one.model("deploy", "compression-selector", "staging", "--version", str(harmful))
            config.write_text("testing: true\nfailpoints: [ops.canary.before_verdict=kill]\n")
            assert one.dwcp(*line).returncode == -signal.SIGKILL
            assert one.model("list")["roles"]["canary"] == ""
            told = one.dwcp(*line)
            assert (told.returncode, told.stdout[:5]) == (2, "CRIT "), told.stdout + told.stderr
            assert one.dwcp(*line).returncode == 4
    finally:
        config.unlink(missing_ok=True)


def _heeds_interrupts() -> None:
    """A shell that starts this test in the background has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_one_canary_at_a_time_and_an_interruption(installed: Installed, tmp_path: Path) -> None:
    """Goal: the second start names the first and ends with 4; Ctrl-C ends with 75 and leaves the canary. Method: a
    canary without questions waits; the same line beside it; SIGINT to the first; then a rollback."""
    sound = _trained(tmp_path / "sound", scene.model(version="three", cautious=True))
    line = ("ops", "canary-deploy", "compression-api", "30%", "--no-replay", "--wait", "60")
    with serving(installed, "tests.integration.linear_service") as one:
        digest = one.model("deploy", "compression-selector", "staging", "--version", str(sound))["digest"]
        command = [sys.executable, "-m", "dwcp.cli.main", *line]
        with subprocess.Popen(
            command,
            env=one.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heeds_interrupts,
        ) as first:
            for _ in range(200):
                if one.model("list")["roles"]["canary"] == digest:
                    break
            second = one.dwcp(*line)
            first.send_signal(signal.SIGINT)
            out, _ = first.communicate(timeout=30)
        assert (second.returncode, f"pid {first.pid}" in second.stdout) == (4, True), second.stdout
        assert (first.returncode, "the canary keeps its share" in out) == (75, True), out
        assert one.model("list")["roles"]["canary_pct"] == 30
        assert one.model("rollback", "compression-api", "--yes")["models"]["roles"]["canary"] == ""


def test_the_release_and_its_own_selector(installed: Installed, tmp_path: Path) -> None:
    """Goal: the playbook's lines with the model that is in the checkout, driven by this machine's files; a
    model of another family is refused. Method: the product's own composition root; wrong words are usage."""
    other = _trained(tmp_path / "other", scene.model())
    with serving(installed, "dwcp.services.compression_api") as one:
        refused = one.dwcp("model", "deploy", "compression-selector", "staging", "--version", str(other))
        assert (refused.returncode, "other features" in refused.stdout) == (4, True), refused.stdout
        staged = one.model("deploy", "compression-selector", "staging")
        assert staged["checks"]["regret_gmean_A"] < 0.1
        judged = one.model("canary", "compression-api", "10%", "--wait", "90")
        assert (judged["verdict"], judged["digest"]) == ("pass", staged["digest"])
        assert one.model("canary", "compression-api", "100%")["digest"] == staged["digest"]
    assert one.dwcp("model", "canary", "compression-api", "0%").returncode == 64
    assert one.dwcp("model", "canary", "postgres", "10%").returncode == 64
    assert one.dwcp("model", "deploy", "compression-selector", "production").returncode == 64
    nothing = one.dwcp("model", "deploy", "compression-selector", "staging", "--version", str(tmp_path))
    assert (nothing.returncode, "no trained compression-selector" in nothing.stdout) == (2, True)
    away = one.dwcp("model", "list")
    assert (away.returncode, "does not answer" in away.stderr) == (3, True)


@pytest.mark.parametrize("script", ["deploy-model.sh", "canary-deploy.sh"])
def test_scripts_find_the_program_from_anywhere(tmp_path: Path, script: str) -> None:
    """Goal: any folder, links, an empty environment. Method: a checkout whose program prints its arguments;
    the script is called through two links from another folder."""
    (tmp_path / "checkout" / "scripts").mkdir(parents=True)
    (tmp_path / "checkout" / ".venv" / "bin").mkdir(parents=True)
    program = tmp_path / "checkout" / ".venv" / "bin" / "dwcp"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)
    copy = tmp_path / "checkout" / "scripts" / script
    copy.write_text((ROOT / "scripts" / script).read_text())
    copy.chmod(0o755)
    (tmp_path / "link.sh").symlink_to(copy)
    (tmp_path / "second.sh").symlink_to("link.sh")

    done = subprocess.run(
        [str(tmp_path / "second.sh"), "a b", "--json"],
        env={},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == f"ops|{script.removesuffix('.sh')}|a b|--json|"
    assert os.access(ROOT / "scripts" / script, os.X_OK)
    assert (ROOT / "backend" / "ml" / "scripts" / script).samefile(ROOT / "scripts" / script)
