"""Configuration of a consensus node."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from dwcp.runtime.config import ServiceConfig
from dwcp.runtime.errors import ConfigInvalid


class ConsensusConfig(ServiceConfig, frozen=True, kw_only=True):
    """`replica` is this node's id in genesis, which says its addresses; `sign_key` is its voting key."""

    replica: Annotated[int, Meta(ge=0, description="this replica's id in genesis; `name` must be its name")]
    pending_bytes_max: Annotated[
        int, Meta(ge=65_536, description="bundles waiting to be ordered before load is shed, bytes")
    ] = 16_777_216
    client_connections_max: Annotated[
        int, Meta(ge=1, le=65_536, description="connections on the client port")
    ] = 1024

    def validate(self) -> None:
        super().validate()
        if self.sign_key is None:
            raise ConfigInvalid("sign_key: a consensus node needs its voting key")
