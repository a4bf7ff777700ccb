"""Whole conversations as text: what replicas say to each other, line by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engines.network import Network, payload

from dwcp.consensus.engines.probft.messages import Kind
from dwcp.consensus.engines.probft.params import Params

HERE = Path(__file__).parent


def normal_case(net: Network) -> None:
    """Two payloads, one slot each."""
    net.submit("first")
    net.run()
    net.submit("second")
    net.run()


def view_change(net: Network) -> None:
    """Slot 1 is prepared and not committed when the leader of view 1 dies."""
    net.drop = lambda sender, to, message: message.kind == Kind.COMMIT and message.body.view == 1
    net.submit("prepared")
    net.run()
    net.crash(0)
    net.tick(ms=150, times=6)


def checkpoint(net: Network) -> None:
    """Eight slots with interval eight: a checkpoint becomes stable and the log is cut."""
    for i in range(8):
        net.submit(f"p{i}")
        net.run()


CONVERSATIONS = {"normal_case": normal_case, "view_change": view_change, "checkpoint": checkpoint}


class InOrder:
    """Deliveries in the order in which they were sent."""

    def randrange(self, _: int) -> int:
        return 0


def record(name: str, talk: Callable[[Network], None]) -> str:
    params = Params(checkpoint_interval=8, window=16) if name == "checkpoint" else Params()
    net = Network(params=params)
    net.random = InOrder()  # type: ignore[assignment]
    net.run()
    net.trace = []
    talk(net)
    lines = [line for line in net.trace if "Beacon" not in line]
    for node in net.nodes:
        lines += [f"{node.me} notes {note.event} {note.fields}" for note in node.notes]
        for index, _, digests in node.history:
            lines.append(f"{node.me} commits {index} [{','.join(d.hex()[:8] for d in digests)}]")
    return "\n".join([f"# {talk.__doc__}", *lines, ""])


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
def test_the_conversation_is_as_written(name: str, rewrite: bool) -> None:
    """Goal: a change of the protocol's words is seen in review. Method: compare with the stored text."""
    path = HERE / f"probft_{name}.txt"
    text = record(name, CONVERSATIONS[name])
    if rewrite:
        path.write_text(text)
    assert path.read_text() == text


def test_names_in_transcripts_are_digests() -> None:
    """Goal: a reader can find a payload. Method: the digest of "first" is in the normal case."""
    assert payload("first").digest.hex()[:8] in (HERE / "probft_normal_case.txt").read_text()
