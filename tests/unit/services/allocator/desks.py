"""A desk with its clock in the test's hands, and a registry where one is wanted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from tests.unit.allocation.serving import placers

from dwcp.allocation import shipped
from dwcp.allocation.serving.chain import Served
from dwcp.allocation.serving.scene import Terrain
from dwcp.api.allocator import FleetRevision, NodesChange, NodeState, PlaceRequest
from dwcp.api.workloads import Capacity
from dwcp.models.artefact import Made
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.keys import create_sign_key, load_sign_key
from dwcp.runtime.registry import Registry
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.allocator.desk import Desk
from dwcp.services.allocator.stage import KIND, Stage

SITES = ("oslo", "rome", "lima")


def nodes(count: int = 6, *, cpu: int = 8000, memory: int = 16_384) -> tuple[NodeState, ...]:
    return tuple(
        NodeState(f"n{row:03}", SITES[row % 3], Capacity(cpu, memory, 100_000, 1000)) for row in range(count)
    )


def wanted(name: str = "w", *, cpu: int = 1000, memory: int = 1024, **more: object) -> PlaceRequest:
    return PlaceRequest(workload=name, demand=Capacity(cpu, memory, 100, 1), **more)  # type: ignore[arg-type]


@dataclass
class Nanoseconds:
    """Time that passes by `step` at each look."""

    step: int = 0
    now: int = 0

    def __call__(self) -> int:
        self.now += self.step
        return self.now


@dataclass
class Bench:
    """A desk and what it stands on."""

    folder: Path | None = None
    clock: ManualClock = field(default_factory=ManualClock)
    ns: Nanoseconds = field(default_factory=Nanoseconds)

    def __post_init__(self) -> None:
        self.telemetry = Telemetry("maddpg-allocator", version="0")
        registry = None
        if self.folder is not None:
            path = self.folder / "models.key"
            self.key = load_sign_key(path) if path.exists() else create_sign_key(path)
            registry = Registry(self.folder / "models", KIND, public=self.key.public)
        self.stage = Stage(telemetry=self.telemetry, clock=self.clock, registry=registry, use_shipped=False)
        links = {site: (100.0, 20.0 + 40.0 * place) for place, site in enumerate(SITES)}
        self.desk = Desk(
            clock=self.clock,
            telemetry=self.telemetry,
            stage=self.stage,
            terrain=Terrain(links=links),
            clock_ns=self.ns,
        )

    def serve(self, made: Made) -> None:
        """That model, as the release's."""
        self.stage.active = Served(shipped.load(made))

    def tell(self, told: tuple[NodeState, ...]) -> str:
        change: FleetRevision = self.desk.change(NodesChange(upsert=told, replace=True))
        return change.fleet

    def admit(self, made: Made, **roles: object) -> str:
        """Into the registry, and into a role."""
        registry = self.stage.registry
        assert registry is not None
        digest = registry.admit(made, signer=self.key).digest
        registry.change(lambda state: msgspec.structs.replace(state, **dict.fromkeys(roles, digest)))
        asyncio.run(self.stage.refresh())
        return digest

    def value(self, line: str) -> float:
        """One series of `/metrics`."""
        text = self.telemetry.exposition().decode()
        return float(next(row.split()[-1] for row in text.splitlines() if row.startswith(line)))


def with_model(**more: object) -> Bench:
    """A desk with six nodes, and a model of random weights on the rule that serves."""
    bench = Bench()
    bench.serve(placers.made(tuned=True, **more))  # type: ignore[arg-type]
    return bench
