"""The first frame of a link: its format, and what is refused."""

from __future__ import annotations

from pathlib import Path

from dwcp.runtime.transport import Identity

GOLDEN = Path(__file__).parents[2] / "golden" / "link" / "hello-v1.bin"
CHAIN = bytes(range(32))


def test_the_hello_of_the_first_release_stays_readable() -> None:
    """Goal: the format is frozen. Method: the golden bytes are written and accepted as they are."""
    golden = GOLDEN.read_bytes()

    assert Identity(CHAIN, 0, 3).hello() == golden
    assert Identity(CHAIN, 0, 1).fault(golden, expected=3) == ""


def test_every_field_is_checked() -> None:
    """Goal: no link to another chain, epoch or replica. Method: one difference at a time."""
    own = Identity(CHAIN, 0, 1)

    assert own.fault(Identity(CHAIN[::-1], 0, 3).hello(), expected=3) == "hello_chain"
    assert own.fault(Identity(CHAIN, 1, 3).hello(), expected=3) == "hello_epoch"
    assert own.fault(Identity(CHAIN, 0, 2).hello(), expected=3) == "hello_replica"
    assert own.fault(Identity(CHAIN, 0, 3).hello() + b"x", expected=3) == "hello_malformed"
    assert own.fault(b"", expected=3) == "hello_malformed"
