"""Looking at the machine and the installation without changing either; for `dwcp doctor`."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dwcp.api.health import Verdict, worst
from dwcp.consensus.core.errors import CoreError
from dwcp.runtime import authority as authorities
from dwcp.runtime import installation
from dwcp.runtime.clock import Clock
from dwcp.runtime.config import Environment
from dwcp.runtime.errors import RuntimeFault
from dwcp.runtime.layout import Layout

FREE_MIB_MIN, FREE_MIB_WELL = 512, 4096
DESCRIPTORS_WELL = 4096
EXPIRY_DAYS_WARN = 30
_DAY_MS = 86_400_000


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `remedy` is empty where nothing needs doing."""

    verdict: Verdict
    what: str
    detail: str
    remedy: str = ""


def examine(layout: Layout, env: Environment, *, clock: Clock) -> list[Finding]:
    """Everything, in the order in which a newcomer would want to know it."""
    return [
        _python(),
        _program("bwrap", "the sandbox", "apt-get install -y bubblewrap", env),
        _sandbox(env),
        _cgroups(),
        _descriptors(),
        _disk(layout),
        _compiled_chunking(),
        *_installation(layout, clock.now_ms()),
        *_services(layout, clock),
    ]


def worst_of(findings: list[Finding]) -> Verdict:
    return worst([finding.verdict for finding in findings])


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(Verdict.OK, "python", f"{version} at {sys.executable}")


def _program(name: str, purpose: str, remedy: str, env: Environment) -> Finding:
    found = shutil.which(name, path=env.path)
    if found:
        return Finding(Verdict.OK, name, found)
    return Finding(Verdict.CRIT, name, f"not found: {purpose} needs it", remedy)


