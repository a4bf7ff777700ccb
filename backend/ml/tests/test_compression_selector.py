"""Validates the codec selector's model with numbers and limits, on this host.

    cd backend/ml && python3 -m tests.test_compression_selector [--full]

Checks that the artefact belongs together, what it scored out of fold, that training gives the same bits twice, how
long a decision takes, and, measured anew on files that training never saw, its regret beside the table's. `--full` also
makes the shipped model again from its table and compares the files, and measures pieces of the table again: the regret
has to come out within half a point (some minutes).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import environment

if __name__ == "__main__":
    environment.enter("tests.test_compression_selector")

LIMITS = {  # name: (what is told, most or least, limit)
    "regret_a_percent": ("most", 4.0),
    "regret_b_percent": ("most", 5.0),
    "table_minus_model_a_points": ("least", 0.3),
    "digests_equal_twice": ("least", 1),
    "decision_us_p50": ("most", 400.0),
    "fresh_regret_percent": ("most", 8.0),
    "fresh_model_minus_table_points": ("most", 2.0),
    "fresh_median_ratio_error": ("most", 0.2),
}
FRESH_PIECES = 24
FRESH_SECONDS = 90.0
AGAIN_PIECES = 80
TABLE_SCALE = 3.5  # of the corpus that the committed table was measured from


def main() -> int:
    from dwcp.compression.errors import TransferError

    arguments = parse()
    try:
        found = {**told(), **twice(), **speed(), **fresh(arguments.seconds)}
        limits = dict(LIMITS)
        if arguments.full:
            found |= {**again(), **remeasured()}
            limits["shipped_digest_again"] = ("least", 1)
            limits["remeasured_points_off"] = ("most", 0.5)
    except TransferError as failed:
        print(f"test_compression_selector: {failed}", file=sys.stderr)
        return 2
    bad = [name for name, (kind, limit) in limits.items() if beyond(found[name], kind, limit)]
    for name, (kind, limit) in limits.items():
        print(f"{'FAIL' if name in bad else 'ok  '} {name} = {found[name]} (at {kind} {limit})")
    print(json.dumps({"passed": not bad, **found}))
    return 1 if bad else 0


def beyond(value: float, kind: str, limit: float) -> bool:
    return not (value <= limit if kind == "most" else value >= limit)


def told() -> dict[str, Any]:
    """What the manifest says about protocols A and B; loading it checks digests and shapes."""
    from dwcp.compression import model, model_shipped
    from dwcp.compression.train_judging import figure

    facts = model_shipped.facts()[1].manifest
    if facts.trained_on["measurements"] != model.digest(model_shipped.artefact(model_shipped.MEASUREMENTS)):
        raise AssertionError("the shipped model was not made from the shipped table")
    figures = facts.figures
    a, b, table = (
        100 * figures[name] for name in ("regret_gmean_A", "regret_gmean_B", figure("A", "table", "gmean"))
    )
    return {
        "measurements": int(figures["measurements"]),
        "regret_a_percent": round(a, 2),
        "regret_b_percent": round(b, 2),
        "table_minus_model_a_points": round(table - a, 2),
    }


def twice() -> dict[str, Any]:
    """Two quick trainings on a part of the table."""
    import msgspec

    from dwcp.compression import model_shipped, oracle, train

    table = oracle.unpack_table(model_shipped.artefact(model_shipped.MEASUREMENTS))
    packed = oracle.pack_table(msgspec.structs.replace(table, rows=table.rows[:80]))
    digests = {train.from_bytes(packed, quick=True).made.digest for _ in range(2)}
    return {"digests_equal_twice": int(len(digests) == 1)}


def speed() -> dict[str, Any]:
    from dwcp.compression import corpus_generated, model_shipped
    from dwcp.compression.selector import Selector, selection_seconds

    raw = corpus_generated.generate("gen-json", seed=1, size=1 << 20)
    taken = selection_seconds(Selector(model_shipped.shipped()), raw, cpu=time.thread_time)
    return {"decision_us_p50": round(taken * 1e6, 1)}


def fresh(seconds: float) -> dict[str, Any]:
    """Pieces of files that training never sees, measured now; the model's choices, not raced, beside the table's."""
    import numpy as np

    from dwcp.compression import features, model_shipped, oracle, train_data
    from dwcp.compression.costs import Link, Mode, Terms
    from dwcp.compression.selector import Selector

    rows, raws = measured(seconds)
    selector = Selector(model_shipped.shipped())
    data = train_data.arrays(tuple(rows))
    mine, table = [], []
    for rate in (rate for rate in train_data.RATES_BPS if rate <= train_data.MARKED_BPS):
        terms = Terms(Link(rate), Mode.BULK)
        decided = [selector.decide(raw, terms=terms, shared_blocks=1e9) for raw in raws]
        mine.append(train_data.log_regret(data, np.array([each.place for each in decided]), rate_bps=rate))
        table.append(train_data.log_regret(data, np.array([each.table for each in decided]), rate_bps=rate))
    predicted = np.array([selector.model.predict(features.extract(raw)) for raw in raws])
    third = len(oracle.SHIPPED) - 1
    regret, base = (100 * float(np.expm1(np.mean(each))) for each in (mine, table))
    return {
        "fresh_pieces": len(rows),
        "fresh_regret_percent": round(regret, 2),
        "fresh_table_percent": round(base, 2),
        "fresh_model_minus_table_points": round(regret - base, 2),
        "fresh_median_ratio_error": round(float(np.median(np.abs(predicted - data.y)[:, :third])), 3),
    }


def measured(seconds: float) -> tuple[list[Any], list[bytes]]:
    from dwcp.compression import corpus, features, oracle

    source = oracle.Oracle()
    rows, raws = [], []
    begun = time.monotonic()
    for name, raw in itertools.islice(unseen(), FRESH_PIECES):
        values = source.measure(raw, patience_s=0.05)
        described = tuple(float(value) for value in features.extract(raw))
        rows.append(oracle.Measurement(oracle.digest(raw), name, name, name, 0, len(raw), *values, described))
        raws.append(raw)
        if time.monotonic() - begun > seconds and len(rows) >= 8:
            break
    print(f"measured {len(rows)} fresh pieces of {corpus.ROOTS[0]}", flush=True)
    return rows, raws


def unseen() -> Iterator[tuple[str, bytes]]:
    """(kind, 1 MiB or less) of reserved groups, kinds in turn."""
    from dwcp.compression import corpus

    found = corpus.sources()
    lanes = [
        ((kind, corpus.load(each, limit=1 << 20)) for each in sources if corpus.reserved(each.group))
        for kind, sources in sorted(found.items())
    ]
    for round_of in itertools.zip_longest(*lanes):
        yield from (each for each in round_of if each is not None and len(each[1]) > 100_000)


def again() -> dict[str, Any]:
    from dwcp.compression import model_shipped, train

    made = train.from_bytes(model_shipped.artefact(model_shipped.MEASUREMENTS), report=print)
    same = made.made == model_shipped.made()
    return {"shipped_digest_again": int(same)}


def remeasured() -> dict[str, Any]:
    from dwcp.compression import corpus, model_shipped, oracle, oracle_again
    from dwcp.compression.selector import Selector

    table = oracle.unpack_table(model_shipped.artefact(model_shipped.MEASUREMENTS))
    pieces = corpus.pieces(model_shipped.held_out(), scale=TABLE_SCALE)
    found = oracle_again.remeasure(table, pieces, Selector(model_shipped.shipped()), most=AGAIN_PIECES)
    return {"remeasured_pieces": found.pieces, "remeasured_points_off": round(abs(found.now - found.then), 2)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="also make the shipped model again")
    parser.add_argument(
        "--seconds", type=float, default=FRESH_SECONDS, help="how long to measure fresh pieces"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
