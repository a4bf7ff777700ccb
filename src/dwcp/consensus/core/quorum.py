"""How many replicas make a decision: the arithmetic of Byzantine quorums, in integers.

It must not know what is voted on.
"""

from __future__ import annotations


def faults(n: int) -> int:
    """The Byzantine replicas that `n` tolerate: the greatest f with n ≥ 3f + 1."""
    return (n - 1) // 3


def quorum(n: int, f: int) -> int:
    """⌈(n+f+1)/2⌉: two quorums share a correct replica. (`2f+1` is too few unless n = 3f+1.)"""
    return (n + f + 2) // 2


def weak_quorum(n: int, f: int) -> int:
    """f+1 of n: at least one of them is correct."""
    return min(n, f + 1)


def strong_quorum(n: int, f: int) -> int:
    """2f+1 of n: f+1 of them are correct, so every correct replica will hear a weak quorum."""
    return min(n, 2 * f + 1)
