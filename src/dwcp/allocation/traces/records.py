"""Reads published traces from their text: Azure 2017 (processed), openb 2023, Standard Workload Format.

Text in, `Records` out; files are opened by `dwcp.runtime.traces`.
"""

from __future__ import annotations

import numpy as np

from dwcp.allocation.fleet import Floats, Ints
from dwcp.allocation.traces.generators import beyond
from dwcp.allocation.traces.jobs import Records

AZURE_BIN_S = 300
SWF_TASK_CORES = 16  # a parallel job wider than this is cut into tasks that arrive together
SWF_MIB_PER_CORE = 2048


class TraceMalformed(ValueError):
    """A trace is not what its format says: the message names the line."""


def azure(vms: str, lifetimes: str, flavours: str, bins: str, *, rng: np.random.Generator) -> Records:
    """The four texts of one split. Lifetimes are known by bin; within it they are drawn evenly.

    A run that was still going when the trace was cut (`C`) gets a lifetime beyond its bin, from the
    fitted survival function. Raises `TraceMalformed`.
    """
    shapes = {letter: [float(part) for part in size.split(",")] for size, letter in _pairs(flavours)}
    low, high = _bounds(bins)
    kinds: list[str] = []
    lives: list[str] = []
    times: list[int] = []
    batch: list[int] = []
    number = 0
    lines = zip(vms.splitlines(), lifetimes.splitlines(), strict=False)
    for place, (vm_line, life_line) in enumerate(lines, 1):
        second, _space, tail = vm_line.partition(" ")
        second_too, _space, lives_tail = life_line.partition(" ")
        mine, theirs = tail.split(","), lives_tail.split(",")
        if second != second_too or len(mine) != len(theirs) or not second.isdigit():
            raise TraceMalformed(f"line {place}: the machines and their lifetimes do not belong together")
        for kind, life in zip(mine, theirs, strict=True):
            if kind == "|":
                number += 1
            elif kind:
                kinds.append(kind)
                lives.append(life)
                times.append(int(second) - AZURE_BIN_S)
                batch.append(number)
        number += 1
    if unknown := {kind for kind in kinds if kind not in shapes}:
        raise TraceMalformed(f"flavour {sorted(unknown)[0]!r} is not in the flavour table")
    size = np.array([shapes[kind] for kind in kinds]).reshape(-1, 2)
    numbers = np.array(batch, dtype=np.int64)
    spread = rng.random(number + 1)[numbers] * AZURE_BIN_S
    order = np.argsort(np.array(times) + spread, kind="stable")
    return Records(
        arrival_s=(np.array(times) + spread)[order],
        cpu_milli=(size[:, 0] * 1000).astype(np.int64)[order],
        memory_mib=(size[:, 1] * 1024).astype(np.int64)[order],
        duration_s=_durations(lives, low, high, rng)[order],
        batch=numbers[order],
    )


def openb(pods: str) -> Records:
    """`openb_pod_list_*.csv`; pods that were never scheduled have no duration and are left out."""
    lines = pods.strip().splitlines()
    names = lines[0].split(",")
    missing = {"cpu_milli", "memory_mib", "qos", "creation_time", "deletion_time", "scheduled_time"} - set(
        names
    )
    if missing:
        raise TraceMalformed(f"line 1: no column {sorted(missing)[0]}")
    column = {name: names.index(name) for name in names}
    kept = []
    for place, line in enumerate(lines[1:], 2):
        cells = line.split(",")
        if len(cells) != len(names):
            raise TraceMalformed(f"line {place}: {len(cells)} cells, {len(names)} expected")
        if cells[column["scheduled_time"]]:
            begin, end = (float(cells[column[name]]) for name in ("scheduled_time", "deletion_time"))
            created = float(cells[column["creation_time"]])
            cpu, memory = (int(cells[column[name]]) for name in ("cpu_milli", "memory_mib"))
            sensitive = 0 if cells[column["qos"]] == "BE" else 2
            kept.append((created, max(cpu, 100), max(memory, 64), max(end - begin, 30.0), sensitive))
    table = np.array(sorted(kept, key=lambda row: row[0]))
    return Records(
        arrival_s=table[:, 0],
        cpu_milli=table[:, 1].astype(np.int64),
        memory_mib=table[:, 2].astype(np.int64),
        duration_s=table[:, 3].astype(np.int64),
        batch=np.arange(len(table)),
        priority=table[:, 4].astype(np.int64),
    )


def swf(text: str) -> Records:
    """Standard Workload Format: submit (2), run time (4), processors (5 or 8). Memory is synthetic.

    A processor is a core. Wide jobs are cut into tasks of 16 cores in one batch; that they should start together
    is not modelled.
    """
    rows = []
    for place, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith(";"):
            cells = line.split()
            if len(cells) < 8:
                raise TraceMalformed(f"line {place}: {len(cells)} fields, at least 8 expected")
            submit, run, procs = float(cells[1]), float(cells[3]), int(float(cells[4]))
            asked = int(float(cells[7]))
            procs = procs if procs > 0 else asked
            if run > 0 and procs > 0:
                tasks = -(-procs // SWF_TASK_CORES)
                cores = -(-procs // tasks)
                rows += [(submit, cores, run, place)] * tasks
    table = np.array(sorted(rows, key=lambda row: row[0])).reshape(-1, 4)
    return Records(
        arrival_s=table[:, 0],
        cpu_milli=(table[:, 1] * 1000).astype(np.int64),
        memory_mib=(table[:, 1] * SWF_MIB_PER_CORE).astype(np.int64),
        duration_s=np.maximum(table[:, 2], 1).astype(np.int64),
        batch=table[:, 3].astype(np.int64),
    )


def _pairs(text: str) -> list[tuple[str, str]]:
    found = []
    for place, line in enumerate(text.strip().splitlines(), 1):
        cells = line.split()
        if len(cells) != 2:
            raise TraceMalformed(f"table, line {place}: two columns expected")
        found.append((cells[0], cells[1]))
    return found


def _bounds(bins: str) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds at which each bin begins and ends; the last has no end of its own."""
    low: dict[int, float] = {}
    for second, name in _pairs(bins):
        low.setdefault(int(name), float(second))
    ordered = sorted(low)
    starts = [low[name] for name in ordered]
    return low, dict(zip(ordered, [*starts[1:], starts[-1] * 1.2], strict=True))


def _durations(
    lives: list[str], low: dict[int, float], high: dict[int, float], rng: np.random.Generator
) -> Ints:
    try:
        names = [int(life[1:]) for life in lives]
        begins: Floats = np.array([low[name] for name in names])
        ends: Floats = np.array([high[name] for name in names])
    except (KeyError, ValueError) as fault:
        raise TraceMalformed(f"a lifetime is not in the table of bins: {fault}") from fault
    censored = np.array([life.startswith("C") for life in lives])
    uniform = rng.random(len(lives))
    inside = begins + uniform * (ends - begins)
    drawn = np.where(censored, beyond(begins, 1 - uniform), inside)
    return np.asarray(np.maximum(drawn, 30), dtype=np.int64)
