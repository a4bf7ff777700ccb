"""Drains and rebalances: what moves, what stays, who is believed, and what is left when somebody dies."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.unit.services.manager.stage import add_node, finish
from tests.unit.services.manager.test_coordinator import ID, OTHER, Scene

from dwcp.allocation.rebalance import plan as own_plan
from dwcp.api.kv import Put, Txn
from dwcp.api.rebalance import Budget, Cost, Move, Order, Plan, PlanRequest, Standing, Wish
from dwcp.api.workloads import (
    Allocation,
    Demand,
    NodeStatus,
    Place,
    Retry,
    State,
    allocation_key,
    state_key,
)
from dwcp.control.attempt_log import ended
from dwcp.control.errors import NotReady, RebalanceRefused, RebalanceUnderWay
from dwcp.runtime import failpoints
from dwcp.runtime.failpoints import FailpointError
from dwcp.services.manager.moves import MoveLimits, OwnRules

THIRD = "w-cccccccccc"
FREE = Cost()


class Told(OwnRules):
    """A planner that proposes what it is told to; `asked` counts."""

    def __init__(self, *moves: Move) -> None:
        self.moves = moves
        self.asked: list[PlanRequest] = []
        self.alone = 0

    async def plan(self, wanted: PlanRequest) -> Plan:
        self.asked.append(wanted)
        return Plan(self.moves, FREE, FREE, 1000.0, "" if self.moves else "nothing to gain", "told")

    async def own(self, wanted: PlanRequest, *, because: str) -> Plan:
        self.alone += 1
        return await super().own(wanted, because=because)


class Yard(Scene):
    """Two nodes of two cores, and the agents' part in a test's hands."""

    def __init__(self, **more: object) -> None:
        self.away: set[str] = set()
        ports = {"lease_ms": 60_000, "unreachable": lambda: frozenset(self.away)}
        super().__init__(nodes=("lima", "oslo"), **(ports | more))

    def runs(self, identity: str = ID, *, node: str = "oslo", **changes: object) -> None:
        """A workload that runs on that node."""
        self.submit(identity, place=Place(site=node), **({"retry": Retry.SAFE} | changes))
        self.step()
        self.set_state(identity, state=State.RUNNING, started=True)
        assert self.state(identity).node == node
        self.read()

    def anywhere(self, identity: str = ID, *, node: str = "oslo", **changes: object) -> None:
        """The same without a pin: the other node is away while it is placed."""
        self.away = {"lima", "oslo"} - {node}
        self.submit(identity, **({"retry": Retry.SAFE} | changes))
        self.step()
        self.away = set()
        self.set_state(identity, state=State.RUNNING, started=True)
        assert self.state(identity).node == node
        self.read()

    def read(self) -> None:
        finish(self.manager.refresh(linearizable=True))

    def give_up(self, identity: str = ID, *, to: State = State.PENDING) -> None:
        """What its agent does: the state and its place in one transaction."""
        state = self.state(identity)
        left = tuple(entry for entry in self.placed(state.node) if entry[0] != identity)
        kept = [
            entry for entry in self.allocation(state.node).placed if (entry.workload, entry.attempt) in left
        ]
        after = ended(state, to, reason="r", exit_status=None, output=None, late=False)
        self.log.apply(
            Txn(
                success=(
                    Put(state_key(identity), msgspec.json.encode(after)),
                    Put(allocation_key(state.node), msgspec.json.encode(Allocation(placed=tuple(kept)))),
                )
            )
        )
        self.read()

    def allocation(self, node: str) -> Allocation:
        return msgspec.json.decode(self.log.get(allocation_key(node)) or b"{}", type=Allocation)

    def placed(self, node: str) -> list[tuple[str, int]]:
        return [(entry.workload, entry.attempt) for entry in self.allocation(node).placed]

    def order(self, *moves: Move, identity: str = "r1") -> None:
        finish(self.manager.order(Order(identity, moves), by="ann"))

    def standings(self) -> tuple[Standing, ...]:
        return self.manager.moves.view().standings


def order_and_step(scene: Yard) -> None:
    scene.order(Move(ID, 1, "oslo", "lima"))
    scene.step()


def test_a_drain_moves_what_may_run_again_and_leaves_the_rest() -> None:
    """Goal: reserve, ask, wait, place. Method: a safe and a careful job; look at the log after each step."""
    scene = Yard()
    scene.anywhere()
    scene.anywhere(OTHER, retry=Retry.NEVER)
    finish(scene.manager.drain("oslo", undo=False))
    scene.step()

    assert (scene.state().state, scene.state().node, scene.state().move) == (State.RUNNING, "oslo", "lima")
    assert scene.placed("lima") == [(ID, 2)], "its place is kept before anything is stopped"
    assert scene.placed("oslo") == [(ID, 1), (OTHER, 1)]
    assert scene.state(OTHER).move == ""
    scene.step()
    scene.log.now_ms += 6_000
    scene.step()
    assert scene.placed("lima") == [(ID, 2)], "asked once; the kept place is no orphan"
    scene.give_up()
    scene.step()
    moved = scene.state()
    assert (moved.state, moved.node, moved.attempt, moved.move) == (State.PLACED, "lima", 2, "")
    assert (moved.moves, moved.policy) == (1, "planned move")
    assert (scene.placed("lima"), scene.placed("oslo")) == ([(ID, 2)], [(OTHER, 1)])
    assert scene.receipts.has(ID, 2, "placed")
    assert "note" in scene.kinds()


def test_what_was_placed_and_never_started_may_always_go() -> None:
    """Goal: `retry: never` is about starts. Method: drain under a placed job."""
    scene = Yard()
    scene.anywhere(retry=Retry.NEVER)
    scene.set_state(state=State.PLACED, started=False)
    scene.read()
    finish(scene.manager.drain("oslo", undo=False))
    scene.step()

    assert scene.state().move == "lima"


def test_a_closed_node_keeps_its_work() -> None:
    """Goal: the gentle way out of service. Method: keep; then a drain after all."""
    scene = Yard()
    scene.anywhere()
    finish(scene.manager.drain("oslo", undo=False, keep=True))
    scene.step()
    assert (scene.state().move, scene.manager.inventory.node("oslo").node.status) == ("", NodeStatus.CLOSED)  # type: ignore[union-attr]
    finish(scene.manager.drain("oslo", undo=False))
    scene.step()
    assert scene.state().move == "lima"


def test_a_drain_waits_where_there_is_no_room_and_goes_on_later() -> None:
    """Goal: nothing is stopped without a place elsewhere. Method: the other node is full, then empties."""
    scene = Yard()
    scene.anywhere()
    scene.runs(OTHER, node="lima", demand=Demand(cpu=2, memory_mib=64, storage_mib=64))
    finish(scene.manager.drain("oslo", undo=False))
    scene.step()

    assert scene.state().move == ""
    assert scene.manager.next_retry_ms() is not None
    for _ in range(3):
        scene.log.now_ms += 4_000
        scene.step()
    assert scene.kinds().count("note") == 1, "told once why it stays"
    scene.give_up(OTHER, to=State.DONE)
    scene.step()
    assert scene.state().move == "lima"


def test_a_drain_keeps_to_its_limits() -> None:
    """Goal: at most so many at once. Method: two jobs, one slot."""
    scene = Yard(limits=MoveLimits(at_once=1))
    scene.anywhere()
    scene.anywhere(OTHER)
    finish(scene.manager.drain("oslo", undo=False))
    for _ in range(3):
        scene.step()
        scene.log.now_ms += 1_000
    assert sorted([scene.state().move, scene.state(OTHER).move]) == ["", "lima"]

    first = ID if scene.state().move else OTHER
    scene.give_up(first)
    scene.step()
    scene.step()
    assert {
        scene.state(ID).move or scene.state(ID).node,
        scene.state(OTHER).move or scene.state(OTHER).node,
    } == {"lima"}


@pytest.mark.parametrize(
    "move",
    [
        None,
        Move(ID, 1, "oslo", "nowhere"),
        Move(ID, 1, "oslo", "oslo"),
        Move(ID, 7, "oslo", "lima"),
        Move(OTHER, 1, "lima", "oslo"),
        Move("w-zzzzzzzzzz", 1, "oslo", "lima"),
    ],
)
def test_a_lying_allocator_cannot_mislead_a_drain(move: Move | None) -> None:
    """Goal: the manager's own rules empty the node then. Method: plans that cannot be, or have nothing in them."""
    planner = Told(*([] if move is None else [move]))
    scene = Yard(planner=planner)
    scene.anywhere()
    scene.runs(OTHER, node="lima")
    finish(scene.manager.drain("oslo", undo=False))
    scene.step()

    assert (len(planner.asked), planner.alone) == (1, 1)
    assert (scene.state().move, scene.state(OTHER).move) == ("lima", "")


