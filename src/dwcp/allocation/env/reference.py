"""The reference environment: NumPy, W windows in lock step, one decision per window and event.

An event is an arrival, a chance for the most urgent waiting workload, or a fault. Before it, what has ended is
released. Quantities and times are integers, so that feasibility is exact. With `gossip_s` above 0 a controller
sees its own site as it is and other sites as last reported, and a placement that does not fit the truth is a
conflict: the refused node's truth becomes known, and the choice is made again, up to three times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

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
    TENANTS,
    Episode,
    State,
    urgency,
)
from dwcp.allocation.env.view import Scores, View, coins
from dwcp.allocation.env.weights import COMPONENTS
from dwcp.allocation.feasibility import choose_rows, enough
from dwcp.allocation.fleet import Bools, Floats, Ints

ATTEMPTS = 4  # one choice and three after conflicts
RETRY_AFTER_S = 60
SLA, WAIT, WAN, ENERGY, STRAND, MIG, FAIR = range(len(COMPONENTS))


def first_state(episode: Episode) -> State:
    """Empty machines before the first event. Shapes have the leading [W]."""
    windows, nodes, resources = episode.capacity.shape
    jobs, sites = episode.transfer_s.shape[1:]
    zeros = np.zeros((windows, jobs), dtype=np.int32)
    alive = episode.capacity[:, :, 0] > 0
    return State(
        now=np.zeros(windows, dtype=np.int64),
        used=np.zeros((windows, nodes, resources), dtype=np.int64),
        alive=alive,
        cut=np.zeros((windows, sites), dtype=np.bool_),
        node=zeros - 1,
        end=zeros + NEVER,
        remaining=episode.duration.astype(np.int32),
        waiting=zeros + NEVER,
        retry_at=zeros.copy(),
        since=episode.arrival.astype(np.int32),
        exit_at=np.zeros((windows, nodes), dtype=np.int64),
        last=np.full(windows, -1, dtype=np.int64),
        seen_used=np.zeros((windows, sites, nodes, resources), dtype=np.int64),
        seen_alive=np.repeat(alive[:, None, :], sites, axis=1),
        seen_at=np.zeros((windows, sites, nodes), dtype=np.int64),
        lost=np.zeros((windows, TENANTS)),
        stranded=stranded(episode.capacity, episode.shape, np.zeros_like(episode.capacity), alive),
        queued=np.zeros(windows, dtype=np.int64),
        counts=np.zeros((windows, 5), dtype=np.int64),
    )


def stranded(capacity: Ints, shape: Ints, used: Ints, alive: Bools) -> Floats:
    """[W] cores that are free but of no use to the 75th percentile shape, because another resource is out."""
    free = np.where(alive[..., None], capacity - used, 0)
    wanted = np.maximum(shape, 1)[:, None, :]
    fitting = (free // wanted).min(axis=2)
    return np.asarray((free[..., 0] - fitting * wanted[..., 0]).sum(axis=1) / 1000.0, dtype=np.float64)


def copied(state: State) -> State:
    return State(*(array.copy() for array in state))


@dataclass(slots=True)
class Reference:
    """Steps a `State` in place. `cost` is what the last step cost, [W, C] in the order of `COMPONENTS`."""

    episode: Episode
    state: State
    cost: Floats
    log: list[tuple[int, int, int, int]] | None = (
        None  # (window, workload, node, now) of placements, if asked
    )
    _ends: list[list[tuple[int, int]]] = field(default_factory=list)  # per window a heap of (end, workload)

    @classmethod
    def at(cls, episode: Episode, state: State | None = None) -> Reference:
        """Starts empty, or from a copy of `state`."""
        start = first_state(episode) if state is None else copied(state)
        env = cls(episode, start, np.zeros((len(episode.capacity), len(COMPONENTS))))
        for ends in start.end:
            running = np.nonzero(ends < NEVER)[0].tolist()
            env._ends.append([(int(ends[job]), job) for job in running])
            heapify(env._ends[-1])
        return env

    def begin(self, event: int) -> Ints:
        """Event number `event` happens in every window; [W] the workload to decide on, -1 where none."""
        state, episode = self.state, self.episode
        self.cost[:] = 0.0
        state.now[:] = np.maximum(state.now, episode.event_time[:, event])
        self._release()
        kind, arg = episode.event_kind[:, event], episode.event_arg[:, event]
        for window in np.nonzero(kind >= FAIL)[0]:
            self._fault(int(window), int(kind[window]), int(arg[window]))
        if episode.gossip_s.any():
            self._gossip()
        job = np.where(kind == ARRIVE, arg, -1).astype(np.int64)
        asked = np.nonzero((kind == RETRY) & (state.queued > 0))[0]
        if len(asked):
            job[asked] = self._most_urgent(asked)
        return job

    def view(self, rows: Ints, jobs: Ints) -> View:
        """What the controllers of `rows` [A] know when deciding on `jobs` [A]."""
        episode, state = self.episode, self.state
        origin, sites = episode.origin[rows, jobs], episode.node_site[rows]
        used, alive, age = self._seen(rows, origin, sites)
        capacity, demand = episode.capacity[rows], episode.demand[rows, jobs]
        free = np.where(alive[..., None], capacity - used, 0)
        now, slack = state.now[rows], self._slack(rows, jobs)
        waited = now - state.since[rows, jobs]
        budget = np.maximum(episode.budget_s[rows, jobs], 1)
        shipped = np.take_along_axis(episode.transfer_s[rows, jobs], sites, axis=1)
        predicted = episode.predicted[rows, jobs]
        cores = demand[:, 0] / 1000.0
        nodes = np.arange(capacity.shape[1])
        feasible = np.concatenate([enough(free, demand) & alive, (slack > 0)[:, None]], axis=1)
        return View(
            free=free.astype(np.float64),
            capacity=capacity.astype(np.float64),
            demand=demand.astype(np.float64),
            mask=feasible,
            local=sites == origin[:, None],
            wan=np.take_along_axis(episode.wan_usd[rows, jobs], sites, axis=1),
            energy=(cores * predicted / 3600.0)[:, None] * episode.node_usd[rows],
            late=np.minimum((waited[:, None] + shipped) / budget[:, None], 1.0),
            worth=episode.worth[rows, jobs],
            priority=episode.priority[rows, jobs],
            predicted_s=predicted.astype(np.float64),
            slack_s=slack.astype(np.float64),
            exit_in_s=np.maximum(state.exit_at[rows] - now[:, None], 0).astype(np.float64),
            age_s=age.astype(np.float64),
            queued=state.queued[rows],
            last=state.last[rows],
            coin=coins(jobs, now, nodes, np),
            row=rows,
        )

    def commit(self, job: Ints, score: Scores) -> None:
        """Decides on `job` [W] (-1: nothing to decide) by `score`, which is asked again after a conflict."""
        rows = np.nonzero(job >= 0)[0]
        for attempt in range(ATTEMPTS):
            if not len(rows):
                return
            view = self.view(rows, job[rows])
            columns = choose_rows(np.asarray(score(view, np)), view.mask)
            rows = self._apply(rows, job[rows], columns, final=attempt == ATTEMPTS - 1)

    def finish(self) -> None:
        """The window is over: what waits still, never started in time."""
        self.cost[:] = 0.0
        waiting = self.state.waiting < NEVER
        rows, jobs = np.nonzero(waiting)
        self._lose(rows, jobs)

    def _apply(self, rows: Ints, jobs: Ints, columns: Ints, *, final: bool) -> Ints:
        """Atomic commit of `columns` [A]; the windows whose choice was refused."""
        state, last = self.state, self.state.used.shape[1]
        defer = columns == last
        chosen = (columns >= 0) & ~defer
        fits = np.zeros(len(rows), dtype=np.bool_)
        fits[chosen] = self._fits(rows[chosen], jobs[chosen], columns[chosen])
        refused = chosen & ~fits
        if fits.any():
            self._place(rows[fits], jobs[fits], columns[fits])
        if refused.any():
            self._learn(rows[refused], jobs[refused], columns[refused])
            state.counts[rows[refused], CONFLICTS] += 1
        if final:
            can_wait = refused & (self._slack(rows, jobs) > 0)
            defer, refused = defer | can_wait, refused & ~can_wait
        if defer.any():
            self._defer(rows[defer], jobs[defer])
        gone = (columns < 0) | (refused if final else False)
        if gone.any():
            self._lose(rows[gone], jobs[gone])
        return rows[:0] if final else rows[refused]

    def _fits(self, rows: Ints, jobs: Ints, nodes: Ints) -> Ints:
        """[A] against the truth: room, a live node, and no cut between it and the deciding site."""
        episode, state = self.episode, self.state
        free = episode.capacity[rows, nodes] - state.used[rows, nodes]
        room = (free >= episode.demand[rows, jobs]).all(axis=1)
        here, there = episode.origin[rows, jobs], episode.node_site[rows, nodes]
        open_ = (here == there) | ~(state.cut[rows, here] | state.cut[rows, there])
        fits: Ints = room & state.alive[rows, nodes] & open_
        return fits

    def _place(self, rows: Ints, jobs: Ints, nodes: Ints) -> None:
        episode, state = self.episode, self.state
        demand, site, now = episode.demand[rows, jobs], episode.node_site[rows, nodes], state.now[rows]
        state.used[rows, nodes] += demand
        state.node[rows, jobs] = nodes
        shipped = episode.transfer_s[rows, jobs, site]
        run_s = state.remaining[rows, jobs]
        ends = now + shipped + run_s
        state.end[rows, jobs] = ends
        for window, job, end in zip(rows.tolist(), jobs.tolist(), ends.tolist(), strict=True):
            heappush(self._ends[window], (end, job))
        predicted = now + shipped + episode.predicted[rows, jobs]
        state.exit_at[rows, nodes] = np.maximum(state.exit_at[rows, nodes], predicted)
        state.last[rows] = nodes
        state.seen_used[rows, episode.origin[rows, jobs], nodes] += demand
        budget = np.maximum(episode.budget_s[rows, jobs], 1)
        late = np.minimum((now - state.since[rows, jobs] + shipped) / budget, 1.0)
        self.cost[rows, WAIT] += episode.value[rows, jobs] * late
        self.cost[rows, WAN] += episode.wan_usd[rows, jobs, site]
        self.cost[rows, ENERGY] += demand[:, 0] / 1000.0 * run_s / 3600.0 * episode.node_usd[rows, nodes]
        self._leave_queue(rows, jobs)
        state.counts[rows, PLACED] += 1
        self._strand(rows)
        if self.log is not None:
            self.log += list(zip(rows.tolist(), jobs.tolist(), nodes.tolist(), now.tolist(), strict=True))

    def _defer(self, rows: Ints, jobs: Ints) -> None:
        state, episode = self.state, self.episode
        start_by = state.since[rows, jobs] + episode.budget_s[rows, jobs]
        state.queued[rows] += state.waiting[rows, jobs] == NEVER
        state.waiting[rows, jobs] = urgency(episode.priority[rows, jobs], start_by)
        pause = np.minimum(RETRY_AFTER_S, np.maximum(start_by - state.now[rows], 1))
        state.retry_at[rows, jobs] = state.now[rows] + pause
        state.counts[rows, DEFERRED] += 1

    def _lose(self, rows: Ints, jobs: Ints) -> None:
        """Never started in time: its whole value, and its tenant's share of fairness."""
        state, episode = self.state, self.episode
        value = episode.value[rows, jobs]
        self.cost[:, SLA] += np.bincount(rows, weights=value, minlength=len(self.cost))
        touched = np.unique(rows)
        before = state.lost[touched].max(axis=1) - state.lost[touched].mean(axis=1)
        np.add.at(state.lost, (rows, episode.tenant[rows, jobs]), value)
        after = state.lost[touched].max(axis=1) - state.lost[touched].mean(axis=1)
        self.cost[touched, FAIR] += after - before
        state.counts[:, LOST] += np.bincount(rows, minlength=len(state.counts))
        self._leave_queue(rows, jobs)

    def _leave_queue(self, rows: Ints, jobs: Ints) -> None:
        state = self.state
        was = state.waiting[rows, jobs] < NEVER
        np.subtract.at(state.queued, rows[was], 1)
        state.waiting[rows, jobs] = NEVER

    def _release(self) -> None:
        """Heaps of ends, one per window: an entry whose workload was killed meanwhile is passed over."""
        state, found = self.state, []
        for window, (heap, now) in enumerate(zip(self._ends, state.now.tolist(), strict=True)):
            while heap and heap[0][0] <= now:
                end, job = heappop(heap)
                if state.end[window, job] == end:
                    found.append((window, job))
                    state.end[window, job] = NEVER
        if found:
            rows, jobs = np.array(found).T
            np.subtract.at(state.used, (rows, state.node[rows, jobs]), self.episode.demand[rows, jobs])
            self._strand(np.unique(rows))

    def _strand(self, rows: Ints) -> None:
        now = stranded(
            self.episode.capacity[rows],
            self.episode.shape[rows],
            self.state.used[rows],
            self.state.alive[rows],
        )
        self.cost[rows, STRAND] += now - self.state.stranded[rows]
        self.state.stranded[rows] = now

    def _slack(self, rows: Ints, jobs: Ints) -> Ints:
        state = self.state
        slack: Ints = state.since[rows, jobs] + self.episode.budget_s[rows, jobs] - state.now[rows]
        return slack

    def _most_urgent(self, rows: Ints) -> Ints:
        """[A] of the waiting workloads that are due, the most urgent; -1 where none, or where it was too late."""
        state = self.state
        due = np.where(state.retry_at[rows] <= state.now[rows][:, None], state.waiting[rows], NEVER)
        jobs = due.argmin(axis=1)
        found = due[np.arange(len(rows)), jobs] < NEVER
        over = found & (self._slack(rows, jobs) < 0)
        if over.any():
            self._lose(rows[over], jobs[over])
        picked: Ints = np.where(found & ~over, jobs, -1)
        return picked

    def _fault(self, window: int, kind: int, arg: int) -> None:
        state = self.state
        if kind in (CUT, HEAL):
            state.cut[window, arg] = kind == CUT
        elif kind == RECOVER:
            state.alive[window, arg] = self.episode.capacity[window, arg, 0] > 0
            self._strand(np.array([window]))
        elif kind == FAIL:
            state.alive[window, arg] = False
            self._kill(window, arg)
            self._strand(np.array([window]))

    def _kill(self, window: int, node: int) -> None:
        """What ran on the node waits again, with what is left to run and a wait of its own."""
        state, episode = self.state, self.episode
        jobs = np.nonzero((state.node[window] == node) & (state.end[window] < NEVER))[0]
        state.used[window, node] = 0
        state.exit_at[window, node] = 0
        now = int(state.now[window])
        state.remaining[window, jobs] = np.minimum(
            state.end[window, jobs] - now, state.remaining[window, jobs]
        )
        state.end[window, jobs] = NEVER
        state.since[window, jobs] = now
        start_by = now + episode.budget_s[window, jobs]
        state.waiting[window, jobs] = urgency(episode.priority[window, jobs], start_by)
        state.retry_at[window, jobs] = now
        state.queued[window] += len(jobs)
        state.counts[window, KILLED] += len(jobs)
        self.cost[window, MIG] += episode.demand[window, jobs, 0].sum() / 1000.0

    def _gossip(self) -> None:
        """Each site reports once per period, sites one after another, to those it reaches."""
        state, episode = self.state, self.episode
        period = np.maximum(episode.gossip_s, 1)[:, None]
        sites = state.cut.shape[1]
        phase = np.arange(sites)[None, :] * period // sites
        own = np.take_along_axis(phase, episode.node_site, axis=1)  # [W, N]
        latest = (state.now[:, None] + own) // period * period - own  # the period's begin
        open_ = ~np.take_along_axis(state.cut, episode.node_site, axis=1)[:, None, :] & ~state.cut[:, :, None]
        fresh = open_ & (state.seen_at < latest[:, None, :]) & (episode.gossip_s > 0)[:, None, None]
        if not fresh.any():
            return
        rows, observers, nodes = np.nonzero(fresh)
        state.seen_used[rows, observers, nodes] = state.used[rows, nodes]
        state.seen_alive[rows, observers, nodes] = state.alive[rows, nodes]
        state.seen_at[rows, observers, nodes] = state.now[rows]

    def _seen(self, rows: Ints, origin: Ints, sites: Ints) -> tuple[Ints, Ints, Ints]:
        """used [A, N, R], alive [A, N], age [A, N] as the deciding controller knows them."""
        state = self.state
        used, alive = state.used[rows], state.alive[rows]
        fresh = (self.episode.gossip_s[rows] == 0)[:, None]
        near = fresh | (sites == origin[:, None])
        here = np.take_along_axis(state.cut[rows], origin[:, None], axis=1)
        reached = (sites == origin[:, None]) | ~(
            here | (fresh & np.take_along_axis(state.cut[rows], sites, 1))
        )
        if near.all():
            return used, alive & reached, np.zeros_like(sites)
        told = state.seen_used[rows, origin]
        age = np.where(near, 0, state.now[rows][:, None] - state.seen_at[rows, origin])
        known = np.where(near, alive, state.seen_alive[rows, origin])
        return np.where(near[..., None], used, told), known & reached, age

    def _learn(self, rows: Ints, jobs: Ints, nodes: Ints) -> None:
        """A refusal carries the node's truth, or shows that it cannot be reached."""
        state, episode = self.state, self.episode
        here, there = episode.origin[rows, jobs], episode.node_site[rows, nodes]
        unreached = (here != there) & (state.cut[rows, here] | state.cut[rows, there])
        state.seen_used[rows, here, nodes] = state.used[rows, nodes]
        state.seen_alive[rows, here, nodes] = state.alive[rows, nodes] & ~unreached
        state.seen_at[rows, here, nodes] = state.now[rows]
