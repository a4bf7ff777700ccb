"""The one cost and its weights, fixed before any policy was tuned or trained against it.

Everything is in dollars. Spec: allocation notes §1.6. Load variance is no part of it: balance is a diagnostic.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

COMPONENTS = ("sla", "wait", "wan", "energy", "strand", "mig", "fair")
BOUNDED = ("sla", "wait", "wan", "energy")  # what `bounds.lower_bound` covers


@dataclass(frozen=True, slots=True)
class CostWeights:
    """Factors of the components; 1.0 is the price in dollars as given below."""

    sla: float = 1.0  # of the contract's value, for a workload that never starts in time
    wait: float = 0.25  # of the contract's value, for a start as late as allowed; linear below
    wan: float = 1.0  # of price x GB shipped from the data's site
    energy: float = 1.0  # of kWh x PUE x price, paid at placement for the whole run
    strand: float = 0.01  # per core of free capacity that the 75th percentile shape cannot use; telescopes
    mig: float = 0.04  # per core of a killed workload
    fair: float = 0.05  # of the largest tenant's lost value above the tenants' mean; telescopes


WEIGHTS = CostWeights()
CORE_HOUR_USD = 0.04  # contract value of a core-hour at priority 1
PRIORITY_FACTOR = (0.3, 1.0, 3.0)  # best effort, batch, latency-sensitive
VALUE_HOURS_MAX = 24.0  # a contract's value stops growing there, so that one long run is not the whole cost
BUDGET_S = (4 * 3600, 600, 5)  # how long a start may wait, by priority


def sensitivities() -> dict[str, CostWeights]:
    """The weights, and each component's at one half and at twice."""
    found = {"default": WEIGHTS}
    for field in fields(WEIGHTS):
        for factor, name in ((0.5, "half"), (2.0, "twice")):
            changed = {field.name: getattr(WEIGHTS, field.name) * factor}
            found[f"{field.name}-{name}"] = replace(WEIGHTS, **changed)
    return found
