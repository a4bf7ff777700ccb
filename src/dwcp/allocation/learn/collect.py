"""Plays the fast environment and turns what happened into transitions of several decisions.

Dimensions: T events of a chunk, B windows side by side, N nodes. A step is an event; only some events ask for a
decision. Discounts are per time, exp(−Δt / horizon): events come in bursts, money does not. The end of a window is
no end of the task: the last decisions of a chunk are left out, and the others look on beyond it.

A workload that begins to wait costs its contract at once, and gives it back when it is placed. The sum is the
environment's cost, as a lost one costs nothing more; but a discounted return would take hours of waiting before the
loss for a saving.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from dwcp.allocation.env import fast
from dwcp.allocation.env.episode import NEVER, Array, Episode, State
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.env.weights import COMPONENTS, WEIGHTS, CostWeights
from dwcp.allocation.feasibility import choose_rows
from dwcp.allocation.policies.learned import Inputs, observe
from dwcp.allocation.policies.rules import price

FINAL = fast.FINAL
WAITS = 0.2  # of the random decisions
Act = Callable[[Inputs, Array], Array]
"""(inputs [N, F] and [C], noise [N + 1]) -> bids [N + 1]"""


class Play(NamedTuple):
    """Where each of B windows stands."""

    window: Array  # [B]
    event: Array  # [B]
    state: State


class Steps(NamedTuple):
    """[T, B, ...] one chunk as it was played."""

    seen: Inputs
    truth: Inputs
    known: Array  # [N + 1] reward that each column surely brings at once, dollars
    action: Array  # [] the first choice; after a conflict others follow, whose cost is this choice's
    bids: Array  # [N + 1] what was bid for it, exploration included
    decided: Array  # []
    time: Array  # []
    cost: Array  # [] weighted dollars


class Transitions(NamedTuple):
    """[K, ...] one per decision; `valid` says which rows are."""

    seen: Inputs
    truth: Inputs
    known: Array
    action: Array
    bids: Array
    reward: Array  # discounted dollars up to the decision that the return looks on from
    discount: Array
    next_seen: Inputs
    next_truth: Inputs
    next_known: Array
    valid: Array


class Setting(NamedTuple):
    """What does not change while playing: the rule below the residual, and how costs add up."""

    base: Scores
    sharpness: Array
    stale: bool
    weights: CostWeights = WEIGHTS


def cost_vector(weights: CostWeights) -> list[float]:
    return [float(getattr(weights, name)) for name in COMPONENTS]


def begin(states: State, windows: Array, start: int) -> Play:
    """Each of `windows` [B] at its first measured event."""
    import jax.numpy as jnp

    state = State(*(array[windows] for array in states))
    return Play(windows, jnp.full(windows.shape, start), state)


def refill(episodes: Episode, states: State, play: Play, key: Array, *, start: int, events: int) -> Play:
    """Windows without `events` more events begin another, at random, from its snapshot."""
    import jax
    import jax.numpy as jnp

    over = play.event + events > episodes.event_time.shape[1]
    drawn = jax.random.randint(key, play.window.shape, 0, episodes.event_time.shape[0])
    window = jnp.where(over, drawn, play.window)

    def swap(old: Array, new: Array) -> Array:
        return jnp.where(over.reshape(-1, *[1] * (old.ndim - 1)), new[window], old)

    state = State(*(swap(old, new) for old, new in zip(play.state, states, strict=True)))
    return Play(window, jnp.where(over, start, play.event), state)


def chunk(episodes: Episode, play: Play, noise: Array, act: Act, setting: Setting) -> tuple[Play, Steps]:
    """T events in each of B windows; `noise` [T, B, N + 1] is handed to `act`."""
    import jax

    mine = Episode(*(array[play.window] for array in episodes))

    def one(carry: tuple[State, Array], drawn: Array) -> tuple[tuple[State, Array], Steps]:
        state, event = carry
        state, step = jax.vmap(functools.partial(_step, act=act, setting=setting))(mine, state, event, drawn)
        return (state, event + 1), step

    (state, event), steps = jax.lax.scan(one, (play.state, play.event), noise)
    return Play(play.window, event, state), steps


def _step(
    episode: Episode, state: State, event: Array, noise: Array, act: Act, setting: Setting
) -> tuple[State, Steps]:
    import jax
    import jax.numpy as jnp

    prices = jnp.asarray(cost_vector(setting.weights))
    before = state.waiting < NEVER
    state, job, cost = fast.begin(episode, state, event)
    now = state.now

    def look(state: State) -> tuple[View, Inputs]:
        seen = fast.view(episode, state, job)
        return seen, observe(seen, setting.base(seen, jnp), setting.sharpness, jnp)

    def choose(state: State) -> tuple[Inputs, Array, Array]:
        seen, inputs = look(state)
        bids = act(inputs, noise)
        return inputs, bids, choose_rows(bids, seen.mask, jnp)

    inputs, bids, column = choose(state)
    truth, known = _truth(episode, state, job, setting)
    state, again, more = fast.apply(episode, state, job, column, final=jnp.asarray(not setting.stale))
    cost = cost + more
    if setting.stale:

        def retry(carry: Any) -> Any:
            state, _again, tries, cost = carry
            column = choose(state)[2]
            state, again, more = fast.apply(episode, state, job, column, final=tries == FINAL)
            return state, again, tries + 1, cost + more

        state, _again, _tries, cost = jax.lax.while_loop(
            lambda carry: carry[1], retry, (state, again, jnp.asarray(1), cost)
        )
    # A weak type here would make the next segment another program, compiled anew.
    state = state._replace(stranded=state.stranded.astype(jnp.float32))
    decided = (job >= 0) & (column >= 0)
    more_waiting = (state.waiting < NEVER) * 1.0 - before * 1.0
    paid = (cost * prices).sum() + setting.weights.sla * (episode.value * more_waiting).sum()
    return state, Steps(inputs, truth, known, jnp.maximum(column, 0), bids, decided, now, paid)


def _truth(episode: Episode, state: State, job: Array, setting: Setting) -> tuple[Inputs, Array]:
    """What the critic is told in training: fresh state of all sites, real run time; and the reward known
    beforehand, [N + 1]: a placement's price, and the contract where a workload begins or ends to wait."""
    import jax.numpy as jnp

    job = jnp.maximum(job, 0)
    real = episode._replace(gossip_s=episode.gossip_s * 0, predicted=episode.duration)
    view = fast.view(real, state, job)
    cost, feasible = price(view, jnp), view.mask[:-1]
    contract, waits = setting.weights.sla * episode.value[job], state.waiting[job] < NEVER
    known = jnp.append((jnp.where(waits, contract, 0.0) - cost) * feasible, jnp.where(waits, 0.0, -contract))
    return observe(view, setting.base(view, jnp), setting.sharpness, jnp), known