def test_a_lying_allocator_cannot_mislead_a_rebalance() -> None:
    """Goal: what gains nothing is not proposed to operators. Method: a harmless and useless move, praised."""
    planner = Told(Move(ID, 1, "oslo", "lima"))
    scene = Yard(planner=planner)
    scene.anywhere()

    plan = finish(scene.manager.wish(Wish()))

    assert (plan.moves, planner.alone) == ((), 1)
    assert "did not hold" in plan.policy


def test_an_ordered_plan_is_carried_out_in_order_and_ends() -> None:
    """Goal: each move once, the next when there is room for it. Method: two jobs change places."""
    scene = Yard()
    scene.anywhere(demand=Demand(cpu=1.5, memory_mib=64, storage_mib=64))
    scene.anywhere(OTHER, node="lima", demand=Demand(cpu=0.5, memory_mib=64, storage_mib=64))
    scene.anywhere(THIRD, node="lima", demand=Demand(cpu=0.5, memory_mib=64, storage_mib=64))
    moves = (Move(OTHER, 1, "lima", "oslo"), Move(ID, 1, "oslo", "lima"))

    scene.order(*moves)
    scene.step()
    assert scene.standings() == (Standing.UNDER_WAY, Standing.WAITING), "no room for the second yet"
    scene.order(*moves)  # the same again changes nothing
    with pytest.raises(RebalanceUnderWay):
        scene.order(Move(THIRD, 1, "lima", "oslo"), identity="r2")
    scene.give_up(OTHER)
    scene.step()
    scene.step()
    assert scene.standings() == (Standing.MOVED, Standing.UNDER_WAY)
    scene.give_up()
    scene.step()
    scene.step()
    assert scene.standings() == (Standing.MOVED, Standing.MOVED)
    assert scene.manager.moves.view().rebalance.ended
    assert (scene.placed("oslo"), scene.placed("lima")) == ([(OTHER, 2)], [(THIRD, 1), (ID, 2)])


