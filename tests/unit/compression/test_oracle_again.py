"""The committed table against this host."""

from __future__ import annotations

import os

import msgspec
import pytest

from dwcp.compression import corpus, model_shipped, oracle, oracle_again, oracle_campaign
from dwcp.compression.corpus import Piece
from dwcp.compression.corpus_generated import generate
from dwcp.compression.oracle import Oracle
from dwcp.compression.selector import Selector

PACKED = model_shipped.artefact(model_shipped.MEASUREMENTS)


def test_only_pieces_of_the_table_are_measured_again() -> None:
    """Goal: like is compared with like. Method: a table of one small piece, two pieces; times double on paper."""
    raws = [generate("gen-json", seed=number, size=64 << 10) for number in (1, 2)]
    pieces = [Piece("gen-json", "g", "s", number, raw) for number, raw in enumerate(raws)]
    table = oracle.unpack_table(PACKED)
    row = msgspec.structs.replace(table.rows[0], digest=oracle.digest(raws[0]), size=len(raws[0]))
    row = oracle_campaign.measured_again(Oracle(), row, raws[0])
    doubled = msgspec.structs.replace(row, pack_us=tuple(2 * each for each in row.pack_us))

    found = oracle_again.remeasure(
        msgspec.structs.replace(table, rows=(doubled,)), pieces, Selector(model_shipped.shipped()), most=5
    )

    assert found.pieces == 1
    assert found.then >= 0
    assert found.now >= 0


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_measured_again_the_regret_is_within_half_a_point() -> None:
    """Goal: what the model was judged by is true of this host. Method: 80 pieces of the committed table that its
    files still give, every codec run anew; the regret of the model's choices from both measurements."""
    table = oracle.unpack_table(PACKED)
    pieces = corpus.pieces(model_shipped.held_out(), scale=3.5)

    found = oracle_again.remeasure(table, pieces, Selector(model_shipped.shipped()), most=80)

    if found.pieces < 40:
        pytest.skip(f"only {found.pieces} pieces of the table are found on this host")
    assert abs(found.now - found.then) < 0.5, f"{found}, load {os.getloadavg()}"
