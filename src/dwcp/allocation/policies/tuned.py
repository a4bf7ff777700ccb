"""The knobs and weights that tuning found, as data: `tuned.json` beside this file, made by the benchmark's `--tune`.

One set per load and kind of information. A rule without an entry is used blind.
"""

from __future__ import annotations

import msgspec
import numpy as np

from dwcp.allocation.env.view import Scores
from dwcp.allocation.policies.linear import linear
from dwcp.allocation.policies.rules import RULES, Knobs, policy

LINEAR = "cem-linear"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tuned policy: `knobs` of a rule, or the linear scorer's `weights`."""

    cost: float  # dollars per training window
    steps: int  # environment steps that tuning took
    knobs: dict[str, float] = {}
    weights: list[float] = []
    command: str = ""  # what made this one, where it was tuned apart from its set


class Tunings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Policies tuned together, by name; `command` is what made them."""

    command: str
    entries: dict[str, Entry]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`sets` by setting (see `setting`)."""

    sets: dict[str, Tunings]

    def entries(self, load: float, *, stale: bool) -> dict[str, Entry]:
        """Of this setting; empty where nothing was tuned for it."""
        found = self.sets.get(setting(load, stale=stale))
        return found.entries if found else {}


class TunedMalformed(ValueError):
    """The table of tuned policies cannot be used: make it again with the benchmark's `--tune`."""


def setting(load: float, *, stale: bool) -> str:
    return f"{'stale' if stale else 'fresh'}-{load:g}"


def parse(text: bytes) -> Table:
    """Raises `TunedMalformed`."""
    try:
        return msgspec.json.decode(text, type=Table)
    except msgspec.MsgspecError as fault:
        raise TunedMalformed(str(fault)) from fault


def causal_policies(entries: dict[str, Entry]) -> dict[str, Scores]:
    """Every policy that needs no learning, by name: `NAME` blind, `NAME+` tuned, and the linear scorer.

    Raises `TunedMalformed`.
    """
    found = {name: policy(rule) for name, rule in RULES.items()}
    for name, entry in entries.items():
        if name == LINEAR:
            found[LINEAR] = _linear(entry)
        elif name in RULES:
            found[f"{name}+"] = policy(RULES[name], _knobs(name, entry))
        else:
            raise TunedMalformed(f"{name[:40]!r}: no such policy")
    return found


def _linear(entry: Entry) -> Scores:
    try:
        return linear(np.array(entry.weights))
    except ValueError as fault:
        raise TunedMalformed(f"{LINEAR}: {fault}") from fault


def _knobs(name: str, entry: Entry) -> Knobs:
    try:
        return Knobs(**entry.knobs)
    except TypeError as fault:
        raise TunedMalformed(f"{name}: {fault}") from fault
