"""How processes and commands of an installation call its services; nothing of what serves is loaded for it."""

from __future__ import annotations

import sys

import httpx

from dwcp.runtime.config import TlsFiles
from dwcp.runtime.keys import client_context


def client(tls: TlsFiles, *, timeout_s: float = 10.0) -> httpx.AsyncClient:
    """A client that shows this process's certificate and trusts the installation's authority alone."""
    sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]  # else httpcore looks for it at each request
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=60)
    return httpx.AsyncClient(
        verify=client_context(tls), timeout=timeout_s, limits=limits, trust_env=False, follow_redirects=False
    )
