"""Merkle trees: every leaf proves its own position and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.consensus.crypto import merkle
from dwcp.consensus.crypto.hashes import ZERO, Domain

LEAVES = [merkle.leaf(bytes([i])) for i in range(40)]


@pytest.mark.parametrize("count", range(1, 20))
def test_every_position_has_a_proof(count: int) -> None:
    """Goal: proofs work for every shape of tree. Method: all positions of all small sizes."""
    leaves = LEAVES[:count]
    for position, leaf in enumerate(leaves):
        siblings = merkle.path(leaves, position)
        found = merkle.root_from(leaf, position=position, count=count, siblings=siblings)

        assert found == merkle.root(leaves)


@given(
    count=st.integers(1, 24),
    position=st.integers(0, 23),
    claimed_count=st.integers(1, 24),
    claimed_position=st.integers(0, 23),
    leaf=st.integers(0, 39),
)
def test_no_proof_holds_for_another_claim(
    count: int, position: int, claimed_count: int, claimed_position: int, leaf: int
) -> None:
    """Goal: leaf, position and count are all bound.

    Method: honest path, changed claims, against the bound root.
    """
    position %= count
    leaves = LEAVES[:count]
    root = merkle.bound_root(Domain.BATCH, leaves)
    found = merkle.root_from(
        LEAVES[leaf],
        position=claimed_position,
        count=claimed_count,
        siblings=merkle.path(leaves, position),
    )
    holds = found is not None and merkle.bind(Domain.BATCH, claimed_count, found) == root

    assert holds == ((leaf, claimed_position, claimed_count) == (position, position, count))


def test_malformed_proofs_are_refused() -> None:
    """Goal: junk never raises and never proves. Method: wrong lengths, sizes and ranges."""
    leaves = LEAVES[:5]
    siblings = merkle.path(leaves, 1)

    for bad in (siblings[:-1], (*siblings, ZERO), (siblings[0][:-1], *siblings[1:])):
        assert merkle.root_from(leaves[1], position=1, count=5, siblings=bad) is None
    assert merkle.root_from(leaves[1], position=-1, count=5, siblings=siblings) is None
    assert merkle.root_from(leaves[1], position=5, count=5, siblings=siblings) is None
    assert merkle.root_from(leaves[1], position=0, count=2**40, siblings=siblings) is None
    with pytest.raises(IndexError):
        merkle.path(leaves, 5)


def test_empty_tree_and_domains() -> None:
    """Goal: an empty batch has a root of its own, and no root of one kind passes for another.

    Method: compare.
    """
    assert merkle.root([]) == ZERO
    assert merkle.bound_root(Domain.BATCH, []) != merkle.bound_root(Domain.RESULT, [])
    assert merkle.bound_root(Domain.BATCH, LEAVES[:1]) != merkle.bound_root(Domain.RESULT, LEAVES[:1])
