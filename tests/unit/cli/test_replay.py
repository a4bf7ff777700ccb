"""Questions for a canary: from files that everybody may read, the same ones for the same seed."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from dwcp.cli.replay import NothingToReplay, gather
from dwcp.cli.trained import NoTrainedModel, files_of
from dwcp.runtime.layout import Layout


def _folder(tmp_path: Path) -> Path:
    for number in range(5):
        path = tmp_path / f"file-{number}"
        path.write_bytes(bytes([number]) * (5000 + 40_000 * number))
        path.chmod(0o644)
    (tmp_path / "secret").write_bytes(b"s" * 9000)
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def test_questions_repeat_with_the_seed_and_leave_secrets_alone(tmp_path: Path) -> None:
    """Goal: reproducible, and nothing private is read. Method: two runs; a private file, a link, a pipe."""
    folder = _folder(tmp_path)
    one, two = (list(islice(gather((folder,)).questions(), 20)) for _ in range(2))

    assert one == two
    assert not any(b"s" in question.body for question in one)
    assert all(0 < len(question.body) <= 64 << 10 for question in one)
    assert len({question.headers["X-Stream-Id"] for question in one}) == 20
    assert all(int(question.headers["X-Total-Size"]) >= len(question.body) for question in one)


def test_nothing_to_read_is_a_sentence(tmp_path: Path) -> None:
    """Goal: no loop without end. Method: an empty folder; files that go while they are asked about."""
    with pytest.raises(NothingToReplay, match="everybody may read"):
        gather((tmp_path,))
    replay = gather((_folder(tmp_path),))
    for path in replay.files:
        path.unlink()
    with pytest.raises(NothingToReplay, match="no file is left"):
        next(replay.questions())


def test_the_newest_trained_model_is_taken(tmp_path: Path) -> None:
    """Goal: deploy takes what training wrote last. Method: two names in one folder, the later one wins."""
    layout = Layout(tmp_path / "state")
    with pytest.raises(NoTrainedModel, match="--version"):
        files_of(layout, "some-model", None)
    folder = layout.root / "models" / "some-model"
    folder.mkdir(parents=True)
    for at, (manifest, weights) in enumerate(
        [("manifest.json", "weights.safetensors"), ("some-model.json", "some-model.safetensors")]
    ):
        (folder / manifest).write_bytes(b"m%d" % at)
        (folder / weights).write_bytes(b"w%d" % at)
        os.utime(folder / manifest, (at + 1, at + 1))

    assert files_of(layout, "some-model", None).weights == b"w1"
    assert files_of(layout, "some-model", folder).manifest == b"m1"
