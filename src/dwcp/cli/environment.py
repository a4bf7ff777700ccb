"""What a command may touch of the outside: streams, clock, state folder. Handed in, so that tests can."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from dwcp.runtime.clock import Clock, SystemClock
from dwcp.runtime.config import Environment as Variables
from dwcp.runtime.config import TlsFiles, environment
from dwcp.runtime.layout import Layout, find


@dataclass(frozen=True, slots=True)
class Environment:
    """One invocation of the command line."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Clock = field(default_factory=SystemClock)
    variables: Variables = field(default_factory=environment)

    @property
    def colors(self) -> bool:
        return self.out.isatty() and not self.variables.no_color

    def layout(self, state: Path | None = None) -> Layout:
        """The installation meant; `state` is the command's `--state` option."""
        return find(state, self.variables)

    def operator_tls(self, layout: Layout) -> TlsFiles:
        """The identity under which the command line talks to services."""
        return layout.tls("operator")


_current: list[Environment] = []  # the invocation under way; Typer hands commands their options only


def current() -> Environment:
    """The environment of the command that runs now."""
    return _current[-1] if _current else Environment()


class using:  # noqa: N801  # reads as a statement: `with using(environment):`
    """Makes an environment current for the time of a `with` block."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __enter__(self) -> Environment:
        _current.append(self._environment)
        return self._environment

    def __exit__(self, *exc: object) -> None:
        _current.pop()
