"""Named points at which a test can kill, pause or fail a process. Nothing happens unless armed.

Armed only by `--failpoint NAME=ACTION`, for operations scripts by `failpoints` of their configuration, and
only where the configuration says `testing: true`. Actions: `kill` (SIGKILL to this process, once per data
folder, so that a restarted process passes), `pause:MS`, `error` (raises `FailpointError`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dwcp.runtime.errors import ConfigInvalid
from dwcp.runtime.layout import ensure

POINTS: Mapping[str, str] = {
    "ops.deploy.after_stage": "the model is staged, nobody was told",
    "ops.canary.after_start": "the canary has its share, nobody watches it",
    "ops.canary.before_verdict": "the service has a verdict, nobody was told",
    "manager.submit.before_commit": "the job is valid, nothing is in the log yet",
    "manager.submit.after_commit": "the job is pending in the log, the caller has no answer yet",
    "manager.propose.before": "the allocator has not been asked",
    "manager.propose.after": "the allocator has answered, nothing is committed",
    "manager.place.before_commit": "the placement is built, not sent",
    "manager.place.after_commit": "the placement is committed, its receipt not stored",
    "manager.expire.before_commit": "a lease has run out, nothing is committed",
    "manager.expire.after_commit": "the expiry is committed",
    "manager.cancel.before_commit": "a cancellation was asked for, nothing is committed",
    "manager.cancel.after_commit": "the cancellation is committed",
    "manager.move.before_commit": "a move is checked, neither its target reserved nor its agent asked",
    "manager.move.after_commit": "a move's target is reserved and its agent asked",
    "manager.rebalance.before_commit": "an operator's plan is checked, nothing is in the log",
    "manager.rebalance.after_commit": "the plan is in the log, the operator has no answer yet",
    "allocator.plan.before": "a plan of moves is asked for",
    "allocator.plan.after": "the plan is computed, not sent",
    "allocator.place.before": "a placement request has arrived",
    "allocator.place.after": "the answer is computed, not sent",
    "compression.predict.before": "a source asks for a codec",
    "compression.predict.after": "the codec is chosen, the source not told",
    "ship.source.before_pack": "the source is about to send a pack",
    "ship.source.after_pack": "the source has sent a pack",
    "ship.push.before_pack": "the sender is about to push a pack",
    "ship.push.after_pack": "the sender has pushed a pack",
    "ship.target.before_manifest": "the target has not asked for the manifest",
    "ship.target.after_manifest": "the target has the manifest and no chunk",
    "ship.target.before_chunk": "a chunk is verified, not stored",
    "ship.target.after_chunk": "a chunk is stored",
    "ship.target.before_complete": "all chunks are there, the payload is not marked complete",
    "ship.target.after_complete": "the payload is marked complete",
    "agent.shipped.before": "the payload is complete, the agent has not noted it",
    "agent.shipped.after": "the agent has noted that the payload is complete",
    "agent.running.before_commit": "the attempt is durable here, not in the log",
    "agent.running.after_commit": "the log says running, no process exists",
    "agent.start.before": "the shim is about to be started",
    "agent.start.after": "the shim has been started",
    "agent.lease.before_renew": "a lease is about to be renewed",
    "agent.lease.after_renew": "a renewal is committed, the shim not told",
    "agent.publish.before": "the command has ended, its output is not captured",
    "agent.publish.after": "the output is durable, the log does not know",
    "agent.done.before_commit": "the end is about to be committed",
    "agent.done.after_commit": "the end is committed, nothing cleaned up",
    "shim.exec.before": "the start is recorded, the command does not run",
    "shim.exec.after": "the command has been started",
    "shim.command": "the command runs; `kill` hits the command and not its shim",
    "shim.exit.before_record": "the command has ended, nothing says so",
    "shim.exit.after_record": "the exit status is durable",
    "node.journal.before_write": "a group is about to be written to the journal",
    "node.journal.after_write": "a group is written, not synced",
    "node.journal.before_sync": "a group is about to be synced",
    "node.journal.after_sync": "a group is durable, its messages not sent",
    "node.send.before": "a frame is about to be sent to peers",
    "node.execute.before": "a batch is decided, not executed",
    "node.execute.after": "a batch is executed, nobody was answered",
    "node.reply.before": "a reply is about to be sent",
    "node.snapshot.before_write": "a snapshot is about to be written",
    "node.snapshot.after_write": "a snapshot is written under its temporary name",
    "node.snapshot.after_rename": "a snapshot is durable, the replica not told",
}


class FailpointError(Exception):
    """Raised by a point that is armed with `error`; never in production."""


_armed: dict[
    str, tuple[str, Path]
] = {}  # process-wide on purpose: a point is a place in the code, not an object


def parse(specs: Sequence[str], *, testing: bool) -> dict[str, str]:
    """NAME=ACTION pairs, checked. Raises `ConfigInvalid`."""
    if specs and not testing:
        raise ConfigInvalid("--failpoint is refused: the configuration does not say `testing: true`")
    actions = {}
    for spec in specs:
        name, _, action = spec.partition("=")
        if name not in POINTS:
            raise ConfigInvalid(f"--failpoint {spec}: no point is named {name!r}; see runtime/failpoints.py")
        if action not in {"kill", "error"} and not _is_pause(action):
            raise ConfigInvalid(f"--failpoint {spec}: the action must be kill, error or pause:MS")
        actions[name] = action
    return actions


def arm(specs: Sequence[str], data_dir: Path, *, testing: bool) -> None:
    """Arms the points for this process; replaces what was armed before."""
    actions = parse(specs, testing=testing)
    _armed.clear()
    for name, action in actions.items():
        _armed[name] = (action, data_dir)


def failpoint(name: str) -> None:
    """Marks a point. Costs one dictionary look-up when nothing is armed."""
    if name in _armed:
        _trip(name)


def has_fired(name: str, data_dir: Path) -> bool:
    """Whether `kill` was carried out at this point in this data folder."""
    return _marker(name, data_dir).exists()


def mark_fired(name: str, data_dir: Path) -> None:
    """Durable before the process dies, or it would die at each restart."""
    marker = _marker(name, data_dir)
    ensure(marker.parent)
    for path, flags in ((marker, os.O_WRONLY | os.O_CREAT), (marker.parent, os.O_RDONLY)):
        descriptor = os.open(path, flags, 0o600)
        os.fsync(descriptor)
        os.close(descriptor)


def _trip(name: str) -> None:
    action, data_dir = _armed[name]
    if action == "error":
        raise FailpointError(name)
    if action != "kill":
        time.sleep(int(action.removeprefix("pause:")) / 1000)
    elif not has_fired(name, data_dir):
        mark_fired(name, data_dir)
        os.kill(os.getpid(), signal.SIGKILL)


def _marker(name: str, data_dir: Path) -> Path:
    return data_dir / "failpoints" / f"{name}.fired"


def _is_pause(action: str) -> bool:
    return action.startswith("pause:") and action.removeprefix("pause:").isascii() and action[6:].isdigit()
