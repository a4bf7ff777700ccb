"""Models on disk: admitted, signed, found again; damage and haste change nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.unit.models.scene import NAME, SCHEMA, forward, made

from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.models.artefact import ModelRefused
from dwcp.models.lifecycle import GateClosed, Lifecycle, Word
from dwcp.models.shadow import Verdict
from dwcp.runtime.registry import Kind, NoSuchModel, Registry, RegistryDamaged

KEY = SigningKey.from_seed(b"h" * 32)


def registry(folder: Path, key: SigningKey = KEY) -> Registry:
    return Registry(folder, Kind(NAME, SCHEMA, forward), public=key.public)


def test_an_admitted_model_is_found_again(tmp_path: Path) -> None:
    """Goal: what was admitted loads, by digest or prefix. Method: two models, admit one twice."""
    models = registry(tmp_path)
    one = models.admit(made(), signer=KEY)
    models.admit(made(), signer=KEY)
    two = models.admit(made(seed=2), signer=KEY)

    assert set(models.digests()) == {one.digest, two.digest}
    assert models.load(one.digest).digest == one.digest
    assert models.resolve(two.digest[:12]) == two.digest
    for prefix in ("", "zz"):
        with pytest.raises(NoSuchModel, match="dwcp model list"):
            models.resolve(prefix)


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "signature"])
def test_a_changed_or_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    """Goal: only what was admitted is served. Method: change a byte of each file, then remove it."""
    models = registry(tmp_path)
    digest = models.admit(made(), signer=KEY).digest
    path = tmp_path / NAME / digest / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelRefused):
        models.load(digest)
    path.unlink()
    with pytest.raises(ModelRefused, match="No such file"):
        models.load(digest)


def test_a_model_signed_elsewhere_is_refused(tmp_path: Path) -> None:
    """Goal: files copied from another host are not admitted by that. Method: another host's key."""
    digest = registry(tmp_path).admit(made(), signer=SigningKey.from_seed(b"x" * 32)).digest
    with pytest.raises(ModelRefused, match="not signed by this installation"):
        registry(tmp_path).load(digest)


def test_a_refused_step_changes_nothing(tmp_path: Path) -> None:
    """Goal: a closed gate costs nothing. Method: promote without a pass; the file stays as it was."""
    models = registry(tmp_path)
    digest = models.admit(made(), signer=KEY).digest
    models.change(lambda state: state.stage(digest))
    before = models.state_file.read_bytes()
    with pytest.raises(GateClosed):
        models.change(lambda state: state.promote(now_ms=1))

    assert models.state_file.read_bytes() == before
    assert models.state_file.stat().st_mode & 0o777 == 0o600


def test_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    """Goal: two operators lose nothing of each other's. Method: 20 threads, a word each."""
    models = registry(tmp_path)
    names = [f"{i:064x}" for i in range(20)]

    def judge(name: str) -> None:
        models.change(lambda state: state.judged(name, Word(Verdict.PASS, 1, 1)))

    threads = [threading.Thread(target=judge, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(models.state().words) == set(names)


def test_a_damaged_state_is_a_sentence(tmp_path: Path) -> None:
    """Goal: no guess about what serves. Method: junk in the state file."""
    models = registry(tmp_path)
    assert models.state() == Lifecycle()
    models.change(lambda state: state)
    models.state_file.write_text("{")
    with pytest.raises(RegistryDamaged, match=r"state\.json: cannot be read"):
        models.state()