def test_a_move_without_room_is_passed_over_at_last() -> None:
    """Goal: a plan ends whatever happened meanwhile. Method: the target filled up after the order."""
    scene = Yard()
    scene.anywhere()
    scene.order(Move(ID, 1, "oslo", "lima"))
    finish(scene.manager.drain("lima", undo=False))
    scene.step()
    scene.step()

    view = scene.manager.moves.view()
    assert (view.rebalance.ended, view.standings, scene.state().move) == (True, (Standing.STAYED,), "")


def test_a_job_that_ends_instead_frees_the_kept_place() -> None:
    """Goal: no place is lost. Method: it ends while asked to move; the kept place is swept."""
    scene = Yard()
    scene.anywhere()
    scene.order(Move(ID, 1, "oslo", "lima"))
    scene.step()
    scene.give_up(to=State.DONE)
    scene.step()
    assert scene.manager.moves.view().standings == (Standing.STAYED,)
    scene.log.now_ms += 5_001
    scene.step()

    assert scene.placed("lima") == []
    assert scene.manager.moves.view().rebalance.ended


def test_a_plan_does_not_stay_open_for_an_agent_that_ignores_it() -> None:
    """Goal: the next plan can be ordered. Method: the wish is ignored and the lease renewed for over an hour."""
    scene = Yard()
    scene.anywhere()
    scene.order(Move(ID, 1, "oslo", "lima"))
    scene.step()
    scene.log.now_ms += 3_600_001
    scene.set_state(lease_deadline_ms=scene.log.now_ms + 60_000)
    scene.read()
    scene.step()

    view = scene.manager.moves.view()
    assert (view.rebalance.ended, view.standings) == (True, (Standing.UNDER_WAY,))


def test_a_lost_agents_lease_decides_and_the_kept_place_is_used() -> None:
    """Goal: a move needs no living agent. Method: asked, silence, lease over."""
    scene = Yard(lease_ms=3_000)
    scene.anywhere()
    scene.order(Move(ID, 1, "oslo", "lima"))
    scene.step()
    scene.log.now_ms += 2_900
    scene.step()
    assert scene.state().state is State.RUNNING, "its lease is not over"
    scene.log.now_ms += 200
    scene.step()
    scene.step()

    assert (scene.state().node, scene.state().attempt) == ("lima", 2)
    assert (scene.placed("lima"), scene.placed("oslo")) == ([(ID, 2)], [])


