"""How many signed, durable, Byzantine fault tolerant puts a second, beside etcd's crash tolerant ones?

Both systems on this machine, TLS everywhere, every write synced, driven by the same
closed loop of clients in one process. Runs alternate (ledger, etcd, ledger, …); the
figures are medians. CPU is that of all servers, clients apart. Needs `etcd` on PATH;
without it the comparison is unknown and the exit code 3.

    python benchmarks/bench_ledger.py --engine probft --nodes 4 --clients 64 --seconds 8 --pairs 5 \
        --value-bytes 100 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import etcd
from dwcp import __version__
from dwcp.api import kv
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.ledger import genesis as genesis_file
from dwcp.runtime import installation, keys
from dwcp.runtime.client import LedgerClient
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.layout import Layout
from dwcp.runtime.world import PEER_PORT, default_world
from servers import Servers

HERE = Path(__file__).resolve().parent
TRIAL_SECONDS = 2.0  # for choosing the faster way into etcd
SYNCS = 200
EXIT_UNKNOWN = 3


class LedgerCluster:
    """The product's own replicas, as `dwcp init` makes them, with production defaults."""

    def __init__(self, folder: Path, net: str, nodes: int, clients: int) -> None:
        self.layout = Layout(folder / "state")
        world = default_world(net=net, replicas=nodes)
        installation.create(self.layout, world, now_ms=SystemClock().now_ms())
        self.plans = installation.write_configs(self.layout, world)[:nodes]
        self.genesis = genesis_file.load(self.layout.genesis)
        self.seeds = [secrets.token_hex(32) for _ in range(clients)]

    def start(self, servers: Servers) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        for plan in self.plans:
            config = str(self.layout.config(plan.name))
            servers.start(plan.name, [sys.executable, "-m", plan.module, "--config", config], environment)

    def wait_ready(self, servers: Servers, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        for replica in self.genesis.replicas:
            while True:
                servers.check()
                try:
                    with urllib.request.urlopen(
                        f"http://{replica.host}:{replica.http_port}/ready", timeout=2
                    ):
                        break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)

    async def grant(self) -> None:
        """Make the benchmark's clients known, as an operator would."""
        operator = keys.load_sign_key(self.layout.sign_key("operator"))
        tls = self.layout.tls("operator")
        async with await LedgerClient.open(
            genesis=self.genesis, key=operator, tls=tls, session_path=None
        ) as client:
            for number, seed in enumerate(self.seeds):
                public = SigningKey.from_seed(bytes.fromhex(seed)).public
                await client.submit(kv.Grant(public, f"bench-{number}", (b"bench/",), (b"bench/",)))

    def spec(self) -> dict[str, Any]:
        tls = self.layout.tls("operator")
        files = {name: str(getattr(tls, name)) for name in ("certificate", "key", "authority")}
        return {"genesis": str(self.layout.genesis), "tls": files, "seeds": self.seeds}


def run_load(spec: dict[str, Any], servers: Servers, folder: Path) -> dict[str, float]:
    """One measured run; adds the servers' CPU and the rate."""
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(HERE / "load.py"), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        if load.stdout.readline() != "ready\n":
            raise RuntimeError("the load process failed; its message is above")
        before = servers.cpu_seconds()
        load.stdin.write("go\n")
        load.stdin.flush()
        answer = load.stdout.readline()
        cpu_s = servers.cpu_seconds() - before
    found: dict[str, float] = json.loads(answer)
    servers.check()
    found["ops_per_s"] = found["operations"] / found["elapsed_s"]
    found["cpu_us_per_op"] = cpu_s * 1e6 / found["operations"]
    return found


def fsync_p50_ms(folder: Path) -> float:
    """Median of appending 4 KiB and syncing it, in the directory that both systems write to."""
    path = folder / "sync"
    times = []
    with path.open("ab", buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(4096))
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    path.unlink()
    return statistics.median(times) * 1e3