def transitions(steps: Steps, *, ahead: int, reach: int, horizon_s: float) -> Transitions:
    """[T * B, ...]. A return ends at the first decision at least `ahead` and at most `reach` events later."""
    import jax
    import jax.numpy as jnp

    length, windows = steps.decided.shape
    at = jnp.arange(length)[:, None]
    places = jnp.where(steps.decided, at, length)
    following = jax.lax.cummin(places, axis=0, reverse=True)
    end = jnp.concatenate([following, jnp.full((ahead, windows), length)])[ahead : ahead + length]
    valid = steps.decided & (end < length) & (end - at <= reach)
    safe = jnp.minimum(end, length - 1)

    def added(by: Array, reward: Array) -> Array:
        """What happened `by` events later; a loop, as unrolled it compiles for half a minute."""
        place = jnp.minimum(at + by, length - 1)
        passed = (jnp.take_along_axis(steps.time, place, 0) - steps.time) / horizon_s
        cost = jnp.exp(-passed) * jnp.take_along_axis(steps.cost, place, 0)
        return reward - jnp.where(at + by < end, cost, 0.0)

    at = jnp.broadcast_to(at, steps.cost.shape)
    reward = jax.lax.fori_loop(0, min(reach, length - 1), added, jnp.zeros(steps.cost.shape))

    def ending(array: Array) -> Array:
        return jnp.take_along_axis(array, safe.reshape(safe.shape + (1,) * (array.ndim - 2)), axis=0)

    passed = (ending(steps.time) - steps.time) / horizon_s
    found = Transitions(
        seen=steps.seen,
        truth=steps.truth,
        known=steps.known,
        action=steps.action,
        bids=steps.bids,
        reward=reward,
        discount=jnp.exp(-passed),
        next_seen=jax.tree.map(ending, steps.seen),
        next_truth=jax.tree.map(ending, steps.truth),
        next_known=ending(steps.known),
        valid=valid,
    )
    flat: Transitions = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), found)
    return flat


def exploring(weights: Any, temperature: Array, uniform: float) -> Act:
    """Gumbel noise on the bids; with chance `uniform` a feasible node at random, or for a share of that chance
    waiting: without it the critic would have to guess what waiting costs where the rule never waits. The noise
    [N + 1] is uniform."""
    import jax.numpy as jnp

    from dwcp.allocation.policies.learned import logits

    def act(inputs: Inputs, noise: Array) -> Array:
        gumbel = -jnp.log(-jnp.log(noise))
        dice = (noise[0] * 4093.0) % 1.0  # the same draw's lower digits: one stream of noise is enough
        bids = logits(weights, inputs, jnp) / temperature + gumbel
        waits = jnp.where(dice < uniform * WAITS, 1e3, -1e3)
        return jnp.where(dice < uniform, gumbel.at[-1].set(waits), bids)

    return act


def greedy(weights: Any) -> Act:
    """The policy as it is served."""
    import jax.numpy as jnp

    from dwcp.allocation.policies.learned import logits

    return lambda inputs, _noise: logits(weights, inputs, jnp)


def noise(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform in (0, 1), ends excluded, float32."""
    import jax

    return jax.random.uniform(key, shape, minval=1e-6, maxval=1.0 - 1e-6)
