"""How long until a folder is at another site, beside rsync and zstd, on links from 1 Mbit/s to 3 Gbit/s?

Two namespaces, `tc tbf` for the rate, a relay in user space for the delay, the same for every system;
needs root, rsync, zstd and tar. The folder is a fixed mix (`mixes.py`), sized so that a run takes about
--seconds. Cases: "cold", nothing is there; "warm", nine tenths of the bytes are there; "edits", everything
is there but 4 KiB in every MiB. The pipes know nothing of their target, so they run cold only.
Ours counts from reading the first file until everything is verified and durable at the receiver, over
mutual TLS; rsync (daemon, -a -z) and the pipes (tar | zstd | tar) run in the clear and sync nothing.

The oracle is priced: 1 MiB segments of the mix, packed by each of the printed codecs, the best of 2
timings; its saving is what choosing the best for each segment saves over zstd-3 by the model
max(pack, send, unpack). With its defaults the run takes about 40 minutes on two idle cores; with --cache
it goes on where it was interrupted. Exit code 3 and one sentence where the bench cannot run.
"""

from __future__ import annotations

import argparse
import bz2
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import brotli
import lz4.block
import zstandard

import links
import mixes
from dwcp.compression.codecs import CODECS
from dwcp.runtime.authority import create_authority, issue
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.trees import capture
from links import FAR, Link

ROOT = Path(__file__).resolve().parent.parent
PARTY = str(Path(__file__).with_name("transfer_party.py"))
BASIS = ("seed", "repeats", "delay_ms", "seconds", "cases", "raw_max_mib", "codec", "segments")
RATES_MBPS = (1, 3, 10, 100, 1000, 3000)
CASES = ("cold", "warm", "edits")
PIPES = {"zstd-adapt": "zstd --adapt -q", "zstd-3": "zstd -3 -q"}
RAW_PER_WIRE = 2.6  # what the mix packs to, about
WARM_FACTOR = 4  # warm cases move little of what they compare
AGENT, RSYNC, PIPE = 7070, 7071, 7072
RELAYED = 100  # a relay listens on the port plus this


@dataclass
class Stage:
    """The folders of one link size."""

    scratch: Path
    before: Path  # what the target has in warm cases
    sources: dict[str, Path]
    raw_bytes: dict[str, int]


@dataclass
class Runs:
    """Seconds by (case, system), and what went over the link."""

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    carried: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def median(self, case: str, system: str) -> float | None:
        found = self.seconds.get((case, system))
        return statistics.median(found) if found else None


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no namespace and no folder behind
    arguments = parse()
    problem = links.reason() or missing_program()
    if problem:
        print(problem, file=sys.stderr)
        print(json.dumps({"verdict": "unknown", "reason": problem}))
        return 3
    try:
        with tempfile.TemporaryDirectory(prefix="dwcp-transfer-", dir=arguments.scratch) as folder:
            report = measure(Path(folder), arguments)
    except KeyboardInterrupt:
        print("interrupted; with --cache FILE the same command goes on", file=sys.stderr)
        return 75
    print(json.dumps(report) if arguments.json else json.dumps(report, indent=2))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--cache",
        type=Path,
        help="a file of finished links, one line of JSON each, and the report at its end: an interrupted run\n"
        "goes on after them; lines of other parameters or another commit are measured again",
    )
    parser.add_argument("--json", action="store_true", help="one line")
    parser.add_argument("--links", default=",".join(map(str, RATES_MBPS)), help="Mbit/s, with commas")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seconds", type=float, default=20, help="about how long a cold run takes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=10, help="one way")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--raw-max-mib", type=int, default=1536, help="no mix is larger (memory, CPU-bound links)"
    )
    parser.add_argument(
        "--scratch", type=Path, default=Path("/dev/shm"), help="a file system in memory is no bottleneck"
    )
    parser.add_argument("--codec", default="auto", help="ours with one codec only, to look for causes")
    parser.add_argument("--segments", type=int, default=24, help="of the mix, for the oracle")
    return parser.parse_args()


def missing_program() -> str:
    for program in ("rsync", "zstd", "tar", "bash"):
        if shutil.which(program) is None:
            return f"this comparison needs {program}: apt-get install {program}"
    return ""


