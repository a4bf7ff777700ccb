"""The compression service's configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from dwcp.runtime.config import Port, ServiceConfig


class CompressionConfig(ServiceConfig, frozen=True, kw_only=True):
    """`compression-api`: what it takes at once, and what one stream may be."""

    rated_per_s: Annotated[
        float, Meta(gt=0, description="decisions a second that are answered; more get 429 and a time to wait")
    ] = 2500.0
    streams_max: Annotated[int, Meta(ge=1, le=64, description="streams side by side")] = 8
    stream_bytes_max: Annotated[
        int, Meta(ge=1, description="uncompressed bytes of one stream, either way")
    ] = 1 << 36
    stream_seconds_max: Annotated[float, Meta(gt=0, description="how long one stream may take, s")] = 3600.0
    dictionary_days: Annotated[
        float, Meta(gt=0, le=3650, description="how long a dictionary lives after its training, days")
    ] = 30.0
    dictionaries_max: Annotated[int, Meta(ge=1, description="dictionaries of one tenant")] = 64
    staging_port: Annotated[
        Port, Meta(description="where a staging instance answers while a model is deployed")
    ] = 5001
    staging: Annotated[
        bool, Meta(description="this is a staging instance: it ends when its standard input does")
    ] = False
