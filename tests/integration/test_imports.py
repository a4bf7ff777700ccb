"""What a process holds in memory before it has done anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

LEARNED = ("safetensors", "dwcp.compression.selector", "dwcp.allocation.rebalance")
ARRAYS = ("numpy", *LEARNED)
NEVER = ("rich", "pygments", "cryptography", "jax", "sklearn", "supervisor", "fastcdc")
SERVER = ("fastapi", "uvicorn", "starlette", "structlog", "prometheus_client")
ROOTS = {
    "services.consensus_node": (*NEVER, *ARRAYS),
    "services.manager.__main__": (*NEVER, *ARRAYS),
    "services.agent.__main__": (*NEVER, *LEARNED),  # it takes edits apart with numpy
    "services.monitoring.__main__": (*NEVER, *ARRAYS),
    "services.allocator.__main__": NEVER,
    "services.compression_api.__main__": NEVER,
    "cli.main": (*NEVER, *ARRAYS, *SERVER, "httpx", "asyncio"),
    "runtime.platform": ("rich", "cryptography", *ARRAYS, *SERVER),  # up, down, status
    "cli.sending": (*NEVER, *ARRAYS, *SERVER),
    "cli.submission": (*NEVER, *ARRAYS, *SERVER),
}
SHOW = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"


@pytest.mark.parametrize("root", ROOTS)
def test_a_process_loads_what_it_needs(root: str) -> None:
    """Goal: memory and cold starts are not spent on what a process may never use. Method: import its root alone
    and look for libraries that have crept into every process before."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW, f"dwcp.{root}"], capture_output=True, text=True, check=True
    )

    assert not set(ROOTS[root]).intersection(done.stdout.split())