def _sandbox(env: Environment) -> Finding:
    """Whether a sandbox can really be started: distributions switch user namespaces off in several ways."""
    program = shutil.which("bwrap", path=env.path)
    if not program:
        return Finding(Verdict.UNKNOWN, "sandbox", "cannot be tried without bwrap")
    command = [program, "--unshare-all", "--ro-bind", "/", "/", "true"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Finding(Verdict.UNKNOWN, "sandbox", f"could not be tried: {exc}")
    if tried.returncode == 0:
        return Finding(Verdict.OK, "sandbox", "starts")
    why = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
    return Finding(Verdict.CRIT, "sandbox", why, "sysctl kernel.unprivileged_userns_clone=1, or run as root")


def _cgroups() -> Finding:
    """How limits of workloads are enforced here; rlimits always work, cgroups count whole process trees."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        kind, folder = "v2", Path("/sys/fs/cgroup")
    else:
        kind, folder = "v1", Path("/sys/fs/cgroup/memory")
    if os.access(folder, os.W_OK):
        return Finding(Verdict.OK, "limits", f"cgroup {kind}, writable")
    detail = f"cgroup {kind} is not writable: rlimits and wall clock are enforced instead"
    return Finding(Verdict.WARN, "limits", detail, "run as root, or delegate a cgroup to this user")


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= DESCRIPTORS_WELL or hard >= DESCRIPTORS_WELL:
        return Finding(Verdict.OK, "open files", f"{soft} (up to {hard})")
    return Finding(Verdict.WARN, "open files", f"only {soft}", f"ulimit -n {DESCRIPTORS_WELL}")


def _disk(layout: Layout) -> Finding:
    """Free space where the state is, or would be, and what one synced write costs there."""
    folder = layout.root
    while not folder.exists():
        folder = folder.parent
    free_mib = shutil.disk_usage(folder).free // 1_048_576
    detail = f"{free_mib} MiB free at {folder}{_sync_cost(layout)}"
    if free_mib < FREE_MIB_MIN:
        return Finding(Verdict.CRIT, "disk", detail, "free some space, or choose another --state")
    verdict = Verdict.OK if free_mib >= FREE_MIB_WELL else Verdict.WARN
    return Finding(verdict, "disk", detail, "" if verdict is Verdict.OK else "free some space")


def _sync_cost(layout: Layout) -> str:
    if not layout.run.is_dir():
        return ""
    probe = layout.run / ".sync-probe"
    samples = []
    try:
        with probe.open("wb") as file:
            for _ in range(9):
                file.write(bytes(4096))
                file.flush()
                begun = time.perf_counter()
                os.fdatasync(file.fileno())
                samples.append(time.perf_counter() - begun)
    except OSError:
        return ""
    finally:
        probe.unlink(missing_ok=True)
    return f", a synced write takes {sorted(samples)[4] * 1000:.1f} ms"


def _compiled_chunking() -> Finding:
    from dwcp.compression import chunking
    from dwcp.compression.errors import ChunkerMissing

    try:
        next(chunking.cut(bytes(2 * chunking.CHUNK_BYTES_MAX)))
    except (ImportError, ChunkerMissing) as exc:
        return Finding(Verdict.CRIT, "chunking", str(exc), "install the wheels again: `make up` does")
    return Finding(Verdict.OK, "chunking", "compiled")


def _installation(layout: Layout, now_ms: int) -> list[Finding]:
    if not installation.exists(layout):
        return [Finding(Verdict.UNKNOWN, "installation", f"none in {layout.root}", "dwcp init")]
    try:
        world = installation.open_world(layout)
    except (RuntimeFault, CoreError) as exc:
        return [Finding(Verdict.CRIT, "installation", str(exc), "as the sentence says")]
    found = Finding(
        Verdict.OK, "installation", f"{layout.root}: {len(world.replicas)} replicas, keys and genesis agree"
    )
    return [found, _expiry(layout, sorted(installation.identities(world)), now_ms), _clock(now_ms)]


def _services(layout: Layout, clock: Clock) -> list[Finding]:
    """How the processes are, where the installation is sound enough to ask; `dwcp status` tells more."""
    from dwcp.runtime.platform import Platform

    platform = Platform(layout, clock)
    try:
        if not installation.exists(layout):
            return []
        if not platform.supervisor.is_running():
            return [Finding(Verdict.OK, "services", "none runs", "dwcp up")]
        status = platform.status()
    except (RuntimeFault, CoreError) as exc:
        return [Finding(Verdict.UNKNOWN, "services", str(exc), "as the sentence says")]
    bad = [service for service in status.services if service.verdict is not Verdict.OK or not service.ready]
    if not bad:
        return [Finding(Verdict.OK, "services", f"all {len(status.services)} are ready and well")]
    return [
        Finding(
            worst([service.verdict, Verdict.WARN]),
            service.name,
            service.detail or service.state,
            f"dwcp logs {service.name}",
        )
        for service in bad
    ]


def _expiry(layout: Layout, names: list[str], now_ms: int) -> Finding:
    found = {name: authorities.load_certificate(layout.tls(name).certificate) for name in names}
    ends = {name: int(one.not_valid_after_utc.timestamp() * 1000) for name, one in found.items()}
    first = min(ends, key=lambda name: ends[name])
    days = (ends[first] - now_ms) // _DAY_MS
    detail = f"the first to expire is that of {first}, in {days} days"
    if days < 0:
        return Finding(Verdict.CRIT, "certificates", detail, "make a new installation")
    verdict = Verdict.OK if days >= EXPIRY_DAYS_WARN else Verdict.WARN
    return Finding(verdict, "certificates", detail)


def _clock(now_ms: int) -> Finding:
    """A clock before this program's own files were written is wrong; more cannot be known from one machine."""
    written_ms = int(Path(__file__).stat().st_mtime * 1000)
    at = datetime.fromtimestamp(now_ms // 1000, UTC).isoformat()
    if now_ms + _DAY_MS < written_ms:
        return Finding(Verdict.CRIT, "clock", f"{at} lies before this program was written", "set the clock")
    return Finding(Verdict.OK, "clock", at)
