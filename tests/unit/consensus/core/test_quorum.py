"""Quorum arithmetic and the committee."""

from __future__ import annotations

import pytest

from dwcp.consensus.core.committee import Committee, leader_of
from dwcp.consensus.core.quorum import faults, quorum, strong_quorum, weak_quorum


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, (0, 1, 1, 1)),
        (4, (1, 3, 2, 3)),
        (5, (1, 4, 2, 3)),
        (6, (1, 4, 2, 3)),
        (7, (2, 5, 3, 5)),
        (10, (3, 7, 4, 7)),
    ],
)
def test_table(n: int, expected: tuple[int, int, int, int]) -> None:
    """Goal: f, q, f+1, 2f+1 as published. Method: table."""
    f = faults(n)
    assert (f, quorum(n, f), weak_quorum(n, f), strong_quorum(n, f)) == expected


def test_leaders_go_round_from_replica_zero() -> None:
    """Goal: leader(view) = (view - 1) mod n. Method: nine views of four replicas."""
    assert [leader_of(view, 4) for view in range(1, 10)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_a_committee_knows_its_others() -> None:
    """Goal: sorted peers without oneself. Method: build one; refuse an outsider."""
    committee = Committee(4, 2)
    assert committee.others == (0, 1, 3)
    assert committee.has(3)
    assert not committee.has(4)
    assert not committee.has(-1)
    with pytest.raises(ValueError, match="no member"):
        Committee(4, 4)
