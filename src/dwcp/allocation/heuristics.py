"""The placement rules by the names that requests and configurations may give.

They are the rules that learned policies are measured against (`policies.rules`): `NAME` blind as in the textbook,
`NAME+` with the knobs that tuning found, and the tuned linear scorer. Nothing else scores where no model does.
"""

from __future__ import annotations

from importlib.resources import files

from dwcp.allocation.env.view import Scores
from dwcp.allocation.policies import tuned
from dwcp.allocation.policies.rules import RULES, Knobs, policy

LOAD = 0.95  # at which tuned rules are compared
RANDOM = frozenset({"random", "power-of-two"})  # rules that draw: never what a fallback should be
ALIASES = {"best-fit": "best-fit-l2", "local-site-first": "local-best-fit"}
_BALANCE_WAN = Knobs(money=1.0)


def shipped() -> tuned.Table:
    """The tuned knobs and weights of this release. Raises `TunedMalformed`."""
    return tuned.parse((files("dwcp.allocation.policies") / "tuned.json").read_bytes())


def named(table: tuned.Table) -> dict[str, Scores]:
    """Every policy without learning by its name; older names stay valid."""
    found = tuned.causal_policies(table.entries(LOAD, stale=False))
    found["balance-wan"] = policy(RULES["balance"], _BALANCE_WAN)
    return found | {alias: found[name] for alias, name in ALIASES.items()}


def best_rule(table: tuned.Table) -> str:
    """The tuned rule that was cheapest on training streams, `balance-wan` where none was tuned.

    A rule, not the linear scorer: fitted weights promise nothing outside of what they were fitted on.
    """
    entries = table.entries(LOAD, stale=False)
    rules = {name: entry.cost for name, entry in entries.items() if name in RULES and name not in RANDOM}
    return min(rules, key=lambda name: rules[name]) + "+" if rules else "balance-wan"


def draws(name: str) -> bool:
    """Whether the policy needs noise."""
    return name.removesuffix("+") in RANDOM


TABLE = shipped()
HEURISTICS: dict[str, Scores] = named(TABLE)
DEFAULT = best_rule(TABLE)
