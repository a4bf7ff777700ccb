"""A transfer over a link that changes under it: namespaces and `tc tbf`, where there is a root to make them."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import links

from dwcp.compression.codecs import by_name
from dwcp.runtime.authority import create_authority, issue
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.clock import SystemClock

pytestmark = [
    pytest.mark.process,
    pytest.mark.alone,
    pytest.mark.needs_root,
    pytest.mark.skipif(bool(links.reason()), reason=links.reason() or "a link can be made"),
]
PARTY = Path(__file__).with_name("ship_party.py")


def _certificates(folder: Path) -> dict[str, dict[str, str]]:
    now_ms = SystemClock().now_ms()
    authority = create_authority(folder / "ca", name="test", now_ms=now_ms)
    found = {}
    for name, host in (("operator", links.NEAR), ("source", links.FAR)):
        issue(authority, folder / name, name=name, hosts=(host,), now_ms=now_ms)
        found[name] = {
            "certificate": str(folder / name / "tls.crt"),
            "key": str(folder / name / "tls.key"),
            "authority": str(folder / "ca" / "ca.crt"),
        }
    return found


def _party(link: links.Link, where: str, **plan: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PARTY), json.dumps(plan)]
    return link.start(where, command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "src:."})


@pytest.mark.parametrize(("before", "after"), [(40, 4), (4, 40)], ids=["slower", "faster"])
def test_a_link_that_changes_tenfold_in_mid_stream(tmp_path: Path, before: float, after: float) -> None:
    """Goal: the push goes on, and arrives. Method: change the rate once something was sent; compare all."""
    payload = tmp_path / "payload"
    payload.mkdir()
    text = b"".join(b"%d and %d are the words of this line\n" % (n * 7919 % 99991, n) for n in range(300_000))
    (payload / "text").write_bytes(text)
    tls = _certificates(tmp_path)
    with links.Link(before) as link:
        agent = _party(
            link,
            link.far,
            role="source",
            folder=str(tmp_path / "store"),
            tls=tls["source"],
            host=links.FAR,
            port=7070,
        )
        assert agent.stdout is not None
        assert json.loads(agent.stdout.readline()) == {"ready": True}
        sender = _party(
            link, link.near, role="pusher", folder=str(payload), tls=tls["operator"], host=links.NEAR, port=0,
            sources={"to": f"https://{links.FAR}:7070"}, rate_bps=1e9,
        )  # fmt: skip
        assert sender.stdout is not None
        while not json.loads(sender.stdout.readline()).get("sent"):
            pass
        link.set_rate(after)
        began = time.monotonic()
        lines = [json.loads(line) for line in sender.stdout]
        seconds = time.monotonic() - began
        assert sender.wait(60) == 0

    store = ChunkStore.open(tmp_path / "store")
    assert store.complete(bytes.fromhex(lines[-1]["root"]))
    assert lines[-1]["received_bytes"] == len(text)
    assert seconds < 60


@pytest.mark.parametrize(("before", "after"), [(100, 10), (10, 100)], ids=["slower", "faster"])
def test_the_codec_follows_a_link_that_changes_tenfold(tmp_path: Path, before: float, after: float) -> None:
    """Goal: tighter packing on the slow stretch, quicker packing on the fast one, within one push.

    Method: change the rate when some packs are there; the rate that is believed, and the codecs by what they
    usually save, of the packs before the change and of the last ones: medians, for a pack that was begun before
    the change may end after it. The rates lie where the choice differs clearly, on a slow processor too.
    """
    payload = tmp_path / "payload"
    payload.mkdir()
    (payload / "text").write_bytes(b"".join(_lines(1_500_000)))
    tls = _certificates(tmp_path)
    sent_bytes = {100: 24 << 20, 10: 16 << 20}[int(before)]
    with links.Link(before) as link:
        agent = _party(
            link, link.far, role="source", folder=str(tmp_path / "store"), tls=tls["source"], host=links.FAR,
            port=7070,
        )  # fmt: skip
        assert agent.stdout is not None
        assert json.loads(agent.stdout.readline()) == {"ready": True}
        sender = _party(
            link, link.near, role="pusher", folder=str(payload), tls=tls["operator"], host=links.NEAR, port=0,
            sources={"to": f"https://{links.FAR}:7070"}, rate_bps=1e9, codec="auto",
        )  # fmt: skip
        assert sender.stdout is not None
        first, last = [], []
        for line in sender.stdout:
            fact = json.loads(line)
            if "codec" in fact:
                first.append(fact)
            if fact.get("sent", 0) > sent_bytes:
                break
        link.set_rate(after)
        last = [fact for fact in map(json.loads, sender.stdout) if "codec" in fact]
        assert sender.wait(60) == 0

    early, late = first[len(first) // 2 :], last[2 * len(last) // 3 :]  # the first packs leave by a guess
    slow, fast = (late, early) if after < before else (early, late)
    assert _rate(fast) > 2.5 * _rate(slow), (early, late)
    assert _saving(slow) > _saving(fast), (early, late)


def _lines(count: int) -> Iterator[bytes]:
    """Log lines with hashes in them, packed to about a third."""
    source = random.Random(7)
    for n in range(count):
        yield b"%d node%d GET /v1/%s %d ms\n" % (
            n,
            source.randrange(40),
            source.randbytes(8).hex().encode(),
            n % 97,
        )


def _rate(facts: list[dict[str, Any]]) -> float:
    """The rate that was believed, bit/s."""
    return statistics.median(fact["rate_bps"] for fact in facts)


def _saving(facts: list[dict[str, Any]]) -> float:
    """What the codecs save on the reference corpus, in the middle."""
    return statistics.median(by_name(fact["codec"]).ratio for fact in facts)
