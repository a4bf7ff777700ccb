"""A run's standing as bytes, and back: arrays in safetensors, everything else in its metadata. No code is loaded.

The bytes name the configuration that made them; another configuration cannot go on from them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from blake3 import blake3
from safetensors import SafetensorError

from dwcp.allocation.fleet import Ints
from dwcp.allocation.learn.config import Config
from dwcp.allocation.learn.search import Judged
from dwcp.allocation.learn.trainer import Point, Standing

FORMAT = 1


class CheckpointRefused(ValueError):
    """The checkpoint cannot be gone on from: start anew, or give the settings that it was made with."""


class _Notes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    config: str
    best_cost: float | None
    best_at: int
    points: tuple[tuple[float, ...], ...]


def config_digest(config: Config, course: str) -> str:
    """Of the settings and of the course's own digest: runs that agree in both are the same run."""
    text = msgspec.json.encode(asdict(config), order="deterministic")
    return blake3(text + course.encode()).hexdigest()


def dump_search(judged: Judged, seconds: float, digest: str) -> bytes:
    """What a search found and what it took, and whose it is."""
    arrays = {"found": judged.found, "told": np.array([*judged[1:], seconds])}
    return safetensors.numpy.save(arrays, metadata={"digest": digest})


def load_search(data: bytes, digest: str) -> tuple[Judged, float] | None:
    """The reverse; None where it is another run's, or nothing of the kind."""
    try:
        if _metadata(data)["digest"] != digest:
            return None
        arrays = safetensors.numpy.load(data)
        before, difference, low, high, seconds = arrays["told"].tolist()
    except (msgspec.MsgspecError, SafetensorError, KeyError, TypeError, IndexError, ValueError):
        return None
    return Judged(arrays["found"], before, difference, low, high), seconds


def dump(standing: Standing, digest: str) -> bytes:
    """All of it; equal standings give equal bytes."""
    import jax

    leaves = jax.tree.leaves((standing.learner, standing.best))
    arrays = {f"{number:04d}": np.asarray(leaf, order="C") for number, leaf in enumerate(leaves)}
    notes = _Notes(
        format=FORMAT,
        config=digest,
        best_cost=standing.best_cost if np.isfinite(standing.best_cost) else None,
        best_at=standing.best_at,
        points=tuple(tuple(float(one) for one in point) for point in standing.points),
    )
    metadata = {"notes": msgspec.json.encode(notes, order="deterministic").decode()}
    return safetensors.numpy.save(arrays, metadata=metadata)


def load(data: bytes, like: Standing, digest: str) -> Standing:
    """`like` is a fresh standing of the same configuration. Raises `CheckpointRefused`."""
    import jax
    import jax.numpy as jnp

    notes = _notes(data)
    if notes.config != digest:
        raise CheckpointRefused("the checkpoint was made with other settings or on other windows")
    arrays = safetensors.numpy.load(data)
    wanted, tree = jax.tree.flatten((like.learner, like.best))
    names = [f"{number:04d}" for number in range(len(wanted))]
    if sorted(arrays) != names:
        raise CheckpointRefused("the checkpoint holds other arrays than this program's learner")
    found = []
    for name, leaf in zip(names, wanted, strict=True):
        if arrays[name].shape != leaf.shape or arrays[name].dtype != leaf.dtype:
            raise CheckpointRefused(f"array {name} of the checkpoint has another shape or type")
        found.append(jnp.asarray(arrays[name]))
    learner, best = jax.tree.unflatten(tree, found)
    cost = float("inf") if notes.best_cost is None else notes.best_cost
    return Standing(learner, best, cost, notes.best_at, tuple(_point(values) for values in notes.points))


def course_digest(arrays: tuple[Any, ...]) -> str:
    """Of the windows' arrays, in order."""
    found = blake3()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    """The header is little-endian length and JSON; safetensors' own reader wants a file for the metadata."""
    size = int(np.frombuffer(data[:8], dtype="<u8")[0])
    return dict(msgspec.json.decode(data[8 : 8 + size])["__metadata__"])


def _notes(data: bytes) -> _Notes:
    try:
        notes = msgspec.json.decode(_metadata(data)["notes"], type=_Notes)
        safetensors.numpy.load(data)
    except (msgspec.MsgspecError, SafetensorError, KeyError, TypeError, IndexError, ValueError) as fault:
        raise CheckpointRefused(f"the checkpoint cannot be read: {fault}") from fault
    if notes.format != FORMAT:
        raise CheckpointRefused(f"this program reads checkpoint format {FORMAT}, not {notes.format}")
    return notes


def _point(values: tuple[float, ...]) -> Point:
    if len(values) != len(Point._fields):
        raise CheckpointRefused("the checkpoint's learning curve has other columns")
    whole: Ints = np.array(values[:2]).astype(np.int64)
    return Point(int(whole[0]), int(whole[1]), *values[2:])
