"""Loopback networks for tests, so that they run beside each other and beside a live platform."""

from __future__ import annotations

import itertools
import os
import socket

_taken = itertools.count()  # several worlds of one session run side by side
PORTS = (
    ("0.11", 8080),
    ("0.12", 5000),
    ("0.13", 8080),
    ("0.14", 8081),
    ("0.31", 7070),
    ("1.1", 8080),
    ("1.1", 9000),
)


def free_net() -> str:
    """A /16 of 127 where nobody listens as a replica or as a service: from the process id onwards.

    Workers of one test run have networks of their own, since what was found free may not be in use at once.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = 200 // workers
    for _ in range(share):
        net = f"127.{16 + mine * share + (os.getpid() * 7 + next(_taken)) % share}"
        if all(_is_free(f"{net}.{suffix}", port) for suffix, port in PORTS):
            return net
    raise AssertionError("every loopback network is in use")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
