"""The fast environment: the reference's rules for one window in JAX, to be mapped and scanned.

Placements and quantities are the reference's exactly (32-bit integers), costs to 1e-5; a property test holds
the two together. JAX is an optional extra, so it is imported inside the functions. Shapes are those of
`Episode` and `State` without the leading [W]; `jax.vmap` brings it back.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from dwcp.allocation.env.episode import (
    ARRIVE,
    CONFLICTS,
    CUT,
    DEFERRED,
    FAIL,
    HEAL,
    KILLED,
    LOST,
    NEVER,
    PLACED,
    RECOVER,
    RETRY,
    Array,
    Episode,
    State,
    urgency,
)
from dwcp.allocation.env.reference import (
    ATTEMPTS,
    ENERGY,
    FAIR,
    MIG,
    RETRY_AFTER_S,
    SLA,
    STRAND,
    WAIT,
    WAN,
)
from dwcp.allocation.env.view import Scores, View, coins
from dwcp.allocation.env.weights import COMPONENTS
from dwcp.allocation.feasibility import choose_rows, enough

FINAL = ATTEMPTS - 1
BLOCK = 32  # workloads whose least end is looked at together


def device(record: Any) -> Any:
    """An `Episode` or `State` of NumPy arrays as 32-bit JAX arrays. ValueError: a quantity does not fit."""
    import jax.numpy as jnp

    def narrow(name: str, array: Array) -> Array:
        kind = np.asarray(array).dtype.kind
        if kind in "iu" and np.abs(array).max(initial=0) >= 2**31:
            raise ValueError(f"{name}: above 2^31; use larger units")
        return jnp.asarray(array, {"i": jnp.int32, "u": jnp.int32, "f": jnp.float32, "b": jnp.bool_}[kind])

    return type(record)(*(narrow(name, getattr(record, name)) for name in record._fields))


def zero_cost() -> Array:
    import jax.numpy as jnp

    return jnp.zeros(len(COMPONENTS), jnp.float32)


def begin(episode: Episode, state: State, event: Array) -> tuple[State, Array, Array]:
    """Event number `event` happens: (state, the workload to decide on or -1, cost [C])."""
    import jax.numpy as jnp

    state = state._replace(now=jnp.maximum(state.now, episode.event_time[event]))
    state = _release(episode, state)
    kind, arg = episode.event_kind[event], episode.event_arg[event]
    state, killed = _fault(episode, state, kind, arg)
    state = _gossip(episode, state)
    due = jnp.where(state.retry_at <= state.now, state.waiting, NEVER)
    urgent = jnp.argmin(due)
    found = (kind == RETRY) & (due[urgent] < NEVER)
    over = found & (slack(episode, state, urgent) < 0)
    state, cost = _lose(episode, state, urgent, over)
    job = jnp.where(kind == ARRIVE, arg, jnp.where(found & ~over, urgent, -1))
    state, stranding = _strand(episode, state)
    return state, job, cost.at[MIG].add(killed).at[STRAND].add(stranding)


def view(episode: Episode, state: State, job: Array) -> View:
    """What the controller of the workload's site knows; as in the reference."""
    import jax.numpy as jnp

    job = jnp.maximum(job, 0)
    used, alive, age = _seen(episode, state, episode.origin[job])
    demand, sites = episode.demand[job], episode.node_site
    free = jnp.where(alive[:, None], episode.capacity - used, 0)
    left = slack(episode, state, job)
    late = (state.now - state.since[job] + episode.transfer_s[job, sites]) / jnp.maximum(
        episode.budget_s[job], 1
    )
    predicted = episode.predicted[job].astype(jnp.float32)
    real = jnp.float32
    return View(
        free=free.astype(real),
        capacity=episode.capacity.astype(real),
        demand=demand.astype(real),
        mask=jnp.append(enough(free, demand) & alive, left > 0),
        local=sites == episode.origin[job],
        wan=episode.wan_usd[job, sites],
        energy=demand[0] / 1000.0 * predicted / 3600.0 * episode.node_usd,
        late=jnp.minimum(late, 1.0),
        worth=episode.worth[job],
        priority=episode.priority[job],
        predicted_s=predicted,
        slack_s=left.astype(real),
        exit_in_s=jnp.maximum(state.exit_at - state.now, 0).astype(real),
        age_s=age.astype(real),
        queued=state.queued,
        last=state.last,
        coin=coins(job, state.now, jnp.arange(len(sites)), jnp),
        row=jnp.int32(0),
    )


