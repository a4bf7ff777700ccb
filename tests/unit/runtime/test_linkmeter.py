"""The kernel's account of a connection, and the rate made of it."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from dwcp.runtime.linkmeter import LinkMeter, read_account


class Told(socket.socket):
    """A connection whose account a test tells: (bytes acknowledged, µs busy), and what is under way."""

    account = (0, 0)
    flying_bytes = 1 << 20  # unless a test says so the link is what it waits for
    unsent_bytes = 0
    rtt_min_us = 200
    threshold = 0x7FFFFFFF

    def getsockopt(self, *_: int) -> bytes:  # type: ignore[override]
        info = bytearray(192)
        struct.pack_into("=I", info, 16, 1024)
        struct.pack_into("=I", info, 24, self.flying_bytes // 1024)
        struct.pack_into("=I", info, 76, self.threshold)
        struct.pack_into("=Q", info, 120, self.account[0])
        struct.pack_into("=II", info, 144, self.unsent_bytes, self.rtt_min_us)
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


def test_what_is_slow_for_our_sake_never_lowers_the_belief() -> None:
    """Goal: a burst whose last acknowledgement is late, and a window that grows, say nothing against a link.
    Method: 256 KiB in 100 ms, nothing on its way between; then as much in each of ten round trips of 20 ms,
    with bytes that wait for a window without bound; both slower than the first guess."""
    now = [0.0]
    meter = LinkMeter(clock=lambda: now[0], first_bps=100e6)
    with Told() as connection:
        connection.flying_bytes = 0
        meter.watch(connection)
        for step in range(1, 9):
            now[0] += 0.1
            connection.account = (step << 18, step * 100_000)
            assert meter.rate_bps == 100e6

        connection.rtt_min_us, connection.flying_bytes, connection.unsent_bytes = 20_000, 1 << 16, 1 << 20
        for step in range(1, 11):
            now[0] += 0.02
            connection.account = ((8 << 18) + (step << 16), 800_000 + step * 20_000)
            assert meter.rate_bps == 100e6


def test_a_window_that_met_its_limit_tells_the_rate() -> None:
    """Goal: a link with a short queue is known too. Method: the same window, but bounded and never without bytes
    that wait for it."""
    now = [0.0]
    meter = LinkMeter(clock=lambda: now[0], first_bps=100e6)
    with Told() as connection:
        connection.rtt_min_us, connection.flying_bytes, connection.unsent_bytes = 20_000, 1 << 16, 1 << 20
        connection.threshold = 45
        meter.watch(connection)
        for step in range(1, 11):
            now[0] += 0.02
            connection.account = (step << 16, step * 20_000)
            rate = meter.rate_bps

    assert rate == pytest.approx((1 << 16) * 8 / 0.02)


def test_a_burst_shows_what_a_link_gives_at_least() -> None:
    """Goal: a belief that is too low is raised by what passed. Method: 1 MiB in 10 ms, nothing on its way after."""
    now = [0.0]
    meter = LinkMeter(clock=lambda: now[0], first_bps=100e6)
    with Told() as connection:
        connection.flying_bytes = 0
        meter.watch(connection)
        now[0] = 0.03
        connection.account = (1 << 20, 10_000)

        assert meter.rate_bps == pytest.approx((1 << 23) / 0.01)
        now[0] = 0.06
        connection.account = (1 << 21, 30_000)  # slower, for our sake

        assert meter.rate_bps == pytest.approx((1 << 23) / 0.01)


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


def test_a_leap_of_the_link_is_believed_at_its_second_sample() -> None:
    """Goal: no slow average where the link became another one. Method: 80 Mbit/s for a while, then 8."""
    now = [0.0]
    meter = LinkMeter(clock=lambda: now[0])
    with Told() as connection:
        meter.watch(connection)
        rates = []
        for bps in [80e6] * 5 + [8e6] * 2:
            acked, busy_us = connection.account
            now[0] += 0.5
            connection.account = (acked + int(bps / 16), busy_us + 500_000)
            rates.append(meter.rate_bps)

    assert rates[4] == pytest.approx(80e6)
    assert rates[6] == pytest.approx(8e6)


def test_a_push_waits_for_the_first_sample_and_no_longer() -> None:
    """Goal: the second pack is chosen at a rate that was seen. Method: acknowledgements that come by and by;
    a link that says nothing for 0.3 s; a kernel that does not tell."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.05
        return now[0]

    with Told() as connection, Told() as silent:
        meter = LinkMeter(clock=clock, first_bps=5e6)
        meter.watch(connection)
        connection.account = (100_000, 100_000)
        asyncio.run(meter.shown())
        assert meter.rate_bps == pytest.approx(8e6, rel=0.01)

        quiet = LinkMeter(clock=clock, first_bps=5e6)
        quiet.watch(silent)
        begun = now[0]
        asyncio.run(quiet.shown())
        assert 0.3 < now[0] - begun < 1.0
        assert quiet.rate_bps == 5e6
        begun = now[0]
        asyncio.run(quiet.shown())  # it was waited for already
        assert now[0] - begun < 0.2

        silent.flying_bytes = 0
        idle = LinkMeter(clock=clock, first_bps=5e6)
        idle.watch(silent)
        begun = now[0]
        asyncio.run(idle.shown())  # all that was sent is there
        assert now[0] - begun < 0.25
    asyncio.run(LinkMeter(clock=clock).shown())


def test_a_link_that_is_slow_and_never_idle_is_known() -> None:
    """Goal: pieces of a stretch add up, however often one asks. Method: 0.8 Mbit/s, asked every 20 ms."""
    now = [0.0]
    meter = LinkMeter(clock=lambda: now[0], first_bps=100e6)
    with Told() as connection:
        meter.watch(connection)
        for step in range(1, 41):
            now[0] = step * 0.0201
            connection.account = (step * 2010, step * 20_100)
            rate = meter.rate_bps

    assert rate == pytest.approx(0.8e6, rel=0.01)
