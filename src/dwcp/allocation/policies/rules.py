"""Placement rules without learning, as scores over a `View`: the rivals that a learned policy has to beat.

Every rule gets the mask and the same facts. `aware` adds what the environment charges (WAN, energy, lateness),
headroom by age of what is known, and a reserve for the more important, by knobs that `tuning` sets on training
streams with one budget. All are written for NumPy and JAX arrays alike (`xp`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dwcp.allocation.env.episode import Array
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.env.weights import WEIGHTS

Rule = Callable[[View, Any], Array]  # [..., N], higher is better

NEVER_DEFER = -1e6
WORTH_FLOOR = 0.005  # dollars: keeps the ratio of price to value finite for the shortest workloads


@dataclass(frozen=True, slots=True)
class Knobs:
    """What tuning may turn. All 0: the blind rule of the textbook."""

    money: float = 0.0  # weight of the placement's price as a share of the contract's value
    reserve: float = 0.0  # share of the free CPU that only higher priorities may use
    headroom: float = 0.0  # share of capacity kept free per hour of age of what is known


def filled(view: View, xp: Any) -> Array:
    """[..., N, R] fractions in use after the placement; 0 where a node has none of a resource."""
    used = view.capacity - view.free + view.demand[..., None, :]
    return xp.where(view.capacity > 0, used / xp.maximum(view.capacity, 1.0), 0.0)


def price(view: View, xp: Any) -> Array:
    """[..., N] dollars that the environment charges for the placement, as far as a policy can know."""
    factor = xp.where(view.priority == 0, 0.3, xp.where(view.priority == 1, 1.0, 3.0))
    late = WEIGHTS.wait * view.late * (view.worth * factor)[..., None]
    return WEIGHTS.wan * view.wan + WEIGHTS.energy * view.energy + late


def random_feasible(view: View, _xp: Any) -> Array:
    return view.coin


def first_fit(view: View, xp: Any) -> Array:
    return -xp.arange(view.coin.shape[-1]) + 0.0 * view.coin


def next_fit(view: View, xp: Any) -> Array:
    """The first from where the last placement was."""
    count = view.coin.shape[-1]
    return -((xp.arange(count) - view.last[..., None]) % count) + 0.0 * view.coin


def best_fit_l1(view: View, xp: Any) -> Array:
    return filled(view, xp).mean(-1)


def best_fit_l2(view: View, xp: Any) -> Array:
    return -xp.sqrt(((1.0 - filled(view, xp)) ** 2).mean(-1))


def worst_fit(view: View, xp: Any) -> Array:
    return -filled(view, xp).mean(-1)


def balance(view: View, xp: Any) -> Array:
    """1 − the standard deviation of the fractions; kube's BalancedAllocation."""
    return 1.0 - filled(view, xp).std(-1)


def kube_default(view: View, xp: Any) -> Array:
    """LeastAllocated + BalancedAllocation over CPU and memory."""
    after = filled(view, xp)[..., :2]
    return (1.0 - after.mean(-1)) + (1.0 - after.std(-1))


def kube_most(view: View, xp: Any) -> Array:
    """MostAllocated + BalancedAllocation over CPU and memory."""
    after = filled(view, xp)[..., :2]
    return after.mean(-1) + (1.0 - after.std(-1))


def tetris(view: View, xp: Any) -> Array:
    """Dot product of what is wanted and what is free, both as fractions of the node."""
    capacity = xp.maximum(view.capacity, 1.0)
    return ((view.demand[..., None, :] / capacity) * (view.free / capacity)).sum(-1)


def nomad(view: View, xp: Any) -> Array:
    """Bin packing: 20 − 10^free CPU − 10^free memory, after the placement."""
    left = 1.0 - filled(view, xp)[..., :2]
    return (20.0 - (10.0**left).sum(-1)) / 18.0


def power_of_two(view: View, xp: Any) -> Array:
    """The less filled of two feasible nodes drawn at random."""
    coin = xp.where(view.mask[..., :-1], view.coin, -1.0)
    count = coin.shape[-1]
    second = xp.sort(coin, -1)[..., max(count - 2, 0)]
    return worst_fit(view, xp) + xp.where(coin >= second[..., None], 10.0, 0.0)


def local_best_fit(view: View, xp: Any) -> Array:
    return best_fit_l2(view, xp) + 10.0 * view.local


def local_kube(view: View, xp: Any) -> Array:
    return kube_default(view, xp) + 10.0 * view.local


def lifetime(view: View, xp: Any) -> Array:
    """NILAS-like: hosts that are busy as long as the workload runs anyway, then the fullest."""
    extends = xp.maximum(view.predicted_s[..., None] - view.exit_in_s, 0.0)
    return -xp.log1p(extends / 600.0) + best_fit_l2(view, xp)


RULES: dict[str, Rule] = {
    "random": random_feasible,
    "first-fit": first_fit,
    "next-fit": next_fit,
    "best-fit-l1": best_fit_l1,
    "best-fit-l2": best_fit_l2,
    "worst-fit": worst_fit,
    "kube-default": kube_default,
    "kube-most": kube_most,
    "tetris": tetris,
    "nomad": nomad,
    "power-of-two": power_of_two,
    "local-best-fit": local_best_fit,
    "local-kube": local_kube,
    "balance": balance,
    "lifetime": lifetime,
}


def policy(rule: Rule, knobs: Knobs = Knobs()) -> Scores:
    """The rule's scores under the knobs, with a column for deferring.

    Deferring is chosen where every node is out of reach of the knobs: where the reserve or the headroom would
    be touched, the node scores below it.
    """

    def scores(view: View, xp: Any) -> Array:
        return _scores(rule, view, (knobs.money, knobs.reserve, knobs.headroom), xp)

    return scores


def policies(rule: Rule, knobs: list[Knobs], windows: int) -> Scores:
    """`knobs` side by side: window w of a run goes by `knobs[w // windows]`. NumPy only."""
    table = np.array([[one.money, one.reserve, one.headroom] for one in knobs])

    def scores(view: View, xp: Any) -> Array:
        own = table[view.row // windows]
        return _scores(rule, view, tuple(own[:, [column]] for column in range(3)), xp)

    return scores


def abreast(candidates: Sequence[Scores], windows: int) -> Scores:
    """Any policies side by side: window w of a run goes by `candidates[w // windows]`. NumPy only."""

    def scores(view: View, xp: Any) -> Array:
        owner = view.row // windows
        found = np.empty((len(owner), view.mask.shape[1]))
        for number in np.unique(owner):
            own = owner == number
            found[own] = candidates[number](View(*(np.asarray(part)[own] for part in view)), xp)
        return found

    return scores


def _scores(rule: Rule, view: View, knobs: tuple[Any, ...], xp: Any) -> Array:
    """`knobs` are numbers, or [A, 1] arrays."""
    money, reserve, headroom = knobs
    base = rule(view, xp)
    worth = xp.maximum(view.worth, WORTH_FLOOR)[..., None]
    ratio = xp.minimum(price(view, xp) / worth, 100.0)
    cpu = view.capacity[..., 0]
    left = view.free[..., 0] - view.demand[..., None, 0]
    aged = left < headroom * view.age_s / 3600.0 * cpu
    spare = (view.free[..., 0].sum(-1) - view.demand[..., 0]) / xp.maximum(cpu.sum(-1), 1.0)
    kept = spare[..., None] < reserve * (2 - view.priority[..., None]) / 2.0
    nodes = base - money * ratio + xp.where(aged | kept, 2 * NEVER_DEFER, 0.0)
    return xp.concatenate([nodes, xp.full_like(nodes[..., :1], NEVER_DEFER)], -1)