def measure(scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Link by link; those that the cache has are not measured again."""
    basis = basis_of(arguments)
    finished = cached(arguments.cache, basis)
    per_link = []
    for rate in map(float, arguments.links.split(",")):
        row = finished.get(rate)
        if row is None:
            began = time.monotonic()
            row = measure_link(scratch, rate, arguments)
            row["took_s"] = round(time.monotonic() - began, 1)
            append(arguments.cache, {"basis": basis, "link": row})
            print(f"{rate:g} Mbit/s: {json.dumps(row)}", file=sys.stderr)
        per_link.append(row)
    saved = [row["saving"] for row in per_link if row["saving"] is not None]
    possible = [row["oracle_saving"] for row in per_link if row["saving"] is not None]
    report = {
        "worst_ratio_to_rsync": worst(row["ratio_to_rsync"] for row in per_link),
        "worst_ratio_to_zstd_adapt": worst([row["ratio_to_zstd_adapt"]] for row in per_link),
        "oracle_saving_share": round(sum(saved) / sum(possible), 3) if sum(possible) > 0 else None,
        "per_link": per_link,
        **basis,
    }
    append(arguments.cache, report)
    return report


def basis_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a figure depends on beside the link."""
    return {
        "codecs": sorted(PRICED),
        **{name: getattr(arguments, name) for name in BASIS},
        "versions": versions(),
    }


def cached(path: Path | None, basis: dict[str, Any]) -> dict[float, dict[str, Any]]:
    """The finished links of this basis, by rate. A line that was cut in mid-write counts as not there."""
    if path is None or not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry.get("basis") == basis:
            found[entry["link"]["mbps"]] = entry["link"]
    return found


def append(path: Path | None, line: dict[str, Any]) -> None:
    if path is not None:
        cut = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("a") as file:
            file.write(("\n" if cut else "") + json.dumps(line) + "\n")


def worst(found: Iterator[Any]) -> float | None:
    values = [value for row in found for value in (row.values() if isinstance(row, dict) else row)]
    known = [value for value in values if value is not None]
    return max(known) if known else None


def versions() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    first = {
        name: subprocess.run([name, "--version"], capture_output=True, text=True).stdout
        for name in ("rsync", "zstd")
    }
    return {"commit": commit.stdout.strip(), **{name: text.splitlines()[0] for name, text in first.items()}}


def measure_link(scratch: Path, rate: float, arguments: argparse.Namespace) -> dict[str, Any]:
    folder = scratch / f"link-{rate:g}"
    cases = arguments.cases.split(",")
    size = int(min(rate * 1e6 / 8 * arguments.seconds * RAW_PER_WIRE, arguments.raw_max_mib << 20))
    stage = prepare(folder, size, cases, arguments)
    runs = Runs()
    try:
        with Link(rate) as link:
            party = Party(link, stage, arguments)
            for _ in range(arguments.repeats):
                for case in cases:
                    systems = ["ours", "rsync", *(PIPES if case == "cold" else ())]
                    for system in systems:
                        party.run(case, system, runs)
        return row_of(rate, stage, runs, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def row_of(rate: float, stage: Stage, runs: Runs, arguments: argparse.Namespace) -> dict[str, Any]:
    def ratio(case: str, system: str) -> float | None:
        ours, theirs = runs.median(case, "ours"), runs.median(case, system)
        return round(ours / theirs, 3) if ours and theirs else None

    ours, plain = runs.median("cold", "ours"), runs.median("cold", "zstd-3")
    oracle = oracle_saving(stage, rate, arguments.segments) if plain else None
    return {
        "mbps": rate,
        "raw_bytes": stage.raw_bytes,
        "seconds": {
            f"{case}/{system}": round(statistics.median(all_), 3)
            for (case, system), all_ in runs.seconds.items()
        },
        "link_bytes": {
            f"{case}/{system}": int(statistics.median(all_)) for (case, system), all_ in runs.carried.items()
        },
        "ratio_to_rsync": {case: ratio(case, "rsync") for case in CASES},
        "ratio_to_zstd_adapt": ratio("cold", "zstd-adapt"),
        "saving": round(1 - ours / plain, 4) if ours and plain else None,
        "oracle_saving": oracle,
    }


def prepare(folder: Path, size: int, cases: list[str], arguments: argparse.Namespace) -> Stage:
    """Writes the mixes; the same seed gives the same files."""
    sources, raw = {}, {}
    before = folder / "before"
    if "cold" in cases:
        sources["cold"] = folder / "cold"
        mixes.write(sources["cold"], size, seed=arguments.seed)
        raw["cold"] = size
    warm_size = min(size * WARM_FACTOR, arguments.raw_max_mib << 20)
    for case, change in (("warm", mixes.replace_tenth), ("edits", mixes.edit)):
        if case not in cases:
            continue
        if not before.exists():
            mixes.write(before, warm_size, seed=arguments.seed + 1)
            capture(before, ChunkStore.open(folder / "store-before", quota_bytes=1 << 40), owner="sent-bench")
        sources[case] = folder / case
        shutil.copytree(before, sources[case], copy_function=shutil.copy2)
        change(sources[case], seed=arguments.seed)
        raw[case] = warm_size
    return Stage(folder, before, sources, raw)


class Party:
    """Runs one system at a time over the link."""

    def __init__(self, link: Link, stage: Stage, arguments: argparse.Namespace) -> None:
        self._link = link
        self._stage = stage
        self._target = stage.scratch / "target"
        self._tls = self._certificates()
        self._rsyncd()
        for port in (AGENT, RSYNC, PIPE):
            plan = {"host": FAR, "port": port + RELAYED, "to_host": "127.0.0.1", "to_port": port}
            self._start(link.far, "relay", {**plan, "delay_s": arguments.delay_ms / 1000})
        cache = stage.scratch.parent
        url = f"https://{FAR}:{AGENT + RELAYED}"
        plan = {"tls": self._tls["operator"], "url": url, "cache": str(cache), "codec": arguments.codec}
        self._sender = self._start(link.near, "send", plan, stdin=subprocess.PIPE)

    def run(self, case: str, system: str, runs: Runs) -> None:
        shutil.rmtree(self._target, ignore_errors=True)
        act = {"ours": self._ours, "rsync": self._rsync}.get(system) or (
            lambda case: self._pipe(case, PIPES[system])
        )
        seconds, carried = act(case)
        runs.seconds.setdefault((case, system), []).append(seconds)
        runs.carried.setdefault((case, system), []).append(carried)
        print(f"  {case}/{system}: {seconds:.2f} s, {carried} bytes", file=sys.stderr)

    def _ours(self, case: str) -> tuple[float, int]:
        if case != "cold":
            subprocess.run(
                ["cp", "-al", str(self._stage.scratch / "store-before"), str(self._target)], check=True
            )
        plan = {"tls": self._tls["receiver"], "host": "127.0.0.1", "port": AGENT, "store": str(self._target)}
        receiver = self._start(self._link.far, "receive", plan)
        try:
            assert self._sender.stdin is not None
            at = self._link.carried_bytes()
            self._sender.stdin.write(f"{self._stage.sources[case]}\n".encode())
            self._sender.stdin.flush()
            answer = heard(self._sender)
            print(f"    cpu {answer['cpu_s']:.2f} s, raw sent {answer['sent']}", file=sys.stderr)
            return answer["seconds"], self._link.carried_bytes() - at
        finally:
            receiver.kill()
            receiver.wait()

    def _rsync(self, case: str) -> tuple[float, int]:
        if case == "cold":
            self._target.mkdir()
        else:
            subprocess.run(["cp", "-a", str(self._stage.before), str(self._target)], check=True)
        source = f"{self._stage.sources[case]}/"
        command = ["rsync", "-a", "-z", "--delete", source, f"rsync://{FAR}:{RSYNC + RELAYED}/target/"]
        at, began = self._link.carried_bytes(), time.monotonic()
        sender = self._link.start(self._link.near, command)
        if sender.wait() != 0:
            raise OSError(f"rsync ended with {sender.returncode}")
        return time.monotonic() - began, self._link.carried_bytes() - at

    def _pipe(self, case: str, packer: str) -> tuple[float, int]:
        self._target.mkdir()
        command = f"zstd -d -q | tar -x -C {self._target}"
        receiver = self._start(
            self._link.far, "accept", {"host": "127.0.0.1", "port": PIPE, "command": command}
        )
        command = f"tar -c -C {self._stage.sources[case]} . | {packer} > /dev/tcp/{FAR}/{PIPE + RELAYED}"
        at, began = self._link.carried_bytes(), time.monotonic()
        self._link.start(self._link.near, ["bash", "-c", command])
        if heard(receiver)["code"] != 0:
            raise OSError(f"{packer}: the receiving side failed")
        return time.monotonic() - began, self._link.carried_bytes() - at

    def _start(self, where: str, role: str, plan: dict[str, Any], **more: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, PARTY, role, json.dumps(plan)]
        process = self._link.start(where, command, stdout=subprocess.PIPE, **more)
        if heard(process) != {"ready": True}:
            raise OSError(f"the {role} did not start")
        return process

    def _rsyncd(self) -> None:
        conf = self._stage.scratch / "rsyncd.conf"
        conf.write_text(
            f"port = {RSYNC}\naddress = 127.0.0.1\nuse chroot = no\nuid = root\ngid = root\n"
            f"[target]\npath = {self._target}\nread only = no\n"
        )
        self._link.start(
            self._link.far,
            ["rsync", "--daemon", "--no-detach", f"--config={conf}"],
            stderr=subprocess.DEVNULL,
        )

    def _certificates(self) -> dict[str, dict[str, str]]:
        now_ms = SystemClock().now_ms()
        folder = self._stage.scratch / "ca"
        authority = create_authority(folder, name="bench", now_ms=now_ms)
        found = {}
        for name in ("operator", "receiver"):
            issue(authority, self._stage.scratch / name, name=name, hosts=(FAR,), now_ms=now_ms)
            files = {"certificate": "tls.crt", "key": "tls.key"}
            found[name] = {key: str(self._stage.scratch / name / file) for key, file in files.items()}
            found[name]["authority"] = str(folder / "ca.crt")
        return found


def heard(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise OSError(f"a process of the benchmark ended with {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


# The oracle's codecs: ours, and what else the libraries offer.
Pair = tuple[Callable[[bytes], bytes], Callable[[bytes, int], object]]


def _zstd(level: int) -> Pair:
    return zstandard.ZstdCompressor(
        level=level
    ).compress, lambda packed, _: zstandard.ZstdDecompressor().decompress(packed)


PRICED: dict[str, Pair] = {
    **{
        codec.name: (codec.pack, lambda packed, size, codec=codec: codec.unpack(packed, raw_size=size))
        for codec in CODECS
    },
    **{f"zstd-{level}": _zstd(level) for level in (7, 9, 12, 15)},
    "zstd-f5": _zstd(-5),
    "brotli-9": (lambda raw: brotli.compress(raw, quality=9), lambda packed, _: brotli.decompress(packed)),
    "lz4hc-9": (
        lambda raw: lz4.block.compress(raw, mode="high_compression", compression=9),
        lambda packed, _: lz4.block.decompress(packed),
    ),
    "zlib-6": (lambda raw: zlib.compress(raw, 6), lambda packed, _: zlib.decompress(packed)),
    "bz2-1": (lambda raw: bz2.compress(raw, 1), lambda packed, _: bz2.decompress(packed)),
}
_priced: dict[bytes, dict[str, tuple[float, int, float]]] = {}


def oracle_saving(stage: Stage, rate_mbps: float, count: int) -> float:
    """1 − T*/T of zstd-3, segment by segment."""
    bytes_per_s = rate_mbps * 1e6 / 8
    best = plain = 0.0
    for segment in segments(stage.sources["cold"], count):
        costs = {
            name: max(pack, size / bytes_per_s, unpack)
            for name, (pack, size, unpack) in price(segment).items()
        }
        best += min(costs.values())
        plain += costs["zstd-3"]
    return round(1 - best / plain, 4)


def segments(folder: Path, count: int) -> Iterator[bytes]:
    """MiBs at even distances through the files in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in files)
    count = max(1, min(count, total >> 20))
    data, due, seen = b"", 0.0, 0
    for path in files:
        data += path.read_bytes()
        while len(data) >= 1 << 20:
            if seen >= due:
                yield data[: 1 << 20]
                due += total / count
            seen += 1 << 20
            data = data[1 << 20 :]


def price(segment: bytes) -> dict[str, tuple[float, int, float]]:
    """(seconds to pack, packed bytes, seconds to unpack) by codec; a packing that grows is stored."""
    if segment not in _priced:
        found = {}
        for name, (pack, unpack) in PRICED.items():
            pack_s, packed = timed(lambda pack=pack: pack(segment))
            if len(packed) >= len(segment):
                found[name] = (pack_s, len(segment), 0.0)
                continue
            unpack_s, _ = timed(lambda unpack=unpack, packed=packed: unpack(packed, len(segment)))
            found[name] = (pack_s, len(packed), unpack_s)
        _priced[segment] = found
    return _priced[segment]


def timed(act: Callable[[], Any], times: int = 2) -> tuple[float, Any]:
    best = float("inf")
    for _ in range(times):
        began = time.thread_time()
        result = act()
        best = min(best, time.thread_time() - began)
    return best, result


if __name__ == "__main__":
    sys.exit(main())
