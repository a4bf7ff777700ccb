"""A hostile or unlucky user: every bad input ends in a sentence and an exit code, and costs nothing.

One small platform runs for the whole group; at the end of each test it still runs, and no log has a traceback.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.acceptance.sieges import Siege, siege

from dwcp.compression import intake
from dwcp.compression import manifest as manifests
from dwcp.compression.manifest import Chunk, Entry, Kind, Manifest
from dwcp.runtime import keys
from dwcp.runtime.world import OPERATOR

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="enable with: run as root")
REFUSED, FAILED = 4, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    """One platform for the group."""
    with siege(tmp_path_factory.mktemp("bad")) as subject:
        yield subject


# --------------------------------------------------------------------------- job files

GOOD = {"name": "bad", "demand": {"cpu": 0.1, "memory_mib": 64, "storage_mib": 64}, "run": ["true"]}
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b]\n"
JOB_FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("job.yaml",)),
    "not YAML": (b"name: [unclosed\nrun: }", ("no YAML", "line")),
    "not text": (b"\xff\xfe\x00\x01" * 9, ("UTF-8",)),
    "a NUL": (b"name: a\x00b\n", ("job.yaml",)),
    "oversized": (b"name: x\n#" + b"x" * 200_000, ("at most",)),
    "deep flow": (b"name: " + b"[" * 5000, ("nested too deeply",)),
    "deep blocks": (b"".join(b" " * depth + b"a:\n" for depth in range(200)), ("nested too deeply",)),
    "a bomb": (BOMB.encode(), ("anchors",)),
    "a Python object": (b"name: !!python/object/apply:os.system ['true']\n", ("tags",)),
    "a key twice": (b"name: a\nname: b\n", ("twice",)),
    "a list": (b"- name\n- run\n", ("keys",)),
    "a misspelled key": (json.dumps(GOOD | {"retyr": "safe"}).encode(), ("retyr", "did you mean 'retry'")),
    "a misspelled inner key": (
        json.dumps(GOOD | {"demand": {"cpus": 1, "memory_mib": 1, "storage_mib": 1}}).encode(),
        ("demand.cpus", "did you mean 'cpu'"),
    ),
    "a wrong type": (json.dumps(GOOD | {"priority": "high"}).encode(), ("priority",)),
    "an endless number": (b"name: a\nrun: [x]\ndemand: {cpu: " + b"9" * 5000 + b"}\n", ("job.yaml",)),
    "not a number": (b"name: a\nrun: ['true']\ndemand: {cpu: .nan, memory_mib: 1, storage_mib: 1}", ("cpu",)),
    "a path as name": (json.dumps(GOOD | {"name": "../../etc"}).encode(), ("name",)),
    "output outside": (json.dumps(GOOD | {"output": "../../etc"}).encode(), ("output",)),
    "no such site": (json.dumps(GOOD | {"place": {"site": "atlantis"}}).encode(), ("atlantis", "sites")),
    "a NUL in the command": (json.dumps(GOOD | {"run": ["a\0b"]}).encode(), ("run", "NUL")),
}


@pytest.mark.parametrize("case", JOB_FILES)
def test_bad_job_files_are_refused(world: Siege, tmp_path: Path, case: str) -> None:
    """Goal: a broken job file is named and refused. Method: submit it; nothing is created."""
    content, words = JOB_FILES[case]
    job = tmp_path / "job.yaml"
    job.write_bytes(content)
    before = world.workload_count()
    answer = world.dwcp("submit", str(job))
    assert answer.code == REFUSED, answer.err
    answer.check(str(job) if "site" not in case else "site", *words)
    assert world.workload_count() == before


@pytest.mark.parametrize("path", ["missing.yaml", ".", "/dev/zero"])
def test_what_is_no_job_file_is_refused(world: Siege, path: str) -> None:
    """Goal: an unreadable or endless file ends at once. Method: submit it."""
    answer = world.dwcp("submit", path, timeout_s=30)
    assert answer.code == REFUSED, answer.err
    answer.check(path)


@pytest.mark.parametrize(
    ("demand", "resource"),
    [
        ({"cpu": 100_000}, "cpu"),
        ({"memory_mib": 10**8}, "memory_mib"),
        ({"storage_mib": 10**8}, "storage_mib"),
    ],
)
def test_impossible_demand_is_refused_at_once(
    world: Siege, tmp_path: Path, demand: dict[str, int], resource: str
) -> None:
    """Goal: nobody waits for what can never be. Method: ask too much; the resource and the largest node are said."""
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(GOOD | {"demand": {**GOOD["demand"], **demand}}))  # type: ignore[dict-item]
    begun = time.monotonic()
    answer = world.dwcp("submit", str(job))
    assert answer.code == REFUSED
    assert time.monotonic() - begun < 20
    answer.check(f"demand.{resource}", "largest node")


# --------------------------------------------------------------------------- payloads


def _fifo(at: Path) -> None:
    os.mkfifo(at / "pipe")


def _socket(at: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(at)  # a socket's path may have 107 bytes
        try:
            made.bind("sock")
        finally:
            os.chdir(here)


def _device(at: Path) -> None:
    os.mknod(at / "device", 0o600 | 0o020000, os.makedev(1, 3))


def _setuid(at: Path) -> None:
    (at / "tool").write_bytes(b"x")
    (at / "tool").chmod(0o4755)


def _setgid(at: Path) -> None:
    (at / "shared").mkdir()
    (at / "shared").chmod(0o2755)


def _absolute_link(at: Path) -> None:
    (at / "link").symlink_to("/etc/passwd")


def _escaping_link(at: Path) -> None:
    (at / "inner").mkdir()
    (at / "inner" / "link").symlink_to("../../../etc/passwd")


def _winding_link(at: Path) -> None:
    (at / "a").mkdir()
    (at / "a" / "up").symlink_to("..")
    (at / "b").symlink_to("a/up/..")


def _not_utf8(at: Path) -> None:
    (at / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")


PAYLOADS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a fifo": (_fifo, "pipe"),
    "a socket": (_socket, "sock"),
    "a setuid file": (_setuid, "setuid"),
    "a setgid folder": (_setgid, "setgid"),
    "an absolute link": (_absolute_link, "/etc/passwd"),
    "a link that escapes": (_escaping_link, "leaves the payload"),
    "a link that escapes by another": (_winding_link, "leaves the payload"),
    "a name that is no text": (_not_utf8, "UTF-8"),
}


@pytest.mark.parametrize("case", PAYLOADS)
def test_bad_payloads_are_refused(world: Siege, tmp_path: Path, case: str) -> None:
    """Goal: what must not travel is named. Method: a folder that holds it; nothing is created."""
    make, word = PAYLOADS[case]
    folder = tmp_path / "payload"
    folder.mkdir()
    (folder / "good").write_bytes(b"good")
    make(folder)
    before = world.workload_count()
    answer = world.submit_folder(folder)
    assert answer.code == REFUSED, answer.err
    answer.check(word)
    assert world.workload_count() == before


@needs_root
def test_a_device_is_refused(world: Siege, tmp_path: Path) -> None:
    """Goal: a device never travels and is never opened. Method: /dev/null's twin in a payload."""
    folder = tmp_path / "payload"
    folder.mkdir()
    try:
        _device(folder)
    except PermissionError:
        pytest.skip("enable with: a file system and container that allow mknod")
    answer = world.submit_folder(folder)
    assert answer.code == REFUSED
    answer.check("character device")


