"""`dwcp watch`, and what it shares with `dwcp submit --wait`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State, Workload
from dwcp.runtime.errors import Exit

if TYPE_CHECKING:
    from dwcp.api.manager import WorkloadView
    from dwcp.cli.calls import ControlPlane
    from dwcp.cli.environment import Environment
    from dwcp.cli.following import Proof
    from dwcp.runtime.layout import Layout

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="only the end")]


def watch(identity: Workload, quiet: Quiet = False, state: State = None, as_json: Json = False) -> None:
    """Follow a workload to its end, then verify the receipt of that end.

    The exit code is the job's: 0 done, 2 failed or cancelled, 3 unknown.

    Example: dwcp watch w-abcdefghij
    """
    from dwcp.cli.calls import control_plane

    env = current()
    layout = env.layout(state)
    with control_plane(env, layout) as manager:
        conclude(env, layout, manager, identity, as_json=as_json, quiet=quiet)


def conclude(
    env: Environment,
    layout: Layout,
    manager: ControlPlane,
    identity: str,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Follows, verifies, shows, and ends the command with the job's exit code."""
    from dwcp.cli import following
    from dwcp.cli.calls import genesis_of

    started_ms = env.clock.monotonic_ms()
    silent = quiet or as_json
    with output.progress(quiet=silent) as bars:
        screen = following.Screen(bars, (lambda _text: None) if silent else output.remark)
        view = following.follow(manager, identity, clock=env.clock, screen=screen, sleep=time.sleep)
    proof = following.proof_of(manager, view, genesis_of(layout), clock=env.clock, sleep=time.sleep)
    seconds = (env.clock.monotonic_ms() - started_ms) / 1000
    output.show(_as_json(view, proof, seconds), as_json=as_json, text=_as_text(view, proof))
    code = following.EXIT[view.state.state]
    if proof is None and code is Exit.OK:
        code = Exit.UNKNOWN  # done, says the manager; nobody has proven it
    raise typer.Exit(code)


def _as_text(view: WorkloadView, proof: Proof | None) -> str:
    from dwcp.cli.following import describe

    state = view.state
    end = f"{view.id} {state.state.value}"
    if state.node:
        end += f" on {state.node}, attempt {state.attempt}"
    if state.exit_status is not None:
        end += f", exit status {state.exit_status}"
    end += f": {state.reason}" if state.reason else ""
    proven = (
        describe(proof) if proof else "no receipt came: that end is not proven; try `dwcp receipt get` later"
    )
    fetch = f"\nfetch the output with `dwcp output {view.id} DIR`" if state.output_root else ""
    return f"{end}\n{proven}{fetch}"


def _as_json(view: WorkloadView, proof: Proof | None, seconds: float) -> dict[str, Any]:
    verified = None
    if proof is not None:
        facts = proof.facts
        verified = {"kind": proof.stored.kind, "index": facts.index, "signers": facts.signers}
        verified |= {"time_ms": facts.time_ms, "chain_id": facts.chain_id.hex()}
    return {"workload": view, "receipt": verified, "watched_s": round(seconds, 3)}