def apply(
    episode: Episode, state: State, job: Array, column: Array, *, final: Array
) -> tuple[State, Array, Array]:
    """Atomic commit of one choice: (state, whether it was refused and is to be made again, cost [C])."""
    import jax.numpy as jnp

    last, final = episode.capacity.shape[0], jnp.asarray(final)
    active, asked = job >= 0, jnp.maximum(job, 0)
    chosen = active & (column >= 0) & (column < last)
    node = jnp.clip(column, 0, last - 1)
    fits = chosen & _fits(episode, state, asked, node)
    refused = chosen & ~fits
    can_wait = slack(episode, state, asked) > 0
    defer = (active & (column == last)) | (refused & final & can_wait)
    gone = (active & (column < 0)) | (refused & final & ~can_wait)
    state, cost = _place(episode, state, asked, node, fits)
    state = _learn(episode, state, asked, node, refused)
    state = _defer(episode, state, asked, defer)
    state, losing = _lose(episode, state, asked, gone)
    state, stranding = _strand(episode, state)
    return state, refused & ~final, (cost + losing).at[STRAND].add(stranding)


def step(
    episode: Episode, state: State, event: Array, score: Scores, *, stale: bool = True
) -> tuple[State, Array]:
    """One event under `score`: (state, cost [C]). `stale=False` leaves out the retries, which then never are."""
    import jax
    import jax.numpy as jnp

    state, job, cost = begin(episode, state, event)

    def attempt(carry: Any) -> Any:
        state, _again, tries, cost = carry
        seen = view(episode, state, job)
        column = choose_rows(jnp.asarray(score(seen, jnp)), seen.mask, jnp)
        state, again, more = apply(episode, state, job, column, final=tries == FINAL)
        return state, again, tries + 1, cost + more

    carry = attempt((state, jnp.asarray(True), 0 if stale else FINAL, cost))
    if stale:
        carry = jax.lax.while_loop(lambda carry: carry[1], attempt, carry)
    return carry[0], carry[3]


def scan(
    episode: Episode, state: State, events: Array, score: Scores, *, stale: bool = True
) -> tuple[State, Array]:
    """All of `events` [E]: (state, cost per event [E, C])."""
    import jax

    def one(carry: State, event: Array) -> tuple[State, Array]:
        return step(episode, carry, event, score, stale=stale)

    last, costs = jax.lax.scan(one, state, events)
    return last, costs


def finish(episode: Episode, state: State) -> tuple[State, Array]:
    """The window is over: what waits still is lost."""
    import jax.numpy as jnp

    waits = state.waiting < NEVER
    value = jnp.where(waits, episode.value, 0.0)
    lost = state.lost.at[episode.tenant].add(value)
    cost = zero_cost().at[SLA].set(value.sum()).at[FAIR].set(_deficit(lost) - _deficit(state.lost))
    counts = state.counts.at[LOST].add(waits.sum())
    cleared = jnp.full_like(state.waiting, NEVER)
    return state._replace(lost=lost, counts=counts, waiting=cleared, queued=state.queued * 0), cost


def slack(episode: Episode, state: State, job: Array) -> Array:
    """[] seconds until the last start."""
    return state.since[job] + episode.budget_s[job] - state.now


def _fits(episode: Episode, state: State, job: Array, node: Array) -> Array:
    room = (episode.capacity[node] - state.used[node] >= episode.demand[job]).all()
    return room & state.alive[node] & _reached(episode, state, job, node)


def _reached(episode: Episode, state: State, job: Array, node: Array) -> Array:
    here, there = episode.origin[job], episode.node_site[node]
    return (here == there) | ~(state.cut[here] | state.cut[there])


def _place(episode: Episode, state: State, job: Array, node: Array, on: Array) -> tuple[State, Array]:
    import jax.numpy as jnp

    site, now = episode.node_site[node], state.now
    demand = jnp.where(on, episode.demand[job], 0)
    shipped, run_s = episode.transfer_s[job, site], state.remaining[job]
    predicted = jnp.where(on, now + shipped + episode.predicted[job], 0)
    late = jnp.minimum((now - state.since[job] + shipped) / jnp.maximum(episode.budget_s[job], 1), 1.0)
    cost = zero_cost().at[WAIT].set(episode.value[job] * late).at[WAN].set(episode.wan_usd[job, site])
    cost = cost.at[ENERGY].set(demand[0] / 1000.0 * (run_s / 3600.0) * episode.node_usd[node])
    state = _leave_queue(state, job, on)
    state = state._replace(
        used=state.used.at[node].add(demand),
        node=state.node.at[job].set(jnp.where(on, node, state.node[job])),
        end=state.end.at[job].set(jnp.where(on, now + shipped + run_s, state.end[job])),
        exit_at=state.exit_at.at[node].max(predicted),
        last=jnp.where(on, node, state.last),
        seen_used=state.seen_used.at[episode.origin[job], node].add(demand),
        counts=state.counts.at[PLACED].add(on),
    )
    return state, jnp.where(on, cost, 0.0)