def test_a_missing_payload_is_refused(world: Siege, tmp_path: Path) -> None:
    """Goal: a wrong data.path is said. Method: a folder that is not there, and a file where a folder is meant."""
    answer = world.submit_folder(tmp_path / "nowhere")
    assert answer.code in {REFUSED, FAILED}, answer.err
    answer.check("nowhere")
    (tmp_path / "file").write_bytes(b"x")
    answer = world.submit_folder(tmp_path / "file")
    assert answer.code in {REFUSED, FAILED}, answer.err
    answer.check("file")


@pytest.mark.parametrize("how", ["changes", "vanishes"])
def test_a_payload_that_moves_under_the_reader_is_refused(world: Siege, tmp_path: Path, how: str) -> None:
    """Goal: what is shipped is what was there. Method: a writer changes or removes a file all the while."""
    folder = tmp_path / "payload"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(os.urandom(4_000_000))
    moving, over = [folder / f"moving{number}" for number in range(20)], threading.Event()

    def move() -> None:
        for turn in itertools.count():
            for number, file in enumerate(moving):
                if how == "vanishes" and (number + turn) % 2:
                    file.unlink(missing_ok=True)
                else:
                    file.write_bytes(b"x" * (turn % 100))
            if over.is_set():
                return
            time.sleep(0.002)

    writer = threading.Thread(target=move)
    writer.start()
    try:
        answer = world.submit_folder(folder)
    finally:
        over.set()
        writer.join()
    assert answer.code == REFUSED, answer.err
    answer.check("changed while it was read")


# --------------------------------------------------------------------------- uploads made by hand


def agent_client(world: Siege) -> httpx.Client:
    """A certificate of the installation: the worst that a submitter can have."""
    context = keys.client_context(world.layout.tls(OPERATOR))
    address = world.plans["dwcp-agent-oslo"].mutual
    return httpx.Client(verify=context, base_url=f"https://{address}", timeout=30, trust_env=False)


