"""Strangers at every port of a running platform: no token, wrong token, junk, silence, floods.

Routes are read from what the services themselves publish, so that a new route cannot be forgotten.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest
from tests.acceptance.sieges import Siege, siege

from dwcp.runtime import keys
from dwcp.runtime.config import Address
from dwcp.runtime.world import OPERATOR

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]
CHANGING = ("POST", "PUT", "PATCH", "DELETE")
# A POST here computes an answer from its body and changes nothing.
QUESTIONS = ("predict", "batch", "explain", "simulate")
PURE = {("compression-api", f"/api/v1/compression/{question}") for question in QUESTIONS}
EXTENDER = (
    "/extender/filter",
    "/extender/prioritize",
)  # kube-scheduler reads a refusal in the answer's `Error`
PURE |= {("maddpg-allocator", path) for path in ("/v1/simulate", "/v1/whatif", *EXTENDER)}
DATA = {("compression-api", "/api/v1/stream/compress")}  # any bytes are good bytes here
GROWTH_BYTES_MAX = 64 << 20
CONNECTIONS = 40
CENTRAL = ("dwcp-manager", "compression-api", "maddpg-allocator", "dwcp-monitoring")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    """One platform for the group."""
    with siege(tmp_path_factory.mktemp("callers")) as subject:
        yield subject


def addresses(world: Siege) -> list[Address]:
    return [address for plan in world.plans.values() for address in plan.listens]


def routes(world: Siege) -> dict[str, list[str]]:
    """Service → the paths of its app, by its own description over plain HTTP or mutual TLS."""
    found = {}
    context = keys.client_context(world.layout.tls(OPERATOR))
    with httpx.Client(verify=context, trust_env=False, timeout=10) as client:
        for name, plan in world.plans.items():
            where = f"http://{plan.plain}" if plan.plain else f"https://{plan.mutual}"
            found[name] = sorted(client.get(f"{where}/openapi.json").json()["paths"])
    return found


def test_every_service_publishes_its_routes(world: Siege) -> None:
    """Goal: the next tests see every route. Method: known ones are in what the services say."""
    found = routes(world)
    assert "/api/v1/workloads/{identity}/cancel" in found["dwcp-manager"]
    assert "/v1/place" in found["maddpg-allocator"]
    assert {path for name, path in PURE if name == "compression-api"} <= set(found["compression-api"])
    assert {"/api/v1/stream/compress", "/api/v1/models/deploy"} <= set(found["compression-api"])
    assert "/v1/payloads" in found["dwcp-agent-oslo"]
    assert all("/health" in paths for paths in found.values())


@pytest.mark.parametrize("who", ["nobody", "a wrong token", "a viewer", "another scheme", "a revoked token"])
def test_no_state_changes_without_an_operators_token(world: Siege, who: str) -> None:
    """Goal: nothing changes for somebody unauthenticated. Method: every changing method on every route."""
    headers, expected = credentials(world, who)
    asked = 0
    with httpx.Client(trust_env=False, timeout=10, headers=headers) as client:
        for name, paths in routes(world).items():
            plain = world.plans[name].plain
            for path in paths if plain else ():
                for method in CHANGING:
                    if (name, path) in PURE and method == "POST":
                        continue
                    where = f"http://{plain}{path.replace('{', '').replace('}', '')}"
                    answer = client.request(method, where, content=b"{}")
                    assert answer.status_code == expected, f"{who}: {method} {where}: {answer.status_code}"
                    assert answer.json()["error"]["detail"]
                    asked += 1
    assert asked > 50


def credentials(world: Siege, who: str) -> tuple[dict[str, str], int]:
    """The headers of such a caller, and the answer that it gets."""
    if who == "nobody":
        return {}, 401
    if who == "a wrong token":
        return {"Authorization": "Bearer " + "x" * 43}, 401
    if who == "another scheme":
        return {"Authorization": "Basic b3BlcmF0b3I6eA=="}, 401
    name = f"{who.replace(' ', '-')}-{time.monotonic_ns()}"
    role = "viewer" if who == "a viewer" else "operator"
    made = world.dwcp("token", "create", name, "--role", role)
    assert made.code == 0, made.err
    if who == "a viewer":
        return {"Authorization": f"Bearer {made.out.strip()}"}, 403
    assert world.dwcp("token", "revoke", name).code == 0
    return {"Authorization": f"Bearer {made.out.strip()}"}, 401


def test_a_damaged_token_file_lets_nobody_in(world: Siege) -> None:
    """Goal: a broken book knows nobody, and says no more. Method: junk in it, the operator's own token."""
    token = world.layout.operator_token.read_text().strip()
    text = world.layout.tokens.read_bytes()
    world.layout.tokens.write_bytes(b"[junk")
    try:
        for name in CENTRAL:
            where = f"http://{world.plans[name].plain}/v1/place"
            answer = httpx.post(where, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
            assert answer.status_code == 401, f"{name}: {answer.status_code} {answer.text}"
    finally:
        world.layout.tokens.write_bytes(text)


def test_mutual_tls_ports_refuse_strangers(world: Siege) -> None:
    """Goal: no certificate, no answer. Method: TLS without a certificate on every port that asks for one."""
    for plan in world.plans.values():
        for address in (plan.mutual, *plan.others):
            if address is not None:
                assert answer_without_certificate(address) == b"", str(address)


def answer_without_certificate(address: Address) -> bytes:
    """What such a caller is told; nothing, where it is cut off."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with dial(address) as raw, context.wrap_socket(raw, server_hostname=address.host) as wrapped:
            wrapped.settimeout(8)
            wrapped.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            return wrapped.recv(100)
    except OSError:
        return b""


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/workloads/..%2f..%2f..%2fetc%2fpasswd",
        "/api/v1/workloads/%00/receipts",
        "/api/v1/workloads/..%2f..%2fkeys/receipts",
        "/api/v1/workloads/" + "x" * 9000,
        "/api/v1/events?after=-1",
        "/api/v1/events?after=NaN&wait_s=inf",
        "/api/v1/events?wait_s=1e308",
        "/api/v1/events?after=99999999999999999999999999",
        "/%ff%fe",
    ],
)
def test_strange_paths_are_answered_without_a_fault(world: Siege, path: str) -> None:
    """Goal: a name is never a file and never a fault. Method: traversal, NUL, length, odd numbers."""
    answer = httpx.get(f"http://{world.plans['dwcp-manager'].plain}{path}", timeout=10, trust_env=False)
    assert answer.status_code in {200, 400, 404, 414, 422}, answer.text
    assert "root:" not in answer.text


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "junk": b"\xff\x00\xfe" * 50,
    "deep": b"[" * 200_000,
    "null": b"null",
    "a list": b"[]",
    "surrogates": b'{"id": "\\ud800", "job": {"name": "\\ud800"}}',
    "a huge number": b'{"after": 1' + b"0" * 5000 + b"}",
    "oversized": b'{"id": "' + b"x" * 3_000_000 + b'"}',
}


@pytest.mark.parametrize("case", BODIES)
def test_bad_bodies_from_an_operator_are_refused(world: Siege, case: str) -> None:
    """Goal: rights are no licence to break things. Method: junk bodies on every changing route."""
    token = world.layout.operator_token.read_text().strip()
    with httpx.Client(
        trust_env=False, timeout=20, headers={"Authorization": f"Bearer {token}"}, follow_redirects=False
    ) as client:
        for name in CENTRAL:
            plain = world.plans[name].plain
            for path in routes(world)[name]:
                answer = client.post(
                    f"http://{plain}{path.replace('{', '').replace('}', '')}", content=BODIES[case]
                )
                resets = case == "nothing" and "breaker" in path  # every breaker, as asked
                plans = case == "nothing" and path.endswith("rebalance:plan")  # asks, as nothing need be said
                refused = path in EXTENDER and "is no ExtenderArgs" in answer.text
                harmless = resets or plans or refused or (name, path) in DATA
                assert answer.status_code < 500, f"{name} {path}: {answer.status_code} {answer.text}"
                assert answer.status_code >= 400 or harmless, f"{name} {path}: {answer.text}"


# --------------------------------------------------------------------------- raw connections


def dial(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port), 5)


def dial_tls(world: Siege, address: Address) -> ssl.SSLSocket:
    """With a good certificate: an insider that sends junk."""
    context = keys.client_context(world.layout.tls(OPERATOR))
    return context.wrap_socket(dial(address), server_hostname=address.host)


JUNK: dict[str, Callable[[], bytes]] = {
    "random": lambda: os.urandom(65_536),
    "zeros": lambda: b"\0" * 65_536,
    "a frame of 4 GiB": lambda: struct.pack(">I", 2**32 - 1) + b"x" * 65_536,
    "many empty frames": lambda: struct.pack(">I", 0) * 16_384,
    "small junk frames": lambda: b"".join(struct.pack(">I", 64) + os.urandom(64) for _ in range(500)),
    "an endless head": lambda: b"GET / HTTP/1.1\r\n" + b"X-A: " + b"a" * 200_000,
    "many heads": lambda: b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000,
    "a body of 10 EB": lambda: b"POST /v1/place HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n{}",
    "chunks without end": lambda: (
        b"POST /v1/place HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + b"x" * 1000
    ),
    "a TLS hello and junk": lambda: b"\x16\x03\x01\x40\x00" + os.urandom(16_384),
}


def pour(connection: socket.socket, data: bytes) -> None:
    """Send as much as it takes, read a little, close; being cut off is the answer that is hoped for."""
    with contextlib.suppress(OSError), connection:
        connection.settimeout(3)
        connection.sendall(data)
        connection.settimeout(0.2)
        connection.recv(4096)


def resident_bytes(world: Siege) -> dict[str, int]:
    return {name: psutil.Process(pid).memory_info().rss for name, pid in world.pids().items()}


def check_unharmed(world: Siege, before: dict[str, int]) -> None:
    """All ready, none larger than before by more than the bound."""
    world.wait_ready(seconds=40)
    for name, size in resident_bytes(world).items():
        assert size - before[name] < GROWTH_BYTES_MAX, f"{name} grew by {(size - before[name]) >> 20} MiB"


# One of each port's own kind at every push; the rest in `make accept`.
SMOKE = {"random", "a frame of 4 GiB", "an endless head"}
FULL = [pytest.param(case, marks=[] if case in SMOKE else [pytest.mark.accept]) for case in JUNK]


@pytest.mark.parametrize("case", FULL)
def test_junk_on_every_port_costs_nothing(world: Siege, case: str) -> None:
    """Goal: bytes from anybody are refused. Method: pour them into every port, raw and inside good TLS."""
    before = resident_bytes(world)
    for plan in world.plans.values():
        for address in plan.listens:
            pour(dial(address), JUNK[case]())
            if address != plan.plain:
                with contextlib.suppress(OSError):
                    pour(dial_tls(world, address), JUNK[case]())
    check_unharmed(world, before)


def test_half_open_and_slow_callers_do_not_keep_others_out(world: Siege) -> None:
    """Goal: silence costs little. Method: dozens of silent and dripping connections on every port, then a job."""
    before = resident_bytes(world)
    with contextlib.ExitStack() as held:
        dripping = []
        for address in addresses(world):
            for number in range(CONNECTIONS):
                connection = held.enter_context(dial(address))
                if number % 2:
                    dripping.append(connection)
        for letter in b"GET / HT":
            for connection in dripping:
                with contextlib.suppress(OSError):
                    connection.send(bytes([letter]))
            time.sleep(0.1)
        check_unharmed(world, before)
        world.run_job()
    check_unharmed(world, before)


def test_callers_that_finish_nothing_are_cut_off(world: Siege) -> None:
    """Goal: a connection without a request ends. Method: half a head on each plain port; wait for the end."""
    with contextlib.ExitStack() as held:
        waiting = []
        for plan in world.plans.values():
            for address in plan.listens:
                connection = held.enter_context(dial(address))
                connection.sendall(b"GET / HTTP/1.1\r\nHost:")
                waiting.append((address, connection))
        for address, connection in waiting:
            connection.settimeout(20)
            try:
                while connection.recv(4096):
                    continue
            except TimeoutError:
                pytest.fail(f"{address} keeps a caller that finishes nothing")
            except OSError:
                continue


def test_a_job_still_runs(world: Siege) -> None:
    """Goal: all that cost nothing. Method: after it, an ordinary job, with receipts."""
    workload = world.run_job()
    assert world.running.json("receipt", "get", workload)["receipts"]
