"""The allocator's configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from dwcp.allocation.heuristics import DEFAULT, HEURISTICS
from dwcp.allocation.reservations import TTL_MS
from dwcp.runtime.config import ServiceConfig, Settings
from dwcp.runtime.errors import ConfigInvalid


class Link(Settings, frozen=True):
    """A site's link to the others."""

    site: Annotated[str, Meta(description="the site's name")]
    uplink_mbps: Annotated[float, Meta(gt=0, description="what it sends, Mbit/s")]
    downlink_mbps: Annotated[float, Meta(gt=0, description="what it receives, Mbit/s")]


class AllocatorConfig(ServiceConfig, frozen=True, kw_only=True):
    """`maddpg-allocator`: what the allocator needs beside what every service needs."""

    policy: Annotated[str, Meta(description="placement rule where a request names none")] = DEFAULT
    reservation_ms: Annotated[
        int, Meta(ge=0, le=600_000, description="how long an answer keeps its place free of others, ms")
    ] = TTL_MS

    links: Annotated[
        tuple[Link, ...], Meta(description="the sites' links; where one is missing, its nodes' own count")
    ] = ()

    def validate(self) -> None:
        ServiceConfig.validate(self)
        if self.policy not in HEURISTICS:
            raise ConfigInvalid(f"policy: {self.policy!r}; policies: {', '.join(sorted(HEURISTICS))}")
