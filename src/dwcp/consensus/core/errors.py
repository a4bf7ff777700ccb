"""Errors of the consensus core: whose fault it is decides the type.

A peer's fault is an event or evidence and never raised, except by decoders
(`MalformedFrame`), whose caller counts it. The operator's fault is a
`CoreError`. Our own impossible state is `InvariantBroken`, which stops the process.
"""

from __future__ import annotations

from typing import NoReturn


class CoreError(Exception):
    """An error that an operator can act on."""


class MalformedFrame(CoreError):
    """A peer sent bytes that are no message of this protocol; the frame is dropped and counted."""


class LogCorrupt(CoreError):
    """The journal is damaged before its end, so votes may be lost.

    This replica must not vote again under its key.
    """


class DiskFailed(CoreError):
    """The disk refused a write or a sync; what it holds is unknown, so the process stops."""


class InvariantBroken(AssertionError):
    """A state that the code holds impossible; the process stops before it does harm."""


def invariant(condition: bool, message: str) -> None:
    """Stop on an impossible state. Unlike `assert`, it survives `python -O`."""
    if not condition:
        broken(message)


def broken(message: str) -> NoReturn:
    raise InvariantBroken(message)
