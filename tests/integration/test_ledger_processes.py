"""Four real replicas with real certificates, disks and sockets: faults that a simulator only describes."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from tests.integration.ledger_world import LedgerWorld

from dwcp.api import kv
from dwcp.consensus.ledger import receipts
from dwcp.runtime.client import Indeterminate, LedgerClient, Refused

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerWorld]:
    with LedgerWorld(tmp_path_factory.mktemp("world")) as world:
        world.start_all()
        yield world


@pytest.fixture
def world(running: LedgerWorld) -> Iterator[LedgerWorld]:
    """All four replicas up, before and after each test."""
    yield running
    for replica in range(running.n):
        process = running.processes.get(replica)
        if process is None or process.poll() is not None:
            running.processes.pop(replica, None)
            running.start(replica)
        elif replica in running.armed:  # its point was never reached; it must not go off in the next test
            running.kill(replica)
            running.start(replica)
        else:
            running.thaw(replica)
    running.wait_ready(range(running.n))
    level(running)


def level(world: LedgerWorld) -> None:
    """Wait until every replica has executed what the most advanced one has, and leads are agreed."""

    def same() -> bool:
        found = [world.status(replica) for replica in range(world.n)]
        return len({(one["index"], one["view"]) for one in found}) == 1

    world.wait(same)


def run(scenario: Callable[[LedgerClient], Awaitable[None]], world: LedgerWorld) -> None:
    async def main() -> None:
        async with await world.client() as client:
            await scenario(client)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def put(client: LedgerClient, key: bytes, value: bytes, *, timeout_s: float = 20) -> int:
    """A write that must succeed; its revision."""
    done = await client.submit(kv.Put(key, value), timeout_s=timeout_s)
    assert isinstance(done.result, kv.PutDone)
    return done.result.revision


def test_writes_reads_and_a_receipt(world: LedgerWorld) -> None:
    """Goal: the ordinary day. Method: concurrent writes, a guarded transaction, ordered and stale reads,
    a receipt checked against genesis alone."""

    async def scenario(client: LedgerClient) -> None:
        await asyncio.gather(*(put(client, b"day/%03d" % number, b"v") for number in range(200)))
        found = await client.range(b"day/", b"day0")
        assert found.count == 200
        guard = kv.Compare(b"day/000", kv.Target.VERSION, kv.Relation.EQUAL, 1)
        txn = kv.Txn(compare=(guard,), success=(kv.Put(b"day/000", b"w"),))
        done = await client.txn(txn, receipt=True)
        assert isinstance(done.result, kv.TxnDone)
        assert done.result.succeeded
        assert done.receipt is not None
        receipts.verify(receipts.decode(done.receipt.encode()), world.genesis)
        again = await client.txn(txn)
        assert isinstance(again.result, kv.TxnDone)
        assert not again.result.succeeded
        stale = await client.range(b"day/001", linearizable=False)
        assert [one.value for one in stale.kvs] == [b"v"]
        with pytest.raises(Refused, match="too_large"):
            await client.submit(kv.Put(b"big", bytes(world.genesis.params.request_bytes_max)))

    run(scenario, world)


def test_a_replica_killed_and_restarted_catches_up(world: LedgerWorld) -> None:
    """Goal: one fault is no outage and leaves no hole. Method: kill -9 a backup, write past a checkpoint,
    restart it, compare positions."""
    victim = (leader(world) + 1) % world.n

    async def scenario(client: LedgerClient) -> None:
        await put(client, b"a", b"1")
        world.kill(victim)
        for number in range(300):
            await put(client, b"a%d" % number, b"2")

    run(scenario, world)
    world.start(victim)
    world.wait_ready(range(world.n))
    level(world)
    assert world.status(victim)["voting"]


def test_a_killed_leader_is_replaced_and_nothing_is_lost(world: LedgerWorld) -> None:
    """Goal: acknowledged writes survive their leader. Method: kill -9 it under load, then read all back."""
    victim, view = leader(world), world.status(0)["view"]
    acknowledged: dict[bytes, bytes] = {}

    async def scenario(client: LedgerClient) -> None:
        async def writer(lane: int) -> None:
            for number in range(30):
                key = b"lead/%d/%d" % (lane, number)
                await put(client, key, b"%d" % number)
                acknowledged[key] = b"%d" % number

        load = asyncio.gather(*(writer(lane) for lane in range(8)))
        while len(acknowledged) < 40:  # noqa: ASYNC110  the writers have no event to wait for
            await asyncio.sleep(0.002)
        world.kill(victim)
        await load
        found = await client.range(b"lead/", b"lead0")
        assert {one.key: one.value for one in found.kvs} == acknowledged
        assert all(one.version == 1 for one in found.kvs)

    run(scenario, world)
    other = (victim + 1) % world.n
    assert world.status(other)["view"] > view


def test_a_frozen_leader_is_replaced_and_comes_back(world: LedgerWorld) -> None:
    """Goal: silence is a fault too. Method: SIGSTOP the leader, write, SIGCONT, all level."""
    victim = leader(world)

    async def scenario(client: LedgerClient) -> None:
        await put(client, b"frozen", b"0")
        world.freeze(victim)
        await put(client, b"frozen", b"1")
        world.thaw(victim)
        await put(client, b"frozen", b"2")

    run(scenario, world)
    level(world)


def test_a_watch_goes_on_at_another_replica(world: LedgerWorld) -> None:
    """Goal: no revision is missed or seen twice when the followed replica dies. Method: kill each in turn
    but never two at once, write all the while."""

    async def scenario(client: LedgerClient) -> None:
        seen: list[int] = []
        first = await put(client, b"watched", b"0")

        async def follow() -> None:
            async for batch in client.watch(b"watched", from_revision=first):
                seen.append(batch.revision)
                assert all(event.mod_revision == batch.revision for event in batch.events)

        task = asyncio.create_task(follow())
        written = [first]
        for victim in range(2):
            written += [await put(client, b"watched", b"%d" % number) for number in range(10)]
            world.kill(victim)
            written.append(await put(client, b"watched", b"alone"))
            world.start(victim)
            await asyncio.to_thread(world.wait_ready, range(world.n))
            await asyncio.to_thread(level, world)
        async with asyncio.timeout(20):
            while seen != written:  # noqa: ASYNC110  the watch has no event to wait for
                await asyncio.sleep(0.02)
        task.cancel()

    run(scenario, world)


def test_without_a_quorum_nothing_is_promised(world: LedgerWorld) -> None:
    """Goal: two of four down means no answer, never a wrong one. Method: kill two, expect `Indeterminate`;
    one back, the write goes through once."""
    down = [(leader(world) + 1) % world.n, (leader(world) + 2) % world.n]

    async def scenario(client: LedgerClient) -> None:
        await put(client, b"quorum", b"0")
        for replica in down:
            world.kill(replica)
        with pytest.raises(Indeterminate, match=r"no answer within 1\.5 s; 2 of 4 replicas are connected"):
            await put(client, b"quorum", b"1", timeout_s=1.5)
        world.start(down[0])
        await put(client, b"quorum", b"2", timeout_s=30)
        found = await client.range(b"quorum")
        assert found.kvs[0].value == b"2"

    run(scenario, world)


def test_junk_on_every_port_costs_nothing(world: LedgerWorld) -> None:
    """Goal: strangers change nothing. Method: random bytes at 9000, 9001 and 8080 of every replica, then a write
    and the counters."""

    async def scenario(client: LedgerClient) -> None:
        before = os.urandom(3000)
        for replica in world.genesis.replicas:
            for port in (replica.peer_port, replica.client_port, replica.http_port):
                with socket.create_connection((replica.host, port)) as raw:
                    raw.sendall(before)
                    raw.settimeout(10)
                    try:
                        raw.recv(1000)
                    except ConnectionError:
                        pass
        await put(client, b"after junk", b"1")

    run(scenario, world)
    for replica in range(world.n):
        assert world.processes[replica].poll() is None


def test_two_processes_with_one_data_directory_are_refused(world: LedgerWorld) -> None:
    """Goal: one key never votes twice. Method: start replica 0 a second time; it exits with a sentence."""
    first = world.processes.pop(0)
    second = world.start(0)
    code = second.wait(timeout=20)
    world.processes[0] = first

    assert code == 2
    assert "another process owns this data directory" in world.log(0)


def test_a_lost_journal_makes_a_learner(world: LedgerWorld) -> None:
    """Goal: forgotten votes are never replaced by new ones. Method: move a journal away; the replica follows,
    votes no more, says so, and makes no new journal; put it back and it votes."""
    victim = (leader(world) + 1) % world.n
    journal = world.data(victim) / "journal" / "journal"
    aside = journal.with_name("aside")
    assert world.stop(victim) == 0
    journal.rename(aside)
    world.start(victim)
    world.wait_ready(range(world.n))

    async def scenario(client: LedgerClient) -> None:
        await put(client, b"learner", b"1")

    run(scenario, world)
    level(world)
    status = world.status(victim)
    assert not status["voting"]
    assert "runs as a learner" in status["learner"]
    assert world.get(victim, "/health")["verdict"] == "warn"
    assert not journal.exists()
    assert world.stop(victim) == 0
    aside.rename(journal)
    world.start(victim)
    world.wait_ready(range(world.n))
    assert world.status(victim)["voting"]


def test_a_foreign_journal_and_a_foreign_key_are_refused(world: LedgerWorld, tmp_path: Path) -> None:
    """Goal: a mixed-up data directory or key is found before anything is signed. Method: swap, start, read."""
    victim, other = (leader(world) + 1) % world.n, (leader(world) + 2) % world.n
    assert world.stop(victim) == 0
    journal = world.data(victim) / "journal" / "journal"
    kept = journal.read_bytes()
    journal.write_bytes((world.data(other) / "journal" / "journal").read_bytes())
    process = world.start(victim)
    assert process.wait(timeout=20) == 2
    assert f"it is of replica {other}, the configuration says {victim}" in world.log(victim)
    journal.write_bytes(kept)
    key = world.layout.sign_key(world.name(victim))
    own = key.read_text()
    key.write_text(world.layout.sign_key(world.name(other)).read_text())
    process = world.start(victim)
    assert process.wait(timeout=20) == 4
    assert "is not the voting key" in world.log(victim)
    key.write_text(own)


def test_a_disk_that_refuses_stops_the_replica_and_nothing_else(world: LedgerWorld) -> None:
    """Goal: a full disk is a sentence and an exit, never damage. Method: the kernel refuses a backup's next
    writes (file size limit); it stops with the reason, the others go on, and a restart with room catches up."""
    victim = (leader(world) + 1) % world.n
    process = world.processes[victim]
    room = 400_000  # above its log file, far below what is written now
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, room))

    async def scenario(client: LedgerClient) -> None:
        for number in range(20):
            await put(client, b"full/%d" % number, bytes(50_000))

    run(scenario, world)
    assert process.wait(timeout=20) == 2
    assert "cannot write: File too large; check the disk before starting again" in world.log(victim)


@pytest.mark.parametrize(
    "point",
    [
        "node.journal.before_write",
        "node.journal.after_write",
        "node.journal.before_sync",
        "node.journal.after_sync",
        "node.send.before",
        "node.execute.before",
        "node.execute.after",
        "node.reply.before",
    ],
)
def test_a_kill_at_each_point_loses_nothing(world: LedgerWorld, point: str) -> None:
    """Goal: no instant is a bad one to die. Method: the leader kills itself at the point, under writes; all
    acknowledged writes are there exactly once, and the restarted replica is level."""
    victim = leader(world)
    assert world.stop(victim) == 0
    world.start(victim, failpoints=[f"{point}=kill"])

    async def scenario(client: LedgerClient) -> None:
        acknowledged: set[bytes] = set()
        while len(acknowledged) < 20 or world.processes[victim].poll() is None:
            key = point.encode() + b"/%d" % len(acknowledged)
            await put(client, key, b"x")
            acknowledged.add(key)
        found = await client.range(point.encode() + b"/", point.encode() + b"0")
        assert {one.key for one in found.kvs if one.version == 1} == acknowledged

    run(scenario, world)
    marker = world.data(victim) / "failpoints" / f"{point}.fired"
    assert marker.exists()


@pytest.mark.parametrize(
    "point", ["node.snapshot.before_write", "node.snapshot.after_write", "node.snapshot.after_rename"]
)
def test_a_kill_around_a_snapshot_loses_nothing(world: LedgerWorld, point: str) -> None:
    """Goal: a snapshot is whole or absent. Method: die around one, restart, level, readable state."""
    victim = (leader(world) + 1) % world.n
    assert world.stop(victim) == 0
    world.start(victim, failpoints=[f"{point}=kill"])
    world.wait_ready(range(world.n))

    async def scenario(client: LedgerClient) -> None:
        while world.processes[victim].poll() is None:
            await put(client, b"snap", b"x")

    run(scenario, world)
    assert (world.data(victim) / "failpoints" / f"{point}.fired").exists()


def leader(world: LedgerWorld) -> int:
    """The replica that leads, by the word of the first one that answers."""
    names = [replica.name for replica in world.genesis.replicas]
    return names.index(world.status(0)["leader"])