class Comparison:
    """Alternating runs of both systems; `etcd` may be absent."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._runs = 0
        self.ledger_runs: list[dict[str, float]] = []
        self.etcd_runs: list[dict[str, float]] = []
        self.driver = ""

    def run(self) -> None:
        options, folder = self._options, self._folder
        with Servers(folder / "logs") as ours, Servers(folder / "logs") as theirs:
            ledger = LedgerCluster(folder, options.net, options.nodes, options.clients)
            ledger.start(ours)
            ledger.wait_ready(ours)
            asyncio.run(ledger.grant())
            peer = etcd.EtcdCluster(folder / "etcd", options.net) if etcd.available() else None
            if peer is not None:
                peer.start(theirs)
                peer.wait_ready(theirs)
                self.driver = self._faster_driver(peer, theirs)
            for pair in range(options.pairs):
                self.ledger_runs.append(self._measure("ledger", ledger.spec(), ours))
                say(f"pair {pair + 1}: ledger {line(self.ledger_runs[-1])}")
                if peer is not None:
                    self.etcd_runs.append(self._measure("etcd", peer.spec(self.driver), theirs))
                    say(f"pair {pair + 1}: etcd   {line(self.etcd_runs[-1])}")

    def _faster_driver(self, peer: etcd.EtcdCluster, servers: Servers) -> str:
        rates = {}
        for driver in ("json", "grpc"):
            try:
                found = self._measure("etcd", peer.spec(driver), servers, seconds=TRIAL_SECONDS)
            except (RuntimeError, ValueError) as exc:
                say(f"etcd by {driver}: not usable: {exc}")
                continue
            rates[driver] = found["ops_per_s"]
            say(f"etcd by {driver}: {line(found)}")
        return max(rates, key=lambda driver: rates[driver])

    def _measure(
        self, system: str, spec: dict[str, Any], servers: Servers, *, seconds: float = 0
    ) -> dict[str, float]:
        self._runs += 1
        options = self._options
        common = {
            "system": system,
            "run": self._runs,
            "clients": options.clients,
            "seconds": seconds or options.seconds,
            "value_bytes": options.value_bytes,
        }
        return run_load({**spec, **common}, servers, self._folder)


def result(comparison: Comparison, fsync_ms: float) -> dict[str, Any]:
    """The figures; those that need etcd are None where it could not run."""

    def median(runs: list[dict[str, float]], name: str) -> float | None:
        return round(statistics.median(run[name] for run in runs), 3) if runs else None

    def ratio(name: str) -> float | None:
        pairs = list(zip(comparison.ledger_runs, comparison.etcd_runs, strict=False))
        return round(statistics.median(a[name] / b[name] for a, b in pairs), 3) if pairs else None

    ours, theirs = comparison.ledger_runs, comparison.etcd_runs
    return {
        "fsync": True,
        "fsync_p50_ms": round(fsync_ms, 3),
        "ops_per_s": median(ours, "ops_per_s"),
        "p50_ms": median(ours, "p50_ms"),
        "p99_ms": median(ours, "p99_ms"),
        "cpu_us_per_op": median(ours, "cpu_us_per_op"),
        "etcd_ops_per_s": median(theirs, "ops_per_s"),
        "etcd_p50_ms": median(theirs, "p50_ms"),
        "etcd_cpu_us_per_op": median(theirs, "cpu_us_per_op"),
        "ratio": ratio("ops_per_s"),
        "cpu_ratio": ratio("cpu_us_per_op"),
    }


def free_net() -> str:
    """A /16 of 127 where nobody listens as a replica or as etcd."""
    for step in range(200):
        net = f"127.{20 + (os.getpid() + step) % 200}"
        try:
            for address in ((f"{net}.1.1", PEER_PORT), (f"{net}.4.1", etcd.CLIENT_PORT)):
                with socket.socket() as probe:
                    probe.bind(address)
        except OSError:
            continue
        return net
    raise SystemExit("every loopback network is in use: stop something, or name one with --net")


def line(run: dict[str, float]) -> str:
    return (
        f"{run['ops_per_s']:.0f} op/s, p50 {run['p50_ms']:.1f} ms, p99 {run['p99_ms']:.1f} ms, "
        f"{run['cpu_us_per_op']:.0f} µs CPU/op, clients {run['client_cpu_s']:.1f} s CPU, "
        f"{run['connections']:.0f} connections"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engine", choices=["probft"], default="probft")
    parser.add_argument("--nodes", type=int, choices=[4, 7], default=4)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--net", default=free_net(), help="loopback network to use")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where both systems keep data")
    parser.add_argument("--keep", action="store_true", help="leave data and logs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    folder = Path(tempfile.mkdtemp(prefix="dwcp-bench-", dir=options.dir))
    try:
        fsync_ms = fsync_p50_ms(folder)
        peer = etcd.version() if etcd.available() else "etcd is not on PATH"
        say(
            f"dwcp {__version__}, Python {platform.python_version()}; {peer}; {os.cpu_count()} cores; {folder}"
        )
        comparison = Comparison(options, folder)
        comparison.run()
        found = result(comparison, fsync_ms)
        say(f"etcd was driven by {comparison.driver or 'nothing'}")
    finally:
        if options.keep:
            say(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:20} {value}")
    if not comparison.etcd_runs:
        say("the comparison is unknown: install etcd (Debian: etcd-server) and run again")
        return EXIT_UNKNOWN
    return 0


if __name__ == "__main__":
    sys.exit(main())