def test_a_kept_place_that_is_drained_is_given_back() -> None:
    """Goal: a drain that comes later wins. Method: the target is drained between the stop and the placement."""
    scene = Yard()
    add_node(scene.log, "rome")
    scene.read()
    scene.anywhere()
    target = scene.state().node
    assert target == "oslo"
    scene.order(Move(ID, 1, "oslo", "lima"))
    scene.step()
    finish(scene.manager.drain("lima", undo=False))
    scene.give_up()
    scene.step()
    assert scene.state().node in {"oslo", "rome"}
    scene.log.now_ms += 1
    scene.step()
    scene.log.now_ms += 5_001
    scene.step()

    assert scene.placed("lima") == []


@pytest.mark.parametrize(
    "point",
    [
        "manager.move.before_commit",
        "manager.move.after_commit",
        "manager.rebalance.before_commit",
        "manager.rebalance.after_commit",
    ],
)
def test_a_manager_that_dies_leaves_a_plan_that_another_finishes(point: str, tmp_path: Path) -> None:
    """Goal: exactly once, whoever dies where. Method: an error at the point, a new manager, the same order."""
    scene = Yard()
    scene.anywhere()
    failpoints.arm([f"{point}=error"], tmp_path, testing=True)
    try:
        with pytest.raises(FailpointError):
            order_and_step(scene)
    finally:
        failpoints.arm([], tmp_path, testing=True)
    scene.restart()
    scene.order(Move(ID, 1, "oslo", "lima"))
    scene.step()
    scene.step()
    assert scene.placed("lima") == [(ID, 2)]
    scene.give_up()
    scene.step()
    scene.step()

    assert (scene.state().node, scene.state().attempt, scene.state().moves) == ("lima", 2, 1)
    assert scene.manager.moves.view().rebalance.ended


def test_orders_that_do_not_hold_are_refused() -> None:
    """Goal: a sentence, and nothing in the log. Method: no moves, bad ids, old attempts, another plan's id."""
    scene = Yard()
    scene.anywhere()
    good = Move(ID, 1, "oslo", "lima")
    for order in (
        Order("r1", ()),
        Order("", (good,)),
        Order("a/b", (good,)),
        Order("r1", (Move(ID, 2, "oslo", "lima"),)),
    ):
        with pytest.raises(RebalanceRefused):
            finish(scene.manager.order(order, by="ann"))
    assert scene.manager.inventory.rebalance is None
    scene.order(good)
    with pytest.raises(RebalanceRefused, match="another plan"):
        scene.order(Move(ID, 1, "oslo", "oslo"))


def test_nothing_is_planned_before_the_log_was_read() -> None:
    """Goal: an unread log refuses. Method: a fresh manager."""
    scene = Yard()
    scene.manager.loaded = False
    with pytest.raises(NotReady):
        finish(scene.manager.wish(Wish()))


def test_a_wish_moves_for_work_that_waits() -> None:
    """Goal: what operators ask for: room for a large job. Method: both nodes half full, a whole one is wanted."""
    scene = Yard()
    scene.anywhere()
    scene.anywhere(OTHER, node="lima")
    scene.submit(THIRD, demand=Demand(cpu=2, memory_mib=64, storage_mib=64), priority=5)
    scene.step()
    assert scene.state(THIRD).state is State.PENDING

    plan = finish(scene.manager.wish(Wish(budget=Budget(moves_max=1))))
    scene.order(*plan.moves)
    scene.step()
    scene.give_up(plan.moves[0].workload)
    scene.log.now_ms += 4_000
    scene.step()
    scene.step()

    assert scene.state(THIRD).state is State.PLACED
    assert scene.manager.inventory.node(scene.state(THIRD).node) is not None


def test_unreachable_nodes_take_no_moves() -> None:
    """Goal: nobody is moved onto a node that does not answer. Method: the only target is away."""
    scene = Yard()
    scene.anywhere()
    scene.away.add("lima")
    finish(scene.manager.drain("oslo", undo=False))
    scene.step()

    assert scene.state().move == ""
    assert own_plan(scene.manager.moves._request(Budget(), leave=("oslo",))).moves == ()
    assert scene.manager.inventory.node("lima").node.status is NodeStatus.READY  # type: ignore[union-attr]
