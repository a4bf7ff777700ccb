"""What a process holds in memory before it has done anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

ARRAYS = ("numpy", "safetensors", "dwcp.compression.selector", "dwcp.allocation.rebalance")
NEVER = ("rich", "pygments", "cryptography", "jax", "sklearn", "supervisor", "fastcdc")
SERVICES = {
    "consensus_node": (*NEVER, *ARRAYS),
    "manager.__main__": (*NEVER, *ARRAYS),
    "agent.__main__": (*NEVER, *ARRAYS),
    "monitoring.__main__": (*NEVER, *ARRAYS),
    "allocator.__main__": NEVER,
    "compression_api.__main__": NEVER,
}
SHOW = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_loads_what_it_needs(service: str) -> None:
    """Goal: memory and cold starts are not spent on what a process may never use. Method: import its root alone
    and look for libraries that have crept into every process before."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW, f"dwcp.services.{service}"], capture_output=True, text=True, check=True
    )

    assert not set(SERVICES[service]).intersection(done.stdout.split())
