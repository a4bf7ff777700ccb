"""An installation is made once and whole, and a file that contradicts it is refused."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from dwcp.consensus.ledger.genesis import load as load_genesis
from dwcp.runtime import authority as authorities
from dwcp.runtime import installation
from dwcp.runtime.errors import Contradiction, KeyUnusable, RuntimeFault
from dwcp.runtime.layout import Layout
from dwcp.runtime.world import default_world

NOW_MS = 1_790_000_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good installation; tests work on copies."""
    layout = Layout(tmp_path_factory.mktemp("made") / "state")
    installation.create(layout, default_world(net="127.77"), now_ms=NOW_MS)
    return layout.root


@pytest.fixture
def layout(made: Path, tmp_path: Path) -> Layout:
    shutil.copytree(made, tmp_path / "state")
    return Layout(tmp_path / "state")


def test_good_installation_opens(layout: Layout) -> None:
    """Goal: what init makes, up accepts. Method: open it and write the configurations."""
    world = installation.open_world(layout)
    plans = installation.write_configs(layout, world)

    assert world == default_world(net="127.77")
    assert all(layout.config(plan.name).exists() for plan in plans)
    assert load_genesis(layout.genesis).n == 4


def test_private_files_are_private(layout: Layout) -> None:
    """Goal: no key, token or journal is open to others. Method: walk all modes."""
    public = {".crt", ".json", ".yaml"}
    loose = [
        path
        for path in layout.root.rglob("*")
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        and (path.is_dir() or path.suffix not in public or path.parent.name == "tokens")
    ]

    assert loose == []


def swap_keys(layout: Layout) -> None:
    one, other = layout.sign_key("probft-1"), layout.sign_key("probft-2")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def foreign_certificate(layout: Layout) -> None:
    authority = authorities.load_authority(layout.authority)
    shutil.rmtree(layout.keys("probft-3") / "tls.crt", ignore_errors=True)
    for name in ("tls.crt", "tls.key"):
        (layout.keys("probft-3") / name).unlink()
    authorities.issue(
        authority, layout.keys("probft-3"), name="probft-3", hosts=("127.77.1.3",), now_ms=NOW_MS
    )


def edit(old: str, new: str) -> Callable[[Layout], None]:
    def change(layout: Layout) -> None:
        text = layout.cluster.read_text()
        assert old in text
        layout.cluster.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (edit("127.77", "127.78"), Contradiction, "probft-1 is hub at 127.78.1.1.*genesis"),
        (edit("- lima\nagents", "- lima\n- oslo2\nagents"), RuntimeFault, "'oslo2' is not one of the sites"),
        (edit("- oslo\n- rome", "- rome\n- oslo"), Contradiction, "probft-2 is rome"),
        (edit("lease_ms", "leese_ms"), RuntimeFault, "did you mean 'lease_ms'"),
        (swap_keys, Contradiction, "sign.key: not the key that"),
        (foreign_certificate, Contradiction, "not the certificate that"),
        (lambda layout: layout.sign_key("operator").unlink(), KeyUnusable, "sign.key: is missing"),
        (lambda layout: (layout.keys("dwcp-manager") / "tls.key").chmod(0o640), KeyUnusable, "mode 0640"),
        (lambda layout: layout.authority_certificate.unlink(), KeyUnusable, "ca.crt"),
    ],
)
def test_contradictions_are_refused(
    layout: Layout, spoil: Callable[[Layout], None], kind: type[Exception], words: str
) -> None:
    """Goal: a mixed-up installation never starts. Method: spoil one file of a good one."""
    spoil(layout)

    with pytest.raises(kind, match=words):
        installation.open_world(layout)


def test_lost_genesis_is_not_made_anew(layout: Layout) -> None:
    """Goal: a lost genesis cannot silently become another chain. Method: remove it, init again."""
    layout.genesis.unlink()

    with pytest.raises(Contradiction, match=r"there is no genesis\.json, yet there is authority"):
        installation.create(layout, default_world(), now_ms=NOW_MS)


@pytest.mark.parametrize("moved", range(6))
def test_interrupted_init_is_finished(made: Path, tmp_path: Path, moved: int) -> None:
    """Goal: init killed while it moves files goes on at the next call. Method: each prefix of moves done."""
    layout = Layout(tmp_path / "state")
    shutil.copytree(made, layout.root / ".making")
    (layout.root / ".making" / "complete").touch()
    for piece in ("authority", "keys", "tokens", "data", "cluster.yaml", "genesis.json")[:moved]:
        (layout.root / ".making" / piece).rename(layout.root / piece)

    installation.create(layout, default_world(net="127.1"), now_ms=NOW_MS)

    assert installation.open_world(layout).net == "127.77"
    assert not (layout.root / ".making").exists()


def test_init_killed_before_complete_starts_over(tmp_path: Path) -> None:
    """Goal: half-made keys are thrown away. Method: leave an incomplete folder behind."""
    layout = Layout(tmp_path / "state")
    (layout.root / ".making" / "keys").mkdir(parents=True)
    (layout.root / ".making" / "genesis.json").write_text("half")

    installation.create(layout, default_world(), now_ms=NOW_MS)

    assert installation.open_world(layout).net == "127.0"
