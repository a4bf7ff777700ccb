"""A link between two sites on one machine: network namespaces joined by a pair whose rate `tc tbf` sets.

The delay is made by a relay in user space (`transfer_party.py relay`), which every system passes through,
because not every kernel has netem. Needs root; `reason()` says what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

NEAR, FAR = "10.203.0.1", "10.203.0.2"  # the sender's and the receiver's address
_QUEUE_S = 0.05  # what the link's queue holds
_BURST_S = 0.004


def reason() -> str:
    """Why no link can be made here; "" where it can."""
    if os.geteuid() != 0:
        return "a link of its own needs root: run it with sudo"
    for program in ("ip", "tc"):
        if shutil.which(program) is None and not os.path.exists(f"/usr/sbin/{program}"):  # noqa: PTH110
            return f"a link needs `{program}`: apt-get install iproute2"
    name = f"dwcp-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class Link:
    """Two namespaces, `near` and `far`, and the link between them. Use as a context."""

    def __init__(self, rate_mbps: float) -> None:
        self.near = f"dwcp-{os.getpid()}-near"
        self.far = f"dwcp-{os.getpid()}-far"
        self._rate_mbps = rate_mbps
        self._burst_bytes = 16_384
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Link:
        for name in (self.near, self.far):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run(
            "ip",
            "link",
            "add",
            "near0",
            "netns",
            self.near,
            "type",
            "veth",
            "peer",
            "far0",
            "netns",
            self.far,
        )
        for name, device, address in ((self.near, "near0", NEAR), (self.far, "far0", FAR)):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", device)
            _run("ip", "-n", name, "link", "set", device, "up")
        self.set_rate(self._rate_mbps)
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        for name in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def set_rate(self, rate_mbps: float) -> None:
        """Both directions, at once, whatever is under way.

        The burst never shrinks: a large segment that waits already would never fit a smaller one, and block the link.
        """
        bytes_per_s = rate_mbps * 1e6 / 8
        burst = self._burst_bytes = max(self._burst_bytes, int(bytes_per_s * _BURST_S))
        limit = max(131_072, int(bytes_per_s * _QUEUE_S))
        for name, device in ((self.near, "near0"), (self.far, "far0")):
            rate = f"{int(rate_mbps * 1000)}kbit"
            arguments = ("root", "tbf", "rate", rate, "burst", str(burst), "limit", str(limit))
            _run("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", device, *arguments)

    def start(self, where: str, command: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
        """A process in one of the namespaces; ended with the link. Any: Popen's own keywords."""
        process = subprocess.Popen(["ip", "netns", "exec", where, *command], **more)
        self._processes.append(process)
        return process

    def carried_bytes(self) -> int:
        """What the near end has put on the link so far, headers and retransmissions included."""
        path = "/sys/class/net/near0/statistics/tx_bytes"
        done = _run("ip", "netns", "exec", self.near, "cat", path)
        return int(done)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
