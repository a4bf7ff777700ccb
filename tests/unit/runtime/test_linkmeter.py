"""The kernel's account of a connection, and the rate made of it."""

from __future__ import annotations

import socket
import struct

import pytest

from dwcp.runtime.linkmeter import LinkMeter, read_account


class Told(socket.socket):
    """A connection whose account a test tells: (bytes acknowledged, µs busy)."""

    account = (0, 0)

    def getsockopt(self, *_: int) -> bytes:  # type: ignore[override]
        info = bytearray(192)
        struct.pack_into("=Q", info, 120, self.account[0])
        struct.pack_into("=Q", info, 168, self.account[1])
        return bytes(info)


def test_the_rate_is_what_was_acknowledged_while_busy() -> None:
    """Goal: 10 Mbit/s, whatever was idle. Method: one connection, busy for half of each second."""
    now = [0.0]
    meter = LinkMeter(clock=lambda: now[0])
    with Told() as connection:
        meter.watch(connection)
        for second in range(1, 9):
            now[0] = float(second)
            connection.account = (second * 625_000, second * 500_000)
            rate = meter.rate_bps

    assert rate == pytest.approx(10e6)


def test_small_questions_do_not_make_a_link_slow() -> None:
    """Goal: a request's time is that of its acknowledgement. Method: 1 KiB a second, each busy for 40 ms; then
    one stretch at 80 Mbit/s counts alone."""
    now = [0.0]
    meter = LinkMeter(clock=lambda: now[0], first_bps=100e6)
    with Told() as connection:
        meter.watch(connection)
        for second in range(1, 9):
            now[0] = float(second)
            connection.account = (second * 1024, second * 40_000)
            assert meter.rate_bps == 100e6
        now[0] = 9.0
        connection.account = (8 * 1024 + 10_000_000, 320_000 + 1_000_000)

        assert meter.rate_bps == pytest.approx(80e6)


def test_connections_that_are_busy_at_once_share_the_link() -> None:
    """Goal: their times are not added. Method: three at a third of 30 Mbit/s each, always busy."""
    now = [0.0]
    meter = LinkMeter(clock=lambda: now[0])
    with Told() as a, Told() as b, Told() as c:
        for each in (a, b, c):
            meter.watch(each)
        for second in range(1, 9):
            now[0] = float(second)
            for each in (a, b, c):
                each.account = (second * 1_250_000, second * 1_000_000)
            rate = meter.rate_bps

    assert rate == pytest.approx(30e6)


def test_closed_connections_are_forgotten() -> None:
    """Goal: no error from a socket that is gone. Method: close a real one, ask."""
    meter = LinkMeter(clock=iter(range(100)).__next__, first_bps=7e6)  # type: ignore[arg-type]
    connection = socket.socket()
    meter.watch(connection)
    connection.close()

    assert meter.rate_bps == 7e6
    assert read_account(connection) is None