LIE = Chunk(b"\1" * 32, 5)
MANIFESTS: dict[str, tuple[Entry, ...]] = {
    "dots": (Entry("../evil", Kind.FILE, 0o644),),
    "inner dots": (Entry("a", Kind.DIRECTORY, 0o755), Entry("a/../../evil", Kind.FILE, 0o644)),
    "absolute": (Entry("/etc/evil", Kind.FILE, 0o644),),
    "through a link": (
        Entry("a", Kind.SYMLINK, 0o777, target="/etc"),
        Entry("a/evil", Kind.FILE, 0o644),
    ),
    "a link outside": (Entry("a", Kind.SYMLINK, 0o777, target="../../etc/passwd"),),
    "setuid": (Entry("a", Kind.FILE, 0o4755),),
    "a device": (Entry("a", 7, 0o644),),
    "twice": (Entry("a", Kind.FILE, 0o644), Entry("a", Kind.FILE, 0o755)),
    "a NUL": (Entry("a\0b", Kind.FILE, 0o644),),
    "a size that lies": (Entry("a", Kind.FILE, 0o644, 10**12, (LIE,)),),
    "a short address": (Entry("a", Kind.FILE, 0o644, 5, (Chunk(b"x", 5),)),),
    "a negative size": (Entry("a", Kind.FILE, 0o644, -1),),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_malicious_manifests_are_refused(world: Siege, case: str) -> None:
    """Goal: the agent checks what the command line would have. Method: upload a manifest that breaks a rule."""
    encoded = manifests.encode(Manifest(manifests.VERSION, MANIFESTS[case]))
    body = intake._HEAD.pack(intake.MAGIC, intake.VERSION, len(encoded)) + encoded
    with agent_client(world) as client:
        answer = client.post("/v1/payloads?workload=w-aaaaaaaaaa", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["detail"]


def _huge_manifest() -> bytes:
    return intake._HEAD.pack(intake.MAGIC, intake.VERSION, 2**32 - 1) + b"x" * 1000


def _liar() -> bytes:
    manifest = Manifest(manifests.VERSION, (Entry("a", Kind.FILE, 0o644, 5, (LIE,)),))
    return intake.prelude(manifest, {LIE.address}) + b"\0" * 4096


UPLOADS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "junk": lambda: os.urandom(300_000),
    "another version": lambda: intake._HEAD.pack(intake.MAGIC, 9, 1) + b"x",
    "a huge manifest": _huge_manifest,
    "a junk manifest": lambda: intake._HEAD.pack(intake.MAGIC, intake.VERSION, 500) + os.urandom(600),
    "cut": lambda: _huge_manifest()[:6],
    "chunks that are not what they are called": _liar,
}


@pytest.mark.parametrize("case", UPLOADS)
def test_malicious_uploads_are_refused(world: Siege, case: str) -> None:
    """Goal: bytes from anybody are data. Method: uploads that are cut, huge, junk, or lie."""
    with agent_client(world) as client:
        answer = client.post("/v1/payloads?workload=w-aaaaaaaaaa", content=UPLOADS[case]())
    assert answer.status_code in {400, 413}, answer.text
    assert answer.json()["error"]["detail"]


@pytest.mark.parametrize("owner", ["../../evil", "a/b", "", "x" * 5000, "a\nb"])
def test_an_upload_for_a_strange_owner_is_refused(world: Siege, owner: str) -> None:
    """Goal: a name never becomes a path. Method: an empty payload for a workload whose name is one."""
    body = intake.prelude(Manifest(manifests.VERSION, ()), set())
    with agent_client(world) as client:
        answer = client.post("/v1/payloads", params={"workload": owner}, content=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert not list(world.layout.root.rglob("evil"))


def test_a_job_still_runs(world: Siege) -> None:
    """Goal: all that cost nothing. Method: after it, an ordinary job on the same platform."""
    world.run_job()


# --------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        (("watch", "../../etc"), {2, 4}),
        (("watch", "\udcff"), {4, 64}),
        (("token", "create", "a\nb"), {2, 4, 64}),
        (("output", "w-aaaaaaaaaa", "OUT"), {2, 4}),
        (("cancel", "w-aaaaaaaaaa"), {2, 4}),
        (("workloads", "w-aaaaaaaaaa"), {2, 4}),
        (("drain", "atlantis"), {2, 4}),
        (("logs", "nobody"), {2, 3, 4}),
        (("token", "revoke", "nobody"), {2, 4}),
        (("ledger", "txn", "missing.json"), {2, 4, 64}),
        (("receipt", "get", "w-aaaaaaaaaa"), {1, 2, 4}),
        (("sumbit",), {64}),
        (("submit",), {64}),
        (("up", "--lease", "soon"), {2, 4, 64}),
        (("up", "--net", "10.0"), {2, 4, 64}),
    ],
)
def test_bad_arguments_get_a_sentence(
    world: Siege, tmp_path: Path, arguments: tuple[str, ...], codes: set[int]
) -> None:
    """Goal: no command answers with a stack. Method: wrong names, wrong words, wrong values."""
    words = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    answer = world.dwcp(*words)
    assert answer.code in codes, (answer.code, answer.err)
    answer.check()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"version": 1}', b"[" * 100_000, b"null"])
def test_junk_receipts_and_genesis_get_a_sentence(world: Siege, tmp_path: Path, content: bytes) -> None:
    """Goal: the verifier takes files from anybody. Method: junk as receipt, then junk as genesis."""
    junk = tmp_path / "junk.json"
    junk.write_bytes(content)
    for genesis in (world.layout.genesis, junk):
        answer = world.dwcp("receipt", "verify", str(junk), "--genesis", str(genesis))
        assert answer.code in {FAILED, REFUSED}, answer.err
        assert len((answer.err or answer.out).strip().splitlines()) == 1, answer.err
