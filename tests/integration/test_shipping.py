"""Transfers between real processes over mutual TLS: killed at every point, cut, slow, and spoken to by strangers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dwcp.compression import manifest as m
from dwcp.compression.errors import PayloadChanged, TransferError
from dwcp.runtime.authority import Authority, create_authority, issue
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.config import TlsFiles
from dwcp.runtime.failpoints import POINTS
from dwcp.runtime.http import client
from dwcp.runtime.payloads import Handed, upload
from dwcp.runtime.shipping import download
from dwcp.runtime.trees import capture, materialise, read_tree

pytestmark = pytest.mark.process
NET = f"127.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
PORT = 7070
PARTY = Path(__file__).with_name("ship_party.py")
ALWAYS = {
    "ship.push.after_pack",
    "ship.push.before_pack",
    "ship.source.after_pack",
    "ship.target.after_chunk",
    "ship.target.before_complete",
}


def _points(prefix: str) -> list[Any]:
    """Every point below the prefix; those outside `ALWAYS` belong to the full matrix."""
    names = sorted(name for name in POINTS if name.startswith(prefix))
    return [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.accept) for name in names]


class Site:
    """Certificates and parties of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        now_ms = SystemClock().now_ms()
        self.authority: Authority = create_authority(folder / "ca", name="test", now_ms=now_ms)
        self._running: list[subprocess.Popen[bytes]] = []

    def tls(self, name: str, host: str) -> TlsFiles:
        folder = self.folder / "keys" / name
        if not folder.exists():
            issue(self.authority, folder, name=name, hosts=(host,), now_ms=SystemClock().now_ms())
        return TlsFiles(
            certificate=folder / "tls.crt", key=folder / "tls.key", authority=self.folder / "ca" / "ca.crt"
        )

    def start(self, role: str, name: str, number: int, **more: Any) -> subprocess.Popen[bytes]:
        """Source or target as a process; a source is returned when it listens."""
        host = f"{NET}.{number}"
        files = self.tls(more.pop("identity", name), host)
        plan = {
            "role": role,
            "folder": str(self.folder / name),
            "tls": {key: str(getattr(files, key)) for key in ("certificate", "key", "authority")},
            "host": host,
            "port": PORT,
            **more,
        }
        command = [sys.executable, str(PARTY), json.dumps(plan)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "src:."})
        self._running.append(process)
        if role == "source":
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == {"ready": True}
        return process

    def stop(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


def _payload(folder: Path, size: int = 4 << 20) -> Path:
    source = random.Random(5)
    folder.mkdir()
    (folder / "noise").write_bytes(source.randbytes(size))
    for n in range(50):
        (folder / f"text{n}").write_bytes(b"%d words words words\n" % n * source.randrange(1, 3000))
    return folder


def _held(site: Site, name: str) -> str:
    """A payload in the source's store; returns its root."""
    _payload(site.folder / "payload")
    return m.root(capture(site.folder / "payload", ChunkStore.open(site.folder / name), owner="w-1")).hex()


def _url(number: int) -> str:
    return f"https://{NET}.{number}:{PORT}"


def _result(process: subprocess.Popen[bytes], seconds: float = 60) -> dict[str, Any]:
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def _verify(site: Site, root: str, name: str = "dwcp-agent-rome") -> None:
    """The target's store gives back the very files."""
    store = ChunkStore.open(site.folder / name)
    assert store.problems == ()
    materialise(store.manifest(bytes.fromhex(root)), store, site.folder / "back")
    for path in (site.folder / "payload").iterdir():
        assert (site.folder / "back" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("point", _points("ship.source."))
def test_a_source_killed_at_each_point_delivers_after_its_restart(site: Site, point: str) -> None:
    """SIGKILL at the point; the target waits, the restarted source goes on, the payload is whole."""
    root = _held(site, "source")
    source = site.start("source", "source", 1, failpoints=[f"{point}=kill"])
    target = site.start("target", "dwcp-agent-rome", 2, root=root, sources={"oslo": _url(1)})
    assert source.wait(timeout=30) == -signal.SIGKILL
    site.start("source", "source", 1, failpoints=[f"{point}=kill"])

    assert _result(target)["complete"]
    _verify(site, root)


@pytest.mark.parametrize("point", _points("ship.target."))
def test_a_target_killed_at_each_point_completes_after_its_restart(site: Site, point: str) -> None:
    """SIGKILL at the point; the same pull again completes and never trusts a torn chunk."""
    root = _held(site, "source")
    site.start("source", "source", 1)
    plan = {"root": root, "sources": {"oslo": _url(1)}, "failpoints": [f"{point}=kill"]}
    assert site.start("target", "dwcp-agent-rome", 2, **plan).wait(timeout=30) == -signal.SIGKILL

    assert _result(site.start("target", "dwcp-agent-rome", 2, **plan))["complete"]
    _verify(site, root)


def test_after_a_kill_only_the_rest_travels(site: Site) -> None:
    """Killed when three quarters are here: the second run moves far less than all of the bytes.

    Packs that were under way at the kill, on two streams, travel again.
    """
    root = _held(site, "source")
    site.start("source", "source", 1, rate_bps=20e6)
    plan = {"root": root, "sources": {"oslo": _url(1)}}
    target = site.start("target", "dwcp-agent-rome", 2, **plan)
    chunks = site.folder / "dwcp-agent-rome" / "default" / "chunks"
    until = time.monotonic() + 30
    while sum(1 for _ in chunks.glob("*/*")) < 60:
        assert time.monotonic() < until
        time.sleep(0.02)
    target.kill()

    result = _result(site.start("target", "dwcp-agent-rome", 2, **plan))

    assert result["complete"]
    assert result["wire_bytes"] < 3_500_000, "of 4.2 MB"
    _verify(site, root)


@pytest.mark.parametrize("point", _points("ship.push."))
def test_a_sender_killed_at_each_point_sends_the_rest(site: Site, point: str) -> None:
    """SIGKILL in the middle of a push; the same push again completes, and what was there is not sent again."""
    payload = _payload(site.folder / "payload", 12 << 20)
    site.start("source", "store", 1)
    sources = {"to": _url(1)}
    killed = site.start(
        "pusher", "payload", 9, identity="operator", sources=sources, failpoints=[f"{point}=kill"]
    )
    assert killed.wait(60) == -signal.SIGKILL

    again = site.start("pusher", "payload", 9, identity="operator", sources=sources)
    answer = _result(again)
    total = sum(path.stat().st_size for path in payload.iterdir())
    assert answer["received_bytes"] <= total
    assert answer["root"] == m.root(capture(payload, ChunkStore.open(site.folder / "own"), owner="w-1")).hex()


@pytest.mark.parametrize("point", _points("ship.target.before_chunk") + _points("ship.target.after_chunk"))
def test_an_agent_killed_under_a_push_has_it_after_its_restart(site: Site, point: str) -> None:
    """SIGKILL of the receiver at a chunk; the sender goes on by itself with the restarted one."""
    _payload(site.folder / "payload", 12 << 20)
    agent = site.start("source", "store", 1, failpoints=[f"{point}=kill"])
    sender = site.start("pusher", "payload", 9, identity="operator", sources={"to": _url(1)})
    assert agent.wait(60) == -signal.SIGKILL
    site.start("source", "store", 1)

    root = bytes.fromhex(_result(sender)["root"])
    store = ChunkStore.open(site.folder / "store")
    assert store.complete(root)
    materialise(store.manifest(root), store, site.folder / "out")
    for path in (site.folder / "payload").iterdir():
        assert (site.folder / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_send_goes_on_when_it_is_repeated_whoever_was_killed(site: Site) -> None:
    """Goal: what has arrived never travels again. Method: SIGKILL of the sender at a pack's boundary, then of
    the receiver while it was idle, then again of a receiver under the second send, which goes on by itself."""
    payload = _payload(site.folder / "payload", 12 << 20)
    total = sum(path.stat().st_size for path in payload.iterdir())
    agent = site.start("source", "store", 1)
    plan = {"identity": "operator", "sources": {"to": _url(1)}, "rate_bps": 200e6}
    slow = ["ship.push.after_pack=pause:60"]
    sender = site.start("pusher", "payload", 9, failpoints=slow, **plan)
    _until_held(site, 4 << 20)
    sender.kill()
    sender.wait()
    agent.kill()
    agent.wait()

    held = ChunkStore.open(site.folder / "store").bytes_held
    assert 4 << 20 <= held < total
    agent = site.start("source", "store", 1)
    sender = site.start("pusher", "payload", 9, failpoints=slow, **plan)
    _until_held(site, held + (3 << 20))
    agent.kill()
    agent.wait()
    site.start("source", "store", 1)

    answer = _result(sender)
    assert answer["received_bytes"] <= total - held - (3 << 20) + (2 << 20), "packs in the receiver's hands"
    store = ChunkStore.open(site.folder / "store")
    assert store.complete(bytes.fromhex(answer["root"]))


def test_the_command_in_a_pipe(site: Site) -> None:
    """Goal: `dwcp send` from and to pipes, as a user types it. Method: an installation's folder with the operator's
    certificate, a real agent's store; what is not one file, what was never sent, what is not there."""
    shutil.copytree(site.folder / "ca", site.folder / "authority")
    (site.folder / "genesis.json").touch()
    site.tls("operator", f"{NET}.9")
    site.start("source", "store", 1)
    folder = _payload(site.folder / "payload", 4 << 10)
    lone = site.folder / "lone"
    lone.mkdir()
    (lone / "file").write_bytes(b"one")
    (lone / "link").symlink_to("file")
    text = b"".join(b"%d of many lines\n" % n for n in range(50_000))

    sent = _send(site, "-", f"{_url(1)}/log", "--json", stdin=text)
    back = _send(site, f"{_url(1)}/log", "-", "--json")
    assert (json.loads(sent.stdout)["bytes"], sent.returncode, back.returncode) == (len(text), 0, 0)
    assert back.stdout == text
    assert json.loads(back.stderr.splitlines()[-1])["root"] == json.loads(sent.stdout)["root"]
    for path, name in ((folder, "many"), (lone, "lone")):
        assert _send(site, str(path), f"{_url(1)}/{name}").returncode == 0
        refused = _send(site, f"{_url(1)}/{name}", "-")
        assert (refused.returncode, refused.stdout) == (4, b"")
        assert b"more than one file" in refused.stderr
    assert b"'never' was not sent there" in _send(site, f"{_url(1)}/never", "-").stderr
    assert b"does not exist: there is nothing to send" in _send(site, "nothing", f"{_url(1)}/x").stderr


def _send(site: Site, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    line = [
        sys.executable,
        "-m",
        "dwcp.cli",
        "send",
        *words,
        "--codec",
        "zstd-1",
        "--state",
        str(site.folder),
    ]
    env = {**os.environ, "PYTHONPATH": "src:."}
    return subprocess.run(line, input=stdin, capture_output=True, env=env, timeout=60, check=False)


def _until_held(site: Site, size: int) -> None:
    """Waits until chunks of so many bytes are on the receiver's disk."""
    chunks = site.folder / "store" / "default" / "chunks"
    until = time.monotonic() + 60
    while sum(path.stat().st_size for path in chunks.glob("*/*")) < size:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_stopped_source_is_left_for_another(site: Site) -> None:
    """SIGSTOP in the middle of a stream: after the stall the other source delivers the rest."""
    root = _held(site, "source")
    _held_copy(site)
    slow = site.start("source", "source", 1, rate_bps=4e6)
    site.start("source", "copy", 3)
    sources = {"oslo": _url(1), "copy": _url(3)}
    target = site.start("target", "dwcp-agent-rome", 2, root=root, sources=sources)
    time.sleep(1.5)
    slow.send_signal(signal.SIGSTOP)
    try:
        assert _result(target)["complete"]
    finally:
        slow.send_signal(signal.SIGCONT)
    _verify(site, root)


def _held_copy(site: Site) -> None:
    capture(site.folder / "payload", ChunkStore.open(site.folder / "copy"), owner="w-1")


def test_the_uplink_is_paced(site: Site) -> None:
    """4 MiB of noise over 16 Mbit/s take at least 2 seconds, and not twice as long as they must."""
    root = _held(site, "source")
    site.start("source", "source", 1, rate_bps=16e6)
    started = time.monotonic()

    result = _result(site.start("target", "dwcp-agent-rome", 2, root=root, sources={"oslo": _url(1)}))

    took = time.monotonic() - started
    least = result["wire_bytes"] * 8 / 16e6 - 0.1
    assert least < took < 2 * least + 15


def test_a_submission_over_mutual_tls(site: Site) -> None:
    """Upload, download, and a submission whose payload changes on the way, which commits nothing."""
    site.start("source", "source", 1)
    tls = site.tls("operator", f"{NET}.9")
    payload = _payload(site.folder / "payload")

    def change(handed: Handed) -> None:
        if handed.stage == "sending" and handed.done_bytes:
            (payload / "text9").write_bytes(b"changed meanwhile")

    async def main() -> None:
        async with client(tls) as http:
            done = await upload(http, _url(1), read_tree(payload), workload="w-1")
            await download(http, _url(1), bytes.fromhex(done.root), site.folder / "back")
            (payload / "more").write_bytes(random.Random(6).randbytes(6 << 20))
            (payload / "text9").write_bytes(b"a new text that has to travel " * 9)
            with pytest.raises(PayloadChanged, match="'text9'"):
                await upload(http, _url(1), read_tree(payload), workload="w-2", tell=change)

    asyncio.run(main())

    assert (site.folder / "back" / "noise").read_bytes() == (payload / "noise").read_bytes()
    store = ChunkStore.open(site.folder / "source")
    assert list(store.roots().values()) == [{"w-1"}]


def test_a_full_agent_says_so_while_the_submitter_still_sends(site: Site) -> None:
    """40 MB for an agent that may hold 1: its sentence arrives, not a broken connection, and it is empty again."""
    site.start("source", "source", 1, quota_bytes=1_000_000)
    payload = _payload(site.folder / "payload", 40 << 20)

    async def main() -> None:
        async with client(site.tls("operator", f"{NET}.9")) as http:
            with pytest.raises(TransferError, match="may hold 1000000 bytes"):
                await upload(http, _url(1), read_tree(payload), workload="w-1")

    asyncio.run(main())

    assert ChunkStore.open(site.folder / "source").bytes_held == 0


def test_strangers_get_nothing(site: Site) -> None:
    """Junk instead of TLS, and TLS without a certificate of the installation: closed, and others are served."""
    site.start("source", "source", 1)
    with contextlib.closing(socket.create_connection((f"{NET}.1", PORT), timeout=5)) as stranger:
        stranger.sendall(os.urandom(2000))
        with contextlib.suppress(ConnectionError):
            while stranger.recv(4096):
                pass
    no_certificate = ssl.create_default_context(cafile=str(site.folder / "ca" / "ca.crt"))
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{_url(1)}/v1/outputs/{'0' * 64}", verify=no_certificate, trust_env=False)

    async def main() -> int:
        async with client(site.tls("operator", f"{NET}.9")) as http:
            return (await http.get(f"{_url(1)}/v1/outputs/{'0' * 64}")).status_code

    assert asyncio.run(main()) == 404


def test_the_compression_service_as_a_process(site: Site) -> None:
    """Started as it is in production: answers a prediction without a token, drains on SIGTERM, exits 0."""
    tls = site.tls("compression-api", f"{NET}.4")
    config = {
        "name": "compression-api",
        "data_dir": str(site.folder / "data"),
        "genesis": str(site.folder / "genesis.json"),
        "tls": {key: str(getattr(tls, key)) for key in ("certificate", "key", "authority")},
        "plain": {"host": f"{NET}.4", "port": 5000},
        "mutual": {"host": f"{NET}.4", "port": 7443},
    }
    path = site.folder / "compression-api.yaml"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "dwcp.services.compression_api", "--config", str(path)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": "src"}, stderr=subprocess.DEVNULL)
    site._running.append(process)
    base = f"http://{NET}.4:5000"
    _until_ready(base)

    answer = httpx.post(
        f"{base}/api/v1/compression/predict",
        content=b"sample",
        headers={"Content-Type": "application/octet-stream", "X-Bandwidth-Bps": "5000000"},
        trust_env=False,
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["tier"] == "table"
    assert httpx.post(f"{base}/api/v1/model/info", trust_env=False).status_code == 401
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 0
    assert (site.folder / "data" / "calibration.json").exists()


def _until_ready(base: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{base}/ready", trust_env=False).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the service did not get ready")
