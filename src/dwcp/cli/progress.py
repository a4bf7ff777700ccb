"""How progress is worded: bytes, rate, and a time left that follows the last seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dwcp.compression.pacing import Outlook

if TYPE_CHECKING:
    from rich.progress import Progress

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def meter(bars: Progress, what: str, total: int | None) -> Callable[[int], None]:
    """Adds a bar; the function moves it to so many bytes. `total` None: unknown, as of a pipe."""
    task = bars.add_task(what, total=total, state="")
    outlook = Outlook(now_s=time.monotonic())

    def show(done: int) -> None:
        bars.update(
            task, completed=done, state=describe(done, total, outlook=outlook, now_s=time.monotonic())
        )

    return show


def describe(done: int, total: int | None, *, outlook: Outlook, now_s: float) -> str:
    """For example "12.0 MiB, 3.1 MiB/s, 8 s left"."""
    rate = outlook.rate(done, now_s=now_s)
    parts = [amount(done)]
    if rate is not None:
        parts.append(f"{amount(rate)}/s")
    left = outlook.left_s(done, total, now_s=now_s) if total is not None else None
    if left is not None:
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def amount(size: float) -> str:
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
