"""One piece of work for many seeds: one after the other here, or through Ray on every core that a cluster has.

The work is the same function either way and touches no file: a seed's files come in and go back as bytes, so that it
may run on any machine that has this program. A machine that is lost costs its seed what it had not sent back; the
others go on, and the next run goes on from what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dwcp.runtime.errors import Exit, RuntimeFault

LOCAL = "local"  # a Ray of this machine's own, for the time of the run

Files = Mapping[str, bytes]


class Told(NamedTuple):
    """A seed's answer and its files; `fault` is a sentence where there is neither."""

    seed: int
    answer: dict[str, Any]
    files: Files
    fault: str = ""


Work = Callable[[int, Files], Told]


class RayMissing(RuntimeFault):
    """Seeds were to be spread through Ray and it is not installed, or its cluster does not answer."""

    exit_code = Exit.USAGE


def spread(work: Work, given: Mapping[int, Files], *, ray: str) -> Iterator[Told]:
    """Each seed of `given` as it ends; its files so far go in. `ray`: `local`, the address of a cluster, or empty to
    do without. Raises `RayMissing`."""
    if not ray:
        yield from (work(seed, files) for seed, files in given.items())
        return
    cluster = _joined(ray)
    try:
        task = cluster.remote(num_cpus=1, max_retries=0)(
            one_seed
        )  # Ray takes functions alone, `work` may be bound
        waiting = {task.remote(work, seed, dict(files)): seed for seed, files in given.items()}
        while waiting:
            (done,), _ = cluster.wait(list(waiting), num_returns=1)
            yield _told(cluster, done, waiting.pop(done))
    finally:
        cluster.shutdown()


def one_seed(work: Work, seed: int, files: Files) -> Told:
    return work(seed, files)


def _told(cluster: Any, done: Any, seed: int) -> Told:
    try:
        told: Told = cluster.get(done)
    except cluster.exceptions.RayError as exc:
        return Told(seed, {}, {}, str(exc).strip().splitlines()[-1][:300])
    return told


def _joined(address: str) -> Any:  # Any: Ray is an optional extra without types here
    try:
        import ray
    except ImportError as exc:
        raise RayMissing("Ray is not installed: pip install 'dwcp[ray]'") from exc
    try:
        ray.init(
            None if address == LOCAL else address,
            include_dashboard=False if address == LOCAL else None,
            configure_logging=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as exc:
        raise RayMissing(f"--ray {address[:80]}: {str(exc).splitlines()[0][:200]}") from exc
    return ray


def seeds_of(text: str) -> Sequence[int]:
    """`0,1,5` or `0:10`, the end left out. ValueError: neither, or nothing."""
    low, colon, high = text.partition(":")
    found = tuple(range(int(low), int(high))) if colon else tuple(int(one) for one in text.split(","))
    if not found or len(set(found)) != len(found):
        raise ValueError("no seed, or one twice")
    return found
