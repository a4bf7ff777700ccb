"""Who asks, and what a process may change: the certificate's name decides, and by default it may only read.

A certificate says which process calls. Only the command line's own stands for an
operator; every other process may change just what a service grants to it by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from dwcp.runtime.tokens import Role

OPERATOR = "operator"
MANAGER = "dwcp-manager"
AGENTS = "dwcp-agent-"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `kind` is "process" (certificate), "person" (token) or "anonymous"."""

    name: str
    kind: str
    role: Role = Role.VIEWER

    def may(self, role: Role) -> bool:
        return self.role.includes(role)

    @property
    def node(self) -> str:
        """The node whose agent this is, "" for everybody else."""
        is_agent = self.kind == "process" and self.name.startswith(AGENTS)
        return self.name.removeprefix(AGENTS) if is_agent else ""


ANONYMOUS = Principal("anonymous", "anonymous")


def of_certificate(name: str) -> Principal:
    """The process that this certificate names."""
    return Principal(name, "process", Role.OPERATOR if name == OPERATOR else Role.VIEWER)


@dataclass(frozen=True, slots=True)
class Grant:
    """`process` may change state at `path`. A name that ends in "-" stands for all that begin so."""

    path: str
    process: str

    def covers(self, caller: Principal, path: str) -> bool:
        fits = (
            caller.name.startswith(self.process)
            if self.process.endswith("-")
            else caller.name == self.process
        )
        return caller.kind == "process" and path == self.path and fits
