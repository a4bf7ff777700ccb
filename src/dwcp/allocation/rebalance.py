"""Bounded moves that lower the fleet's cost, or that empty nodes; and the judgement of such a plan.

Costs are those of `env.weights` (allocation notes §1.6): stranded cores, energy over a horizon, work that
waits because nothing has room, and headroom: cores of the fullest node that would find no place if it
failed (§1.7), priced like killed ones. Against them stand the moves: data over the wide area network and
what is run again. A move holds its target before it leaves its source, and the moves are made one after the
other, so that no step needs more than there is.

Shapes: N nodes, R resources in the order of `fleet.RESOURCES`, M movable entries; int64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import numpy as np

from dwcp.allocation.env.weights import CORE_HOUR_USD, PRIORITY_FACTOR, WEIGHTS
from dwcp.allocation.errors import PlanRefused as PlanRefused
from dwcp.allocation.feasibility import enough
from dwcp.allocation.fleet import Bools, FleetMalformed, Floats, Ints, fleet_of, quantities
from dwcp.api.allocator import NODES_MAX
from dwcp.api.rebalance import (
    BYTES_MAX,
    MOVES_MAX,
    WAITING_MAX,
    WORK_MAX,
    Cost,
    Move,
    Plan,
    PlanRequest,
    Waiting,
    Work,
)
from dwcp.api.workloads import NodeStatus

CORES = 0  # column of the cores, in thousandths
TRIED = 12  # of the single moves that look best, per step, are priced in full
ROOMS_TRIED = 12  # nodes on which room is made for what waits, per step
ROWS_AT_ONCE = 256  # bounds the memory of a step
TABLE_MAX = 8_000_000  # movable entries times nodes
SHAPE_QUANTILE = 75  # of the demands: free capacity that cannot hold it is stranded
HEADROOM_WEIGHT = WEIGHTS.mig  # dollars per core that would find no place
DOLLAR_DIGITS = 9

EVERY = slice(None)
Step = list[tuple[int, int]]  # (row of the work, row of the target), carried out together


@dataclass(frozen=True, slots=True)
class Board:
    """One state of the fleet. The last block is constant over a plan."""

    used: Ints  # [N, R]
    free: Ints  # [N, R]; nothing on a node that takes no work
    at: Ints  # [M] node row of each movable entry
    capacity: Ints  # [N, R]
    open: Bools  # [N] takes work
    demand: Ints  # [M, R]
    work: tuple[Work, ...]
    allowed: Bools  # [M, N] by its pin
    wan_usd: Floats  # [M, N] of fetching its data there
    again_usd: Floats  # [M] of running it again
    fixed: tuple[tuple[int, Ints], ...]  # node row and demand of what stays
    shape: Ints  # [R]
    waiting: tuple[Waiting, ...]
    waiting_demand: Ints  # [K, R]
    names: tuple[str, ...]  # [N]
    sites: tuple[str, ...]  # [N]
    energy_usd: Floats  # [N] per core over the horizon
    horizon_h: float

    def fits(self, rows: Ints | slice, nodes: Ints | slice = EVERY) -> Bools:
        """[m, n]: where each of `rows` could go while it still holds its old place."""
        room = enough((self.capacity - self.used)[nodes], self.demand[rows]) & self.open[nodes]
        elsewhere = self.at[rows][:, None] != np.arange(len(self.names))[nodes]
        return np.asarray(room & self.allowed[rows][:, nodes] & elsewhere, dtype=np.bool_)

    def after(self, step: Step) -> Board:
        used, at = self.used.copy(), self.at.copy()
        for row, target in step:
            used[target] += self.demand[row]
            used[at[row]] -= self.demand[row]
            at[row] = target
        return replace(self, used=used, at=at, free=_free(self.capacity, used, self.open))


def _free(capacity: Ints, used: Ints, open_: Bools) -> Ints:
    return np.where(open_[:, None], np.maximum(capacity - used, 0), 0)


# --------------------------------------------------------------------------- planning


def plan(wanted: PlanRequest) -> Plan:
    """The moves to make, in order. Raises `FleetMalformed` for a request that cannot be."""
    board = board_of(wanted)
    moves, end, last = _emptied(wanted, board) if wanted.leave else _improved(wanted, board)
    return _plan(board, end, moves, reason=last if not moves else "")


def _improved(wanted: PlanRequest, board: Board) -> tuple[tuple[Move, ...], Board, str]:
    """Greedy: the step that gains most, until none gains enough or the budget is spent."""
    moves: tuple[Move, ...] = ()
    moved: frozenset[int] = frozenset()  # once is enough: two moves of one workload are one worse plan
    table = _table(board)
    reason = f"no move gains ${wanted.gain_min_usd:g} or more"
    while True:
        before = _price(board)
        best: tuple[float, Step] | None = None
        for step in _steps(board, table, moved):
            gain = before - _price(board.after(step)) - _toll(board, step)
            if gain < wanted.gain_min_usd * len(step) or (best is not None and gain <= best[0]):
                continue
            if _affords(wanted, moves + _moves(board, step)):
                best = gain, step
            else:
                reason = f"what would gain needs more than {_budget(wanted)}"
        if best is None:
            return moves, board, reason
        moves += _moves(board, best[1])
        moved |= {row for row, _ in best[1]}
        changed = np.unique([[int(board.at[row]), target] for row, target in best[1]])
        board = board.after(best[1])
        table[:, changed] = _quick(board, EVERY, changed)
        table[sorted(moved)] = np.inf


def _emptied(wanted: PlanRequest, board: Board) -> tuple[tuple[Move, ...], Board, str]:
    """Everything movable off the leaving nodes: urgent and large work first, each where it costs least."""
    leaving = _rows(wanted)
    rows = [row for row in range(len(board.work)) if int(board.at[row]) in leaving]
    rows.sort(key=lambda row: (-board.work[row].priority, -int(board.demand[row, CORES]), row))
    moves: tuple[Move, ...] = ()
    reason = f"nothing on {', '.join(wanted.leave)} can be moved" if not rows else ""
    for row in rows:
        steps = _shortlist(board, row)
        if not steps:
            reason = reason or f"no other node has room for {board.work[row].workload}"
            continue
        step = min(steps, key=partial(_whole, board))
        if not _affords(wanted, moves + _moves(board, step)):
            reason = reason or f"{board.work[row].workload} needs more than {_budget(wanted)}"
            continue
        moves += _moves(board, step)
        board = board.after(step)
    return moves, board, reason


def _shortlist(board: Board, row: int) -> list[Step]:
    """The feasible targets of one entry that look cheapest."""
    quick = _quick(board, np.array([row]))[0]
    order = np.argsort(quick, kind="stable")[:TRIED]
    return [[(row, int(target))] for target in order if np.isfinite(quick[target])]


def _whole(board: Board, step: Step) -> float:
    return _price(board.after(step)) + _toll(board, step)


def _table(board: Board) -> Floats:
    """[M, N] `_quick` of everything, some rows at a time."""
    table = np.full((len(board.work), len(board.names)), np.inf)
    for start in range(0, len(table), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        table[some] = _quick(board, some)
    return table


def _steps(board: Board, table: Floats, moved: frozenset[int]) -> list[Step]:
    """What is worth pricing: single moves that look best, those off the fullest node, and room for who waits."""
    if not table.size:
        return []
    target = table.argmin(axis=1)
    look = table[np.arange(len(table)), target] + _left(board, EVERY)
    possible = np.flatnonzero(np.isfinite(look))
    order = possible[np.argsort(look[possible], kind="stable")]
    relief = order[board.at[order] == _fullest(board)]
    rows = dict.fromkeys([*order[:TRIED].tolist(), *relief[:TRIED].tolist()])
    return [[(row, int(target[row]))] for row in rows] + _rooms(board, moved)


def _rooms(board: Board, moved: frozenset[int]) -> list[Step]:
    """For the first waiting workload that fits nowhere: on each of the emptiest nodes, what has to go."""
    pins = [entry.site for entry in board.waiting]
    wanting = _unplaced(board.free, board.waiting_demand, pins, board.sites)
    if not wanting:
        return []
    demand = board.waiting_demand[wanting[0]]
    large = (board.capacity >= demand).all(axis=1) & board.open & _at_site(pins[wanting[0]], board.sites)
    nodes = sorted(np.flatnonzero(large).tolist(), key=lambda node: -int(board.free[node, CORES]))
    made = [_room_on(board, node, demand, moved) for node in nodes[:ROOMS_TRIED]]
    return [step for step in made if step]


def _room_on(board: Board, node: int, demand: Ints, moved: frozenset[int]) -> Step:
    """The smallest entries first, each to the place that costs least, until `demand` fits; else nothing."""
    step: Step = []
    here = [row for row in np.flatnonzero(board.at == node).tolist() if row not in moved]
    for row in sorted(here, key=lambda row: (int(board.demand[row, CORES]), row)):
        if bool(enough(board.free, demand)[node]):
            break
        found = _shortlist(board, row)[:1]
        if found:
            step, board = step + found[0], board.after(found[0])
    return step if bool(enough(board.free, demand)[node]) else []


# --------------------------------------------------------------------------- judging


def judge(wanted: PlanRequest, moves: Sequence[Move], *, at_a_loss: bool = False) -> Plan:
    """The plan that these moves are, priced here. Raises `PlanRefused` and `FleetMalformed`.

    `at_a_loss`: they need not gain anything; somebody wants them for reasons of their own. Whoever carries
    out another's plan asks this first, with a request made from what it knows itself.
    """
    start = board = board_of(wanted)
    rows = {(entry.workload, entry.node): row for row, entry in enumerate(board.work)}
    nodes = {node.name: row for row, node in enumerate(wanted.nodes)}
    leaving = _rows(wanted)
    kept: tuple[Move, ...] = ()
    for move in moves:
        row, target = rows.pop((move.workload, move.source), None), nodes.get(move.target)
        if row is None or board.work[row].attempt != move.attempt:
            raise PlanRefused(f"{_said(move)}: that attempt is not there, or may not be moved")
        if target is None or not board.fits(np.array([row]))[0, target]:
            raise PlanRefused(f"{_said(move)}: {move.target} does not take it")
        if leaving and int(board.at[row]) not in leaving:
            raise PlanRefused(f"{_said(move)}: {move.source} is not one of those to be left")
        own = _moves(board, [(row, target)])
        if not _affords(wanted, kept + own):
            raise PlanRefused(f"{_said(move)}: more than {_budget(wanted)}")
        kept, board = kept + own, board.after([(row, target)])
    found = _plan(start, board, kept, reason="" if kept else "the plan has no moves")
    free = at_a_loss or not kept or bool(leaving)
    if not free and found.gain_usd < wanted.gain_min_usd * len(kept) - 10**-6:
        raise PlanRefused(f"these moves gain ${found.gain_usd:.4f}, less than ${wanted.gain_min_usd:g} each")
    return found


def _said(move: Move) -> str:
    return f"{move.workload[:40]} from {move.source[:40]} to {move.target[:40]}"


# --------------------------------------------------------------------------- the board


def board_of(wanted: PlanRequest) -> Board:
    """Raises `FleetMalformed`, naming what is wrong."""
    _check(wanted)
    fleet = fleet_of(wanted.nodes)
    row_of = {node.name: row for row, node in enumerate(wanted.nodes)}
    listed = {(entry.workload, entry.node): entry for entry in wanted.work}
    work: list[Work] = []
    demand: list[Ints] = []
    at: list[int] = []
    fixed: list[tuple[int, Ints]] = []
    for node in wanted.nodes:
        for placed in node.allocation.placed:
            amount = quantities(placed.demand, where=f"nodes.{node.name}.allocation")
            entry = listed.pop((placed.workload, node.name), None)
            if entry is None or entry.attempt != placed.attempt:
                fixed.append((row_of[node.name], amount))
                continue
            work.append(entry)
            demand.append(amount)
            at.append(row_of[node.name])
    waiting = tuple(sorted(wanted.waiting, key=lambda entry: (-entry.priority, entry.workload)))[:WAITING_MAX]
    wished = _stack([quantities(entry.demand, where=f"waiting.{entry.workload[:40]}") for entry in waiting])
    everything = np.concatenate([_stack(demand), _stack([amount for _, amount in fixed]), wished])
    prices = [wanted.usd_per_core_hour.get(node.site, 0.0) for node in wanted.nodes]
    open_ = [node.status is NodeStatus.READY and node.name not in wanted.leave for node in wanted.nodes]
    sites = tuple(node.site for node in wanted.nodes)
    again = [amount[CORES] / 1000.0 * entry.restart for amount, entry in zip(demand, work, strict=True)]
    taking = np.array(open_, dtype=np.bool_)
    return Board(
        used=fleet.used,
        free=_free(fleet.capacity, fleet.used, taking),
        at=np.array(at, dtype=np.int64),
        capacity=fleet.capacity,
        open=taking,
        demand=_stack(demand),
        work=tuple(work),
        allowed=np.array([_at_site(entry.site, sites) for entry in work], dtype=np.bool_).reshape(
            len(work), len(sites)
        ),
        wan_usd=np.array([_wan_usd(entry, sites, wanted.usd_per_gb) for entry in work]).reshape(
            len(work), len(sites)
        ),
        again_usd=WEIGHTS.mig * np.array(again, dtype=np.float64),
        fixed=tuple(fixed),
        shape=_shape(everything),
        waiting=waiting,
        waiting_demand=wished,
        names=tuple(node.name for node in wanted.nodes),
        sites=sites,
        energy_usd=np.array(prices, dtype=np.float64) * wanted.horizon_h,
        horizon_h=wanted.horizon_h,
    )


def _at_site(pin: str, sites: Sequence[str]) -> Bools:
    """[N]: everywhere, if nothing is pinned."""
    return np.array([pin in ("", site) for site in sites], dtype=np.bool_)


def _wan_usd(entry: Work, sites: Sequence[str], usd_per_gb: float) -> list[float]:
    """Data comes from its own site: at home it costs nothing."""
    usd = WEIGHTS.wan * usd_per_gb * entry.data_bytes / 1e9
    return [0.0 if entry.data_site in ("", site) else usd for site in sites]


def _check(wanted: PlanRequest) -> None:
    bounds: tuple[tuple[str, float, float, float], ...] = (
        ("nodes", len(wanted.nodes), 0, NODES_MAX),
        ("work", len(wanted.work), 0, WORK_MAX),
        ("nodes x work", len(wanted.nodes) * len(wanted.work), 0, TABLE_MAX),
        ("budget.moves_max", wanted.budget.moves_max, 0, MOVES_MAX),
        ("budget.bytes_max", wanted.budget.bytes_max, 0, BYTES_MAX),
        ("gain_min_usd", wanted.gain_min_usd, 0, 1e9),
        ("horizon_h", wanted.horizon_h, 0, 24 * 365),
        ("usd_per_gb", wanted.usd_per_gb, 0, 1e6),
        *((f"usd_per_core_hour.{site[:40]}", usd, 0, 1e6) for site, usd in wanted.usd_per_core_hour.items()),
        *(
            (f"work.{entry.workload[:40]}.data_bytes", entry.data_bytes, 0, BYTES_MAX)
            for entry in wanted.work
        ),
    )
    for key, value, least, most in bounds:
        if not math.isfinite(value) or not least <= value <= most:
            raise FleetMalformed(f"{key}: {value}; it is between {least} and {most:g}")
    known = {node.name for node in wanted.nodes}
    for name in wanted.leave:
        if name not in known:
            raise FleetMalformed(f"leave: there is no node {name[:40]!r} in the request")


def _stack(rows: Sequence[Ints]) -> Ints:
    return np.array(rows, dtype=np.int64).reshape(len(rows), 4)


def _shape(demands: Ints) -> Ints:
    """[R]: the 75th percentile of what runs and waits."""
    if not len(demands):
        return np.zeros(4, dtype=np.int64)
    found = np.percentile(demands, SHAPE_QUANTILE, axis=0, method="nearest")
    return np.asarray(found, dtype=np.int64)


def _rows(wanted: PlanRequest) -> frozenset[int]:
    return frozenset(row for row, node in enumerate(wanted.nodes) if node.name in wanted.leave)


# --------------------------------------------------------------------------- prices


def stranded(free: Ints, shape: Ints) -> Floats:
    """[...] cores of `free` [..., R] that no further workload of `shape` [R] can use."""
    wanted = np.maximum(shape, 1)
    fitting = np.minimum.reduce([free[..., column] // wanted[column] for column in range(len(wanted))])
    left = np.where(shape[CORES] > 0, free[..., CORES] - fitting * wanted[CORES], 0)
    return np.asarray(left / 1000.0, dtype=np.float64)


def standing(board: Board) -> Cost:
    """What the fleet costs as it stands; every component in dollars."""
    free = board.free
    cores = board.used[:, CORES] / 1000.0
    names = [entry.site for entry in board.waiting]
    waits = sum(
        board.waiting_demand[row, CORES] / 1000.0 * _factor(board.waiting[row].priority)
        for row in _unplaced(free, board.waiting_demand, names, board.sites)
    )
    return Cost(
        strand=_usd(WEIGHTS.strand * float(stranded(free, board.shape).sum())),
        energy=_usd(WEIGHTS.energy * float((cores * board.energy_usd).sum())),
        headroom=_usd(HEADROOM_WEIGHT * _homeless(board)),
        wait=_usd(WEIGHTS.sla * CORE_HOUR_USD * board.horizon_h * float(waits)),
    )


def _price(board: Board) -> float:
    return standing(board).total


def _toll(board: Board, step: Step) -> float:
    return float(sum(board.wan_usd[row, target] + board.again_usd[row] for row, target in step))


def _quick(board: Board, rows: Ints | slice, nodes: Ints | slice = EVERY) -> Floats:
    """[m, n] dollars of putting each of `rows` on each of `nodes`, without what the whole fleet decides.

    Infinite where it has no room.
    """
    demand, free = board.demand[rows], board.free[nodes]
    then = np.maximum(free[None] - demand[:, None], 0)
    strand = stranded(then, board.shape) - stranded(free, board.shape)
    energy = board.energy_usd[nodes] * (demand[:, CORES, None] / 1000.0)
    usd = WEIGHTS.strand * strand + WEIGHTS.energy * energy + board.wan_usd[rows][:, nodes]
    return np.asarray(np.where(board.fits(rows, nodes), usd, np.inf), dtype=np.float64)


def _left(board: Board, rows: Ints | slice) -> Floats:
    """[m] dollars of taking each of `rows` away from where it is, and of running it again."""
    source, demand = board.at[rows], board.demand[rows]
    free = board.free[source]
    gone = free + np.where(board.open[source][:, None], demand, 0)
    strand = stranded(gone, board.shape) - stranded(free, board.shape)
    energy = board.energy_usd[source] * demand[:, CORES] / 1000.0
    left = WEIGHTS.strand * strand - WEIGHTS.energy * energy + board.again_usd[rows]
    return np.asarray(left, dtype=np.float64)


def _fullest(board: Board) -> int:
    """The open node that holds most cores; -1 where there is none."""
    held = np.where(board.open, board.used[:, CORES], -1)
    return int(np.argmax(held)) if board.open.any() else -1


def _homeless(board: Board) -> float:
    """Cores of the fullest node that would find no place on the others, were it to fail."""
    node = _fullest(board)
    if node < 0:
        return 0.0
    here = np.flatnonzero(board.at == node).tolist()
    demands = [board.demand[row] for row in here] + [amount for at, amount in board.fixed if at == node]
    pins = [board.work[row].site for row in here] + [""] * (len(demands) - len(here))
    free = board.free.copy()
    free[node] = 0
    lost = _unplaced(free, _stack(demands), pins, board.sites)
    return float(sum(demands[row][CORES] for row in lost)) / 1000.0


def _unplaced(free: Ints, demands: Ints, pins: Sequence[str], sites: Sequence[str]) -> list[int]:
    """Rows of `demands` [K, R] that find no place, largest first into the first node with room."""
    free, lost = free.copy(), []
    for row in sorted(range(len(demands)), key=lambda row: (-int(demands[row, CORES]), row)):
        fits = enough(free, demands[row])
        if pins[row]:
            fits = fits & _at_site(pins[row], sites)
        node = int(np.argmax(fits)) if fits.any() else -1
        if node < 0:
            lost.append(row)
        else:
            free[node] -= demands[row]
    return sorted(lost)


def _factor(priority: int) -> float:
    """Jobs say 1 (low) to 5 (high); contracts know three classes."""
    return PRIORITY_FACTOR[min(max(priority, 1), 5) // 2]


# --------------------------------------------------------------------------- plans


def _plan(start: Board, end: Board, moves: tuple[Move, ...], *, reason: str) -> Plan:
    rows = {(entry.workload, entry.node): row for row, entry in enumerate(start.work)}
    nodes = {name: row for row, name in enumerate(start.names)}
    made = [(rows[move.workload, move.source], nodes[move.target]) for move in moves]
    before, after = standing(start), standing(end)
    after = msgspec.structs.replace(
        after,
        wan=_usd(float(sum(start.wan_usd[row, target] for row, target in made))),
        mig=_usd(float(sum(start.again_usd[row] for row, _ in made))),
    )
    return Plan(moves, before, after, _usd(before.total - after.total), reason)


def _moves(board: Board, step: Step) -> tuple[Move, ...]:
    return tuple(
        Move(entry.workload, entry.attempt, entry.node, board.names[target], entry.data_bytes)
        for row, target in step
        for entry in (board.work[row],)
    )


def _affords(wanted: PlanRequest, moves: tuple[Move, ...]) -> bool:
    within = len(moves) <= wanted.budget.moves_max
    return within and sum(move.bytes for move in moves) <= wanted.budget.bytes_max


def _budget(wanted: PlanRequest) -> str:
    return f"the budget of {wanted.budget.moves_max} moves and {wanted.budget.bytes_max} bytes"


def _usd(value: float) -> float:
    return round(value, DOLLAR_DIGITS)
