"""The monitoring service's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from dwcp.runtime.config import ServiceConfig, Settings
from dwcp.runtime.errors import ConfigInvalid


class Target(Settings, frozen=True):
    """A process to ask."""

    name: Annotated[str, Meta(description="the service's name")]
    url: Annotated[str, Meta(description="where it answers, http:// or https://")]
    kind: Annotated[Literal["replica", "service"], Meta(description="what it is: replica or service")] = (
        "service"
    )


class MonitoringConfig(ServiceConfig, frozen=True):
    """`dwcp-monitoring`: what it asks, and how often."""

    targets: Annotated[tuple[Target, ...], Meta(description="the processes to ask")] = ()
    probe_ms: Annotated[int, Meta(ge=1000, description="how often each process is asked, ms")] = 10_000
    runs: Annotated[
        Path | None, Meta(description="folder of the operations scripts' run records; none when absent")
    ] = None
    timeout_ms: Annotated[int, Meta(ge=10, description="how long one answer may take, ms")] = 3_000
    lag_warn: Annotated[int, Meta(ge=1, description="entries behind at which a replica earns a warning")] = (
        256
    )

    def validate(self) -> None:
        ServiceConfig.validate(self)
        if self.timeout_ms >= self.probe_ms:
            raise ConfigInvalid("timeout_ms: it must be shorter than probe_ms")