def _defer(episode: Episode, state: State, job: Array, on: Array) -> State:
    import jax.numpy as jnp

    start_by = state.since[job] + episode.budget_s[job]
    key = urgency(episode.priority[job], start_by)
    pause = jnp.minimum(RETRY_AFTER_S, jnp.maximum(start_by - state.now, 1))
    return state._replace(
        queued=state.queued + (on & (state.waiting[job] == NEVER)),
        waiting=state.waiting.at[job].set(jnp.where(on, key, state.waiting[job])),
        retry_at=state.retry_at.at[job].set(jnp.where(on, state.now + pause, state.retry_at[job])),
        counts=state.counts.at[DEFERRED].add(on),
    )


def _lose(episode: Episode, state: State, job: Array, on: Array) -> tuple[State, Array]:
    import jax.numpy as jnp

    value = jnp.where(on, episode.value[job], 0.0)
    lost = state.lost.at[episode.tenant[job]].add(value)
    cost = zero_cost().at[SLA].set(value).at[FAIR].set(_deficit(lost) - _deficit(state.lost))
    state = _leave_queue(state, job, on)
    return state._replace(lost=lost, counts=state.counts.at[LOST].add(on)), cost


def _deficit(lost: Array) -> Array:
    return lost.max() - lost.mean()


def _leave_queue(state: State, job: Array, on: Array) -> State:
    import jax.numpy as jnp

    was = state.waiting[job]
    return state._replace(
        queued=state.queued - (on & (was < NEVER)),
        waiting=state.waiting.at[job].set(jnp.where(on, NEVER, was)),
    )


