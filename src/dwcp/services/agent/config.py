"""The configuration of one agent."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from dwcp.api.workloads import Capacity
from dwcp.runtime.config import ServiceConfig
from dwcp.runtime.errors import ConfigInvalid


class AgentConfig(ServiceConfig, frozen=True, kw_only=True):
    """`conf/dwcp-agent-SITE.yaml`."""

    node: Annotated[str, Meta(pattern="^[a-z][a-z0-9-]{0,30}$", description="this node's name in the log")]
    site: Annotated[str, Meta(description="the site it stands at")]
    address: Annotated[str, Meta(description="host:port at which other agents reach it")]
    capacity: Annotated[Capacity, Meta(description="what it offers to workloads")]
    manager: Annotated[str, Meta(description="URL of the manager's mutual TLS listener")]
    compression: Annotated[
        str, Meta(description="URL of the compression service, which is told what codecs came to")
    ]
    uplink_mbps: Annotated[float, Meta(gt=0, description="what it may send, Mbit/s")] = 100.0
    downlink_mbps: Annotated[float, Meta(gt=0, description="what it may receive, Mbit/s")] = 100.0
    lease_ms: Annotated[int, Meta(ge=1000, le=600_000, description="lease of an attempt, ms")] = 30_000
    ship_stall_ms: Annotated[
        int, Meta(ge=1000, description="how long shipping may make no progress before the job fails, ms")
    ] = 120_000
    attempts_kept: Annotated[
        int, Meta(ge=0, description="ended attempts whose records and logs are kept")
    ] = 200
    store_quota_mib: Annotated[
        int, Meta(ge=1, description="what payloads and outputs may take on disk, MiB")
    ] = 16_384

    def validate(self) -> None:
        super().validate()
        if self.sign_key is None:
            raise ConfigInvalid("sign_key: an agent writes to the control log, so it needs its key")
        if self.mutual is None:
            raise ConfigInvalid("mutual: an agent is reached over mutual TLS only; give its listener")
        if min(self.capacity.cpu_milli, self.capacity.memory_mib, self.capacity.storage_mib) < 1:
            raise ConfigInvalid("capacity: an agent offers at least some cpu, memory and storage")
