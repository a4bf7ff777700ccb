"""etcd as the peer of a benchmark: three members with TLS everywhere, and its two ways in.

Certificates are ECDSA P-256, which both Go and gRPC's BoringSSL take; what etcd
does by default (fsync included) stays as it is. Message encodings are etcd's
published protocol buffers, written by hand because a put needs three fields.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import json
import shutil
import ssl
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from servers import Servers

Put = Callable[[bytes, bytes], Awaitable[None]]
MEMBERS = 3
CLIENT_PORT, PEER_PORT = 2379, 2380
SPARE_CONNECTIONS = 1  # a second one to the leader, so that every system's clients hold the same number


def available() -> bool:
    return shutil.which("etcd") is not None


def version() -> str:
    done = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


class EtcdCluster:
    """Three members on addresses of their own."""

    def __init__(self, folder: Path, net: str) -> None:
        self.folder = folder
        self.hosts = [f"{net}.4.{number + 1}" for number in range(MEMBERS)]
        self.tls = make_certificates(folder / "tls", self.hosts)

    def start(self, servers: Servers) -> None:
        cluster = ",".join(f"m{number}=https://{host}:{PEER_PORT}" for number, host in enumerate(self.hosts))
        tls = self.tls
        for number, host in enumerate(self.hosts):
            client, peer = f"https://{host}:{CLIENT_PORT}", f"https://{host}:{PEER_PORT}"
            command = ["etcd", "--name", f"m{number}", "--data-dir", str(self.folder / f"m{number}")]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", cluster, "--initial-cluster-state", "new"]
            command += ["--client-cert-auth", "--trusted-ca-file", tls["authority"]]
            command += ["--cert-file", tls["certificate"], "--key-file", tls["key"]]
            command += ["--peer-client-cert-auth", "--peer-trusted-ca-file", tls["authority"]]
            command += ["--peer-cert-file", tls["certificate"], "--peer-key-file", tls["key"]]
            servers.start(
                f"etcd-{number}",
                [*command, "--logger", "zap", "--log-level", "warn"],
                {"PATH": "/usr/bin:/bin"},
            )

    def wait_ready(self, servers: Servers, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            servers.check()
            try:
                self.leader()
                return
            except (OSError, KeyError, StopIteration):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def leader(self) -> int:
        """Which member leads; raises `StopIteration` while none does."""
        answers = [self._call(host, "maintenance/status", {}) for host in self.hosts]
        return next(
            number
            for number, answer in enumerate(answers)
            if answer["header"]["member_id"] == answer.get("leader")
        )

    def revision(self) -> int:
        found = self._call(self.hosts[0], "kv/range", {"key": base64.b64encode(b"x").decode()})
        return int(found["header"]["revision"])

    def spec(self, driver: str) -> dict[str, Any]:
        return {"driver": driver, "hosts": self.hosts, "leader": self.leader(), "tls": self.tls}

    def _call(self, host: str, path: str, body: dict[str, Any]) -> Any:
        url = f"https://{host}:{CLIENT_PORT}/v3/{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, context=client_context(self.tls), timeout=3) as answer:
            return json.load(answer)


# --------------------------------------------------------------------------- clients


@asynccontextmanager
async def connect_clients(spec: dict[str, Any]) -> AsyncIterator[tuple[list[Put], int]]:
    """One `put` for each client, over connections of its own; and how many connections there are."""
    connect = _connect_grpc if spec["driver"] == "grpc" else _connect_json
    leader = spec["hosts"][spec["leader"]]
    async with AsyncExitStack() as stack:
        puts = []
        count = 0
        for _ in range(spec["clients"]):
            others = [host for host in spec["hosts"] if host != leader] + [leader] * SPARE_CONNECTIONS
            for host in others:
                await stack.enter_async_context(connect(host, spec["tls"]))
            puts.append(await stack.enter_async_context(connect(leader, spec["tls"])))
            count += 1 + len(others)
        yield puts, count


@asynccontextmanager
async def _connect_grpc(host: str, tls: dict[str, str]) -> AsyncIterator[Put]:
    import grpc  # only where this way in is measured

    credentials = grpc.ssl_channel_credentials(
        *map(_read, (tls["authority"], tls["key"], tls["certificate"]))
    )
    options = (("grpc.use_local_subchannel_pool", 1),)  # a connection for each client, not one for all
    async with grpc.aio.secure_channel(f"{host}:{CLIENT_PORT}", credentials, options=options) as channel:
        await channel.channel_ready()
        call = channel.unary_unary("/etcdserverpb.KV/Put")

        async def put(key: bytes, value: bytes) -> None:
            await call(_field(1, key) + _field(2, value))

        yield put


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    size, prefix = len(value), bytearray([number << 3 | 2])
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + value


class _Gateway(asyncio.Protocol):
    """One HTTP/1.1 connection to the JSON gateway, one request at a time; as lean as can be."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] | None = None
        self.transport: asyncio.Transport
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._data += data
        head = self._data.find(b"\r\n\r\n")
        if head < 0:
            return
        length = self._data.lower().find(b"content-length: ", 0, head)
        end = self._data.find(b"\r\n", length)
        if length < 0:
            self.connection_lost(ValueError(f"no content length: {self._data[:head]!r}"))
            return
        size = int(self._data[length + 16 : end])
        if len(self._data) >= head + 4 + size and self.answer is not None:
            self.answer.set_result(self._data)
            self._data = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(exc or ConnectionResetError("etcd closed the connection"))


@asynccontextmanager
async def _connect_json(host: str, tls: dict[str, str]) -> AsyncIterator[Put]:
    loop = asyncio.get_running_loop()
    transport, gateway = await loop.create_connection(
        _Gateway, host, CLIENT_PORT, ssl=client_context(tls), server_hostname=host
    )
    encode = base64.b64encode
    head = b"POST /v3/kv/put HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n" % host.encode()

    async def put(key: bytes, value: bytes) -> None:
        body = b'{"key":"%s","value":"%s"}' % (encode(key), encode(value))
        gateway.answer = loop.create_future()
        transport.write(b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body))
        answer = await gateway.answer
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode(errors="replace"))

    try:
        yield put
    finally:
        transport.close()


# --------------------------------------------------------------------------- certificates


def client_context(tls: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls["authority"])
    context.load_cert_chain(tls["certificate"], tls["key"])
    return context


def make_certificates(folder: Path, hosts: list[str]) -> dict[str, str]:
    """An authority, and one certificate for members and clients alike; paths of the files."""
    folder.mkdir(parents=True)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench authority")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    # Members dial each other from 127.0.0.1, and etcd checks the caller's address too.
    addresses = [x509.IPAddress(ipaddress.ip_address(host)) for host in (*hosts, "127.0.0.1")]
    authority = (
        _certificate(authority_name, authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    own = (
        _certificate(name, authority_name, key)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    files = {"authority": folder / "ca.crt", "certificate": folder / "tls.crt", "key": folder / "tls.key"}
    files["authority"].write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    files["certificate"].write_bytes(own.public_bytes(serialization.Encoding.PEM))
    files["key"].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return {name: str(path) for name, path in files.items()}


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)  # noqa: TID251  a certificate of an hour, outside the product
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
    )