def _release(episode: Episode, state: State) -> State:
    """Pops the earliest ends, one by one: on a CPU faster than a scatter over all workloads.

    The least end of each block is kept while popping, so that finding the earliest looks at blocks, not workloads.
    """
    import jax.numpy as jnp

    jobs = state.end.shape[0]
    blocks = -(-jobs // BLOCK)
    padded = jnp.pad(state.end, (0, blocks * BLOCK - jobs), constant_values=NEVER)
    least = padded.reshape(blocks, BLOCK).min(axis=1)
    used, ends = _popping()(state.used, padded, least, state.now, state.node, episode.demand)
    return state._replace(used=used, end=ends[:jobs])


@functools.cache
def _popping() -> Any:
    """Pops until nothing is due; windows side by side go on until none has anything due."""
    import jax

    def alone(used: Array, ends: Array, least: Array, *rest: Array) -> Any:
        now = rest[0]

        def go(carry: Any) -> Any:
            used, ends, least = carry
            return _pop(used, ends, least, *rest)

        found = jax.lax.while_loop(lambda carry: carry[2].min() <= now, go, (used, ends, least))
        return found[:2]

    def together(size: int, batched: Any, *given: Array) -> Any:
        used, ends, least, *rest = _spread(size, batched, given)
        now = rest[0]

        def go(carry: Any) -> Any:
            used, ends, least = carry
            return jax.vmap(_pop)(used, ends, least, *rest)

        found = jax.lax.while_loop(lambda carry: (carry[2].min(axis=1) <= now).any(), go, (used, ends, least))
        return found[:2], (True, True)

    popping = jax.custom_batching.custom_vmap(alone)
    popping.def_vmap(together)
    return popping


def _pop(used: Array, ends: Array, least: Array, now: Array, node: Array, demand: Array) -> tuple[Array, ...]:
    """The earliest end, if it is due; nothing changes where none is."""
    import jax
    import jax.numpy as jnp

    block = least.argmin()
    row = jax.lax.dynamic_slice(ends, (block * BLOCK,), (BLOCK,))
    place = row.argmin()
    job = jnp.minimum(block * BLOCK + place, len(node) - 1)
    due = least[block] <= now
    row = row.at[place].set(jnp.where(due, NEVER, row[place]))
    ends = jax.lax.dynamic_update_slice(ends, row, (block * BLOCK,))
    used = used.at[node[job]].add(jnp.where(due, -demand[job], 0))
    return used, ends, least.at[block].set(row.min())


def _spread(size: int, batched: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Every array with a leading axis: what is common to all windows is repeated."""
    import jax
    import jax.numpy as jnp

    def wide(array: Array, has: bool) -> Array:
        return array if has else jnp.broadcast_to(array, (size, *jnp.shape(array)))

    return tuple(jax.tree.map(wide, array, has) for array, has in zip(given, batched, strict=True))


def _strand(episode: Episode, state: State) -> tuple[State, Array]:
    import jax.numpy as jnp

    free = jnp.where(state.alive[:, None], episode.capacity - state.used, 0)
    shape = jnp.maximum(episode.shape, 1)
    fitting = (free // shape).min(axis=1)
    now = (free[:, 0] - fitting * shape[0]).sum() / 1000.0
    return state._replace(stranded=now), now - state.stranded


def _fault(episode: Episode, state: State, kind: Array, arg: Array) -> tuple[State, Array]:
    """(state, cores killed); windows side by side pass over it together where none has a fault, as most do."""
    found: tuple[State, Array] = _faulting()(episode, state, kind, arg)
    return found


@functools.cache
def _faulting() -> Any:
    import jax
    import jax.numpy as jnp

    def idle(_episode: Episode, state: State, _kind: Array, _arg: Array) -> tuple[State, Array]:
        return state, jnp.zeros((), jnp.float32)

    def alone(episode: Episode, state: State, kind: Array, arg: Array) -> Any:
        return jax.lax.cond(kind >= FAIL, _struck, idle, episode, state, kind, arg)

    def together(size: int, batched: Any, *given: Any) -> Any:
        wide = _spread(size, batched, given)
        found = jax.lax.cond((wide[2] >= FAIL).any(), jax.vmap(_struck), jax.vmap(idle), *wide)
        return found, jax.tree.map(lambda _array: True, found)

    faulting = jax.custom_batching.custom_vmap(alone)
    faulting.def_vmap(together)
    return faulting


def _struck(episode: Episode, state: State, kind: Array, arg: Array) -> tuple[State, Array]:
    import jax.numpy as jnp

    cut = jnp.where((kind == CUT) | (kind == HEAL), kind == CUT, state.cut[arg])
    cuts = state.cut.at[arg].set(cut)
    up = jnp.where(kind == RECOVER, episode.capacity[arg, 0] > 0, state.alive[arg] & (kind != FAIL))
    down = kind == FAIL
    hit = (state.node == arg) & (state.end < NEVER) & down
    start_by = state.now + episode.budget_s
    left = jnp.minimum(state.end - state.now, state.remaining)
    cores = jnp.where(hit, episode.demand[:, 0], 0).sum() / 1000.0
    return state._replace(
        cut=cuts,
        alive=state.alive.at[arg].set(up),
        used=state.used.at[arg].set(jnp.where(down, 0, state.used[arg])),
        exit_at=state.exit_at.at[arg].set(jnp.where(down, 0, state.exit_at[arg])),
        remaining=jnp.where(hit, left, state.remaining),
        end=jnp.where(hit, NEVER, state.end),
        since=jnp.where(hit, state.now, state.since),
        waiting=jnp.where(hit, urgency(episode.priority, start_by), state.waiting),
        retry_at=jnp.where(hit, state.now, state.retry_at),
        queued=state.queued + hit.sum(),
        counts=state.counts.at[KILLED].add(hit.sum()),
    ), cores


def _gossip(episode: Episode, state: State) -> State:
    import jax.numpy as jnp

    sites = state.cut.shape[0]
    period = jnp.maximum(episode.gossip_s, 1)
    phase = episode.node_site * period // sites
    latest = (state.now + phase) // period * period - phase
    open_ = ~state.cut[episode.node_site][None, :] & ~state.cut[:, None]
    fresh = open_ & (state.seen_at < latest[None, :]) & (episode.gossip_s > 0)
    return state._replace(
        seen_used=jnp.where(fresh[:, :, None], state.used[None], state.seen_used),
        seen_alive=jnp.where(fresh, state.alive[None], state.seen_alive),
        seen_at=jnp.where(fresh, state.now, state.seen_at),
    )


def _seen(episode: Episode, state: State, origin: Array) -> tuple[Array, Array, Array]:
    """used [N, R], alive [N], age [N] as the deciding controller knows them."""
    import jax.numpy as jnp

    home = episode.node_site == origin
    fresh = episode.gossip_s == 0
    near = home | fresh
    reached = home | ~(state.cut[origin] | (fresh & state.cut[episode.node_site]))
    age = jnp.where(near, 0, state.now - state.seen_at[origin])
    alive = jnp.where(near, state.alive, state.seen_alive[origin]) & reached
    return jnp.where(near[:, None], state.used, state.seen_used[origin]), alive, age


def _learn(episode: Episode, state: State, job: Array, node: Array, on: Array) -> State:
    import jax.numpy as jnp

    here = episode.origin[job]
    alive = state.alive[node] & _reached(episode, state, job, node)

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(on, new, old)

    return state._replace(
        seen_used=state.seen_used.at[here, node].set(keep(state.used[node], state.seen_used[here, node])),
        seen_alive=state.seen_alive.at[here, node].set(keep(alive, state.seen_alive[here, node])),
        seen_at=state.seen_at.at[here, node].set(keep(state.now, state.seen_at[here, node])),
        counts=state.counts.at[CONFLICTS].add(on),
    )
