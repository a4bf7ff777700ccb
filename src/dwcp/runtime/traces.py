"""Opens trace files for measuring allocation; what is in them, `dwcp.allocation.traces.records` reads.

`azure:DIR`, `openb:DIR`, `swf:FILE` and `generated:NAME` name a trace on a command line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dwcp.allocation.fleet import Floats
from dwcp.allocation.traces import records as readers
from dwcp.allocation.traces import splits
from dwcp.allocation.traces.jobs import Records
from dwcp.allocation.traces.world import parse_prices
from dwcp.runtime.errors import Exit, RuntimeFault

AZURE_FILES = ("v1.dev.txt", "v1.dev.c2100000.txt", "flav_map.txt", "v1.interval_map.txt")
OPENB_FILE = "openb_pod_list_default.csv"
AZURE_SEED = 2017  # places lifetimes within their bins, the same for all who measure


class TraceUnreadable(RuntimeFault):
    """The trace cannot be read: give azure:DIR, openb:DIR, swf:FILE or generated:NAME; the message names the file."""

    exit_code = Exit.USAGE


def load(name: str, split: str, *, seed: int, count: int) -> Records:
    """The split's part of the trace; `seed` and `count` matter to generators only. Raises `TraceUnreadable`."""
    kind, _colon, place = name.partition(":")
    try:
        if kind == "generated":
            return splits.generated(place, split, seed, count=count)
        return splits.recorded(_recorded(kind, Path(place)), split)
    except (OSError, UnicodeDecodeError, ValueError) as fault:
        raise TraceUnreadable(f"{name}: {fault}") from fault


def load_prices(place: Path) -> Floats:
    """[S, S] dollars per GB between regions. Raises `TraceUnreadable`."""
    try:
        return parse_prices(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as fault:
        raise TraceUnreadable(f"{place}: {fault}") from fault


def _recorded(kind: str, place: Path) -> Records:
    if kind == "azure":
        texts = [(place / name).read_text(encoding="utf-8") for name in AZURE_FILES]
        return readers.azure(*texts, rng=np.random.default_rng(AZURE_SEED))
    if kind == "openb":
        return readers.openb((place / OPENB_FILE).read_text(encoding="utf-8"))
    if kind == "swf":
        return readers.swf(place.read_text(encoding="utf-8"))
    raise ValueError("the kinds are azure:DIR, openb:DIR, swf:FILE and generated:NAME")
