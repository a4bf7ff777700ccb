"""Logs of attempts over HTTP: the right attempt, whole, followed to its end, bad names refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dwcp.api.workloads import Demand, Job, Spec
from dwcp.runtime import shim
from dwcp.runtime.attempts import AttemptStore, Prepared
from dwcp.runtime.http import Refusal
from dwcp.services.agent.routes import find, tail

JOB = Job(name="t", demand=Demand(cpu=1, memory_mib=1, storage_mib=1), run=("true",))


def store_with(tmp_path: Path, *names: tuple[str, int]) -> AttemptStore:
    store = AttemptStore(tmp_path)
    for workload, number in names:
        spec = Spec(workload, JOB, None, 0, "test")
        store.attempt(workload, number).prepare(Prepared(spec, number, 0, "rlimit"))
    return store


def test_a_workload_means_its_newest_attempt(tmp_path: Path) -> None:
    """Goal: `dwcp logs W` shows what runs now. Method: attempts 2 and 10 beside another workload's 11."""
    store = store_with(tmp_path, ("w-a", 2), ("w-a", 10), ("w-b", 11))
    assert find(store, "w-a").number == 10
    assert find(store, "w-a-2").number == 2


@pytest.mark.parametrize("name", ["w-c", "", "..", "../w-a", "w-a/..", "w*", "x" * 300])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    """Goal: a name never becomes a path. Method: unknown, empty, climbing and overlong names."""
    with pytest.raises(Refusal, match="no attempt"):
        find(store_with(tmp_path, ("w-a", 1)), name)


def test_following_ends_with_the_command_and_misses_nothing(tmp_path: Path) -> None:
    """Goal: `dwcp logs -f` shows every byte and returns.
    Method: write while it follows, then record the exit."""
    attempt = store_with(tmp_path, ("w-a", 1)).attempt("w-a", 1)
    attempt.file("stdout").write_bytes(b"one\n")

    async def story() -> bytes:
        pieces = []
        async for piece in tail(attempt, "stdout", follow=True):
            pieces.append(piece)
            if len(pieces) == 1:
                with attempt.file("stdout").open("ab") as file:
                    file.write(b"two\n" * 50_000)
                record = b'{"status": 0, "cause": null, "entered": true, "killed": false}'
                shim.write_durable(attempt.file("exit.json"), record)
        return b"".join(pieces)

    assert asyncio.run(story()) == b"one\n" + b"two\n" * 50_000


def test_without_following_it_returns_what_is_there(tmp_path: Path) -> None:
    """Goal: no hang on a running attempt or a missing file. Method: an attempt without any output."""
    attempt = store_with(tmp_path, ("w-a", 1)).attempt("w-a", 1)

    async def story() -> list[bytes]:
        return [piece async for piece in tail(attempt, "stderr", follow=False)]

    assert asyncio.run(story()) == []
