"""`dwcp rebalance`."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Annotated

import typer

from dwcp.api import rebalance as api
from dwcp.api.health import Verdict
from dwcp.api.rebalance import Budget, Order, Plan, Rebalance, RebalanceView, Standing, Wish
from dwcp.api.workloads import Shape
from dwcp.cli.output import Table
from dwcp.cli.scripts import Outcome, Run, script

if TYPE_CHECKING:
    from dwcp.cli.calls import ControlPlane

LOOK_S = 0.3
NOTHING = Rebalance(id="", moves=(), ended=True)


class Rebalanced(Shape, frozen=True):
    """`plan` is what was proposed, `rebalance` what was ordered of it, with a standing for each move."""

    plan: Plan | None
    rebalance: Rebalance
    standings: tuple[Standing, ...]


@script("rebalance", answers=Rebalanced, changes=True, budget_s=900.0)
def rebalance(
    run: Run,
    moves: Annotated[int, typer.Option(min=1, max=256, help="workloads to move at most")] = 16,
    gigabytes: Annotated[
        float, typer.Option(min=0, max=1e6, help="data that may have to be fetched again, GB")
    ] = 10.0,
    gain: Annotated[
        float,
        typer.Option(min=0, max=1e6, help="dollars that a move must gain; see docs/operating/manager.md"),
    ] = 0.01,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, max=800, help="seconds to wait until the moves have been made")
    ] = 300.0,
    show: Annotated[bool, typer.Option("--show", help="only tell how far the newest plan is")] = False,
) -> Outcome:
    """Move work to where it costs less, or to make room for what waits.

    Only what never started moves, and what its job allows to run again. Exit codes: 0 moved, or nothing to
    gain; 1 some moves were not possible any more; 3 not known yet: it goes on by itself; 4 refused.

    Example: dwcp rebalance --dry-run, and then: dwcp rebalance --yes
    (the same as dwcp ops rebalance)
    """
    from dwcp.cli.calls import control_plane

    with control_plane(run.env, run.layout) as manager:
        if show:
            return _told(None, manager.ask(RebalanceView, api.view()))
        budget = Budget(moves_max=moves, bytes_max=int(gigabytes * 1e9))
        plan = manager.ask(Plan, api.wish(Wish(budget=budget, gain_min_usd=gain)))
        if run.dry_run or not plan.moves:
            return _planned(plan)
        for row in _rows(plan.moves, ()):
            run.remark("  ".join(row))
        run.agree(f"make these {len(plan.moves)} moves, for ${plan.gain_usd:.4f}?")
        run.if_interrupted = "what was ordered goes on by itself; dwcp rebalance --show tells how far it is"
        ordered = manager.ask(
            RebalanceView, api.order(Order(id=f"r-{secrets.token_hex(6)}", moves=plan.moves))
        )
        return _told(plan, _followed(manager, ordered, wait_s=wait_s, run=run))


def _followed(manager: ControlPlane, view: RebalanceView, *, wait_s: float, run: Run) -> RebalanceView:
    """Until it has ended, or the time is over; a manager that restarts is waited for."""
    from dwcp.cli.calls import ServiceUnavailable
    from dwcp.runtime.errors import NotRunning

    identity, until_ms = view.rebalance.id, run.env.clock.monotonic_ms() + int(wait_s * 1000)
    while not view.rebalance.ended and run.env.clock.monotonic_ms() < until_ms:
        time.sleep(LOOK_S)
        try:
            found = manager.ask(RebalanceView, api.view())
        except (ServiceUnavailable, NotRunning):
            continue
        if found.rebalance.id != identity:
            break  # ended, and another one was ordered since
        view = found
    return view


def _planned(plan: Plan) -> Outcome:
    if not plan.moves:
        return Outcome(Verdict.OK, f"nothing is moved: {plan.reason}", result=Rebalanced(plan, NOTHING, ()))
    return Outcome(
        Verdict.OK,
        f"{len(plan.moves)} moves would gain ${plan.gain_usd:.4f}; nothing was changed",
        result=Rebalanced(plan, NOTHING, ()),
        lines=(_costs(plan), f"planned by: {plan.policy}"),
        table=_table(plan.moves, ()),
        next="dwcp rebalance --yes",
    )


def _told(plan: Plan | None, view: RebalanceView) -> Outcome:
    result = Rebalanced(plan, view.rebalance, view.standings)
    if not view.rebalance.id:
        return Outcome(Verdict.OK, "no plan was ever ordered", result=result)
    count = {each: view.standings.count(each) for each in Standing}
    table = _table(view.rebalance.moves, view.standings)
    moved = f"{count[Standing.MOVED]} of {len(view.rebalance.moves)} workloads have moved"
    if not view.rebalance.ended:
        verdict, said = Verdict.UNKNOWN, f"{moved}; the rest goes on by itself"
        return Outcome(verdict, said, result=result, table=table, next="dwcp rebalance --show")
    if count[Standing.STAYED]:
        said = (
            f"{moved}; {count[Standing.STAYED]} stayed: they had ended, or their target had no room any more"
        )
        return Outcome(Verdict.WARN, said, result=result, table=table, next="dwcp rebalance --dry-run")
    return Outcome(Verdict.OK, moved, result=result, table=table)


def _costs(plan: Plan) -> str:
    names = [
        name
        for name in plan.before.__struct_fields__
        if getattr(plan.before, name) or getattr(plan.after, name)
    ]
    parts = [
        f"{name} ${getattr(plan.before, name):.4f} to ${getattr(plan.after, name):.4f}" for name in names
    ]
    return f"cost: {', '.join(parts) or 'nothing'}"


def _table(moves: tuple[api.Move, ...], standings: tuple[Standing, ...]) -> Table:
    return Table(("workload", "from", "to", "bytes", "standing"), _rows(moves, standings))


def _rows(moves: tuple[api.Move, ...], standings: tuple[Standing, ...]) -> list[tuple[str, ...]]:
    found = [standing.value for standing in standings] or [""] * len(moves)
    return [
        (move.workload, move.source, move.target, str(move.bytes), standing)
        for move, standing in zip(moves, found, strict=True)
    ]
