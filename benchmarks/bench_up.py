"""How long until a newcomer's platform works, and what does it cost while idle?

Starts everything, runs the example with a verified receipt, measures the calm, stops,
starts again, stops. The last line is one JSON object; `cold_s` is null unless the
environment was made by this run of `make up`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from dwcp.runtime.config import environment
from dwcp.runtime.layout import find
from dwcp.runtime.supervision import Supervisor

ROOT = Path(__file__).resolve().parent.parent
DWCP = [sys.executable, "-m", "dwcp.cli.main"]
CALM_SECONDS = 5  # caches settle, connections that were only for the job close


class Step(Exception):
    """A step failed; its own words were shown already."""


def run(command: list[str], *, capture: bool = False) -> str:
    """One step; what it prints goes to standard error, so that the last line stays ours."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE if capture else sys.stderr, text=True)
    if done.returncode != 0:
        raise Step(f"`{' '.join(command[1:])}` ended with {done.returncode}")
    return done.stdout or ""


def up() -> float:
    begun = time.monotonic()
    run([*DWCP, "up"])
    return time.monotonic() - begun


def cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def measure(supervisor: Supervisor, idle_s: float) -> dict[str, Any]:
    """Processes, memory and CPU of the calm platform: all its processes, the supervisor included."""
    time.sleep(CALM_SECONDS)
    processes = supervisor.processes()
    begun, before = time.monotonic(), cpu_seconds(processes)
    time.sleep(idle_s)
    seconds, used = time.monotonic() - begun, cpu_seconds(processes) - before
    rss = sum(process.memory_info().rss for process in processes)
    return {
        "processes": len(processes),
        "rss_mb": round(rss / 1_048_576, 1),
        "idle_cpu_pct": round(100 * used / seconds, 2),
    }


def made_seconds() -> float | None:
    """What the bootstrap noted if it made the environment just now."""
    note = Path(sys.prefix) / ".made"
    try:
        seconds = float(note.read_text())
    except (OSError, ValueError):
        return None
    note.unlink()
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=50, help="size of the payload")
    parser.add_argument("--idle-s", type=float, default=15, help="how long the calm is measured, at least 10")
    arguments = parser.parse_args()
    supervisor = Supervisor(find(None, environment()))
    made_s = made_seconds()
    try:
        first_s = up()
        job = json.loads(
            run(
                [sys.executable, str(ROOT / "example/run.py"), "--json", "--mib", str(arguments.mib)],
                capture=True,
            )
        )
        calm = measure(supervisor, max(10.0, arguments.idle_s))
        run([*DWCP, "down"])
        warm_s = up()
    except Step as failed:
        print(failed, file=sys.stderr)
        return 2
    finally:
        run([*DWCP, "down"])
    if left := supervisor.processes():
        print(f"still there after down: {[process.pid for process in left]}", file=sys.stderr)
        return 2
    cold_s = None if made_s is None else round(made_s + first_s, 1)
    print(json.dumps({"cold_s": cold_s, "warm_s": round(warm_s, 1), "job_s": job["job_s"], **calm}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
