"""A fresh allocator, as a process of its own: its first answer is the model's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec
import pytest
from tests.integration.compression_service import ROOT, Installed, installation, wait_ready
from tests.unit.services.allocator.desks import nodes, wanted

from dwcp.api import allocator as api
from dwcp.runtime.config import load
from dwcp.services.allocator.config import AllocatorConfig

pytestmark = pytest.mark.process

STARTS = 3  # a busy machine may take the processor away for longer than the deadline: not three times


@contextmanager
def allocator(installed: Installed) -> Iterator[str]:
    """Its address, as soon as it says that it is ready."""
    path = installed.layout.config("maddpg-allocator")
    plain = load(path, AllocatorConfig).plain
    assert plain is not None
    command = [sys.executable, "-m", "dwcp.services.allocator", "--config", str(path)]
    url = f"http://{plain.host}:{plain.port}"
    with (installed.layout.root / "allocator.log").open("ab") as log:
        process = subprocess.Popen(command, env=installed.environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            wait_ready(url, process, seconds=60)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def test_the_first_answer_after_a_start_is_the_models() -> None:
    """Goal: a fresh allocator does not fall back for want of time. Method: the real process; the first question as
    soon as it is ready; of a few starts one is enough, as other work may hold it up."""
    asked = msgspec.structs.replace(wanted(), nodes=nodes(60))
    found = []
    with installation() as installed:
        for _ in range(STARTS):
            with allocator(installed) as url:
                body = msgspec.json.encode(asked)
                answered = httpx.post(f"{url}/v1/simulate", content=body, trust_env=False)
            got = msgspec.json.decode(answered.content, type=api.PlaceAnswer)
            found.append((got.by, got.fallback))
            if found[-1] == ("model", ""):
                return
    raise AssertionError(f"the first answers were {found}")
