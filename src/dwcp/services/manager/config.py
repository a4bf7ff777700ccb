"""The manager's configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from dwcp.control.breaker import BreakerLimits
from dwcp.runtime.config import ServiceConfig, Settings
from dwcp.runtime.errors import ConfigInvalid


class BreakerSettings(Settings, frozen=True):
    """When to stop asking a dependency that keeps failing, and when to try again."""

    failures: Annotated[int, Meta(ge=1, description="failures in a row that open it")] = 5
    open_ms: Annotated[int, Meta(ge=1, description="how long it stays open before one trial, ms")] = 30_000
    successes: Annotated[int, Meta(ge=1, description="trials in a row that close it")] = 2

    def limits(self) -> BreakerLimits:
        return BreakerLimits(failures=self.failures, open_ms=self.open_ms, successes=self.successes)


class AgentAddress(Settings, frozen=True):
    """A worker machine that should be there; one that joined by itself is probed too."""

    name: Annotated[str, Meta(description="the node's name")]
    site: Annotated[str, Meta(description="the site it stands at")]
    url: Annotated[str, Meta(description="https address of its agent")]


class ManagerConfig(ServiceConfig, frozen=True, kw_only=True):
    """`dwcp-manager`: what the manager needs beside what every service needs."""

    allocator: Annotated[str, Meta(description="https address of the allocator")]
    agents: Annotated[
        tuple[AgentAddress, ...], Meta(description="worker machines expected from the start")
    ] = ()
    lease_ms: Annotated[
        int, Meta(ge=1_000, le=600_000, description="lease of a placed or running attempt, ms")
    ] = 30_000
    reconcile_ms: Annotated[
        int, Meta(ge=100, description="how often the control log is read again while work is under way, ms")
    ] = 5_000
    probe_ms: Annotated[int, Meta(ge=100, description="how often the other processes are probed, ms")] = (
        10_000
    )
    allocator_timeout_ms: Annotated[
        int, Meta(ge=10, description="how long a placement may take before the manager decides alone, ms")
    ] = 2_000
    plan_timeout_ms: Annotated[
        int, Meta(ge=10, description="how long a plan of moves may take before the manager plans alone, ms")
    ] = 5_000
    moves_at_once: Annotated[
        int, Meta(ge=1, le=256, description="workloads that drains and rebalances move at once")
    ] = 4
    moves_bytes_at_once: Annotated[
        int, Meta(ge=0, description="data that the moves under way may have to fetch again, bytes")
    ] = 10 * 2**30
    breaker: Annotated[BreakerSettings, Meta(description="breakers of all dependencies")] = BreakerSettings()

    def validate(self) -> None:
        ServiceConfig.validate(self)
        if self.sign_key is None:
            raise ConfigInvalid("sign_key: missing; the manager writes to the control log under its own key")
        urls = {"allocator": self.allocator} | {
            f"agents.{agent.name}.url": agent.url for agent in self.agents
        }
        for key, url in urls.items():
            if not url.startswith("https://"):
                raise ConfigInvalid(f"{key}: {url!r} does not begin with https://")
        if self.allocator_timeout_ms >= self.lease_ms:
            raise ConfigInvalid("allocator_timeout_ms: it must be shorter than lease_ms")
