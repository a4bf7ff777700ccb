"""The allocator's configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from dwcp.allocation.heuristics import DEFAULT, HEURISTICS
from dwcp.allocation.reservations import TTL_MS
from dwcp.allocation.serving.drifting import MOST
from dwcp.allocation.serving.scene import Terrain
from dwcp.runtime.config import ServiceConfig, Settings
from dwcp.runtime.errors import ConfigInvalid


class Link(Settings, frozen=True):
    """A site's link to the others."""

    site: Annotated[str, Meta(description="the site's name")]
    uplink_mbps: Annotated[float, Meta(gt=0, description="what it sends, Mbit/s")]
    downlink_mbps: Annotated[float, Meta(gt=0, description="what it receives, Mbit/s")]
    usd_per_gb: Annotated[
        float, Meta(description="price of a GB that leaves the site, dollars; negative: the general one")
    ] = -1.0
    energy_usd: Annotated[
        float, Meta(description="price of a core-hour of energy there, dollars; negative: the general one")
    ] = -1.0


class AllocatorConfig(ServiceConfig, frozen=True, kw_only=True):
    """`maddpg-allocator`: what the allocator needs beside what every service needs."""

    policy: Annotated[str, Meta(description="placement rule where a request names none")] = DEFAULT
    reservation_ms: Annotated[
        int, Meta(ge=0, le=600_000, description="how long an answer keeps its place free of others, ms")
    ] = TTL_MS

    links: Annotated[
        tuple[Link, ...], Meta(description="the sites' links; where one is missing, its nodes' own count")
    ] = ()

    usd_per_gb: Annotated[float, Meta(ge=0, description="price of a GB between sites, dollars")] = 0.02
    energy_usd: Annotated[
        float, Meta(ge=0, description="price of a core-hour of energy, cooling included, dollars")
    ] = 0.002
    use_model: Annotated[
        bool,
        Meta(
            description="let the release's learned placer decide where it was validated; false: rules alone"
        ),
    ] = True

    drift_max: Annotated[
        float,
        Meta(
            ge=0,
            description="stability index of what arrives above which the rule decides till it calms; 0: said alone",
        ),
    ] = MOST

    @property
    def terrain(self) -> Terrain:
        return Terrain(
            links={link.site: (link.uplink_mbps, link.downlink_mbps) for link in self.links},
            usd_per_gb=self.usd_per_gb,
            energy_usd=self.energy_usd,
            site_usd_per_gb={x.site: x.usd_per_gb for x in self.links if x.usd_per_gb >= 0},
            site_energy_usd={x.site: x.energy_usd for x in self.links if x.energy_usd >= 0},
        )

    def validate(self) -> None:
        ServiceConfig.validate(self)
        if self.policy not in HEURISTICS:
            raise ConfigInvalid(f"policy: {self.policy!r}; policies: {', '.join(sorted(HEURISTICS))}")
