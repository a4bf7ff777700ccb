"""The compression service's configuration."""

from __future__ import annotations

from dwcp.runtime.config import ServiceConfig


class CompressionConfig(ServiceConfig, frozen=True, kw_only=True):
    """`compression-api`: needs nothing beside what every service needs."""
