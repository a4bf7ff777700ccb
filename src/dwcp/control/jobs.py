"""Reading job files strictly: every refusal is a sentence that names the key.

The command line and the manager call the same functions, the first before
anything is uploaded, the second because it trusts nobody. Nothing here reads
files: text comes in, a `Job` goes out.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from enum import EnumMeta
from typing import Any, get_args, get_type_hints

import msgspec
import yaml

from dwcp.api.workloads import Capacity, Job, Node, PayloadRef
from dwcp.control.errors import DemandImpossible, JobRefused

JOB_FILE_BYTES_MAX = 64 * 1024
DEPTH_MAX = 16
ARGUMENTS_MAX = 256
ARGUMENTS_BYTES_MAX = 64 * 1024
WALL_MS_MAX = 7 * 24 * 3_600_000
DEADLINE_MS_MAX = 90 * 24 * 3_600_000
FILES_MAX = 1_000_000
QUANTITY_MAX = 10**9  # no machine has more of anything, in thousandths of cores, MiB or Mbit/s
RESOURCES = ("cpu_milli", "memory_mib", "storage_mib", "bandwidth_mbps")
UNIT = {
    "cpu_milli": "thousandths of a core",
    "memory_mib": "MiB",
    "storage_mib": "MiB",
    "bandwidth_mbps": "Mbit/s",
}

_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SITE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_IDENTITY = re.compile(r"w-[a-z2-7]{10}")
_ROOT = re.compile(r"[0-9a-f]{64}")
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def read_job(text: bytes, *, source: str) -> Job:
    """The job of a YAML file; `source` names the file in refusals. Raises `JobRefused`."""
    if len(text) > JOB_FILE_BYTES_MAX:
        raise JobRefused(f"{source}: {len(text)} bytes; a job file has at most {JOB_FILE_BYTES_MAX}")
    try:
        return check_job(_shaped(_plain(text)))
    except JobRefused as exc:
        raise JobRefused(f"{source}: {exc}") from exc


def check_job(job: Job) -> Job:
    """The same job if every value is in range; raises `JobRefused` naming the key."""
    _match(_NAME, job.name, key="name", allowed="letters, digits, '.', '_' and '-', at most 63")
    _check_demand(job)
    _check_command(job.run)
    if not 1 <= job.priority <= 5:
        raise JobRefused(f"priority: {job.priority}; it is 1 (low) to 5 (high)")
    if job.deadline:
        _between(duration_ms(job.deadline, key="deadline"), 1_000, DEADLINE_MS_MAX, key="deadline", unit="ms")
    _check_data(job)
    if job.place.site:
        _match(_SITE, job.place.site, key="place.site", allowed="lowercase letters, digits and '-'")
    _check_output(job.output)
    if job.verify == 2:
        raise JobRefused("verify: 2 needs the trust log, which this version does not have yet; use verify: 1")
    if job.verify != 1:
        raise JobRefused(f"verify: {job.verify}; it is 1")
    _between(
        duration_ms(job.limits.wall, key="limits.wall"), 1_000, WALL_MS_MAX, key="limits.wall", unit="ms"
    )
    _between(job.limits.files, 1, FILES_MAX, key="limits.files", unit="files")
    return job


def check_identity(identity: str) -> str:
    """A workload id as `dwcp submit` makes it; raises `JobRefused`."""
    if not _IDENTITY.fullmatch(identity):
        raise JobRefused(f"id: {identity[:40]!r}; it is 'w-' and 10 characters of a-z and 2-7")
    return identity


def check_payload(job: Job, payload: PayloadRef | None) -> None:
    """The uploaded payload is the one that the job speaks of; raises `JobRefused`."""
    if job.data is None:
        if payload is not None:
            raise JobRefused("payload: given, but the job has no data section")
        return
    if payload is None:
        raise JobRefused("payload: missing; upload the files of data.path first")
    if payload.site != job.data.site:
        raise JobRefused(f"payload.site: {payload.site!r}, but data.site is {job.data.site!r}")
    _match(_ROOT, payload.root, key="payload.root", allowed="64 hexadecimal digits")
    _match(_NAME, payload.agent, key="payload.agent", allowed="a node's name")
    _between(payload.bytes, 0, 2**50, key="payload.bytes", unit="bytes")
    _between(payload.files, 0, FILES_MAX, key="payload.files", unit="files")
    needed = math.ceil(payload.bytes / 2**20)
    if needed > job.demand.storage_mib:
        raise JobRefused(
            f"demand.storage_mib: {job.demand.storage_mib}, but the payload takes {needed} MiB; raise it"
        )


def duration_ms(text: str, *, key: str) -> int:
    """`90s`, `5m`, `1h`, `250ms`, `2d` in milliseconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise JobRefused(
            f"{key}: {text[:40]!r} is no duration; write a number and ms, s, m, h or d, such as 90s"
        )
    return int(match[1]) * _UNIT_MS[match[2]]


def demand_of(job: Job) -> Capacity:
    """The demand in whole units, rounded up: a part of a unit is never given away twice."""
    return Capacity(
        cpu_milli=math.ceil(round(job.demand.cpu * 1000, 6)),
        memory_mib=job.demand.memory_mib,
        storage_mib=job.demand.storage_mib,
        bandwidth_mbps=math.ceil(job.demand.bandwidth_mbps),
    )


def check_possible(job: Job, nodes: Iterable[Node]) -> None:
    """Some node, emptied, could take the job. Raises `JobRefused` or `DemandImpossible`.

    Status is ignored: a drained or unreachable node may come back.
    """
    fleet = sorted(nodes, key=lambda node: node.name)
    _known_site(job.data.site if job.data else "", fleet, key="data.site")
    _known_site(job.place.site, fleet, key="place.site")
    allowed = [node for node in fleet if job.place.site in ("", node.site)]
    demand = demand_of(job)
    if any(not _short(demand, node.capacity) for node in allowed):
        return
    where = f" at site {job.place.site}" if job.place.site else ""
    for resource in RESOURCES:
        largest = max(allowed, key=lambda node, r=resource: getattr(node.capacity, r))  # type: ignore[misc]
        needed, has = getattr(demand, resource), getattr(largest.capacity, resource)
        if needed > has:
            raise DemandImpossible(
                f"demand.{_job_key(resource)}: {needed} {UNIT[resource]}, but the largest node{where}, "
                f"{largest.name}, has {has}; ask for less or add a larger node"
            )
    nearest = min(allowed, key=lambda node: (len(_short(demand, node.capacity)), node.name))
    resource = _short(demand, nearest.capacity)[0]
    raise DemandImpossible(
        f"demand.{_job_key(resource)}: no single node{where} has everything the job asks for; the nearest, "
        f"{nearest.name}, has {getattr(nearest.capacity, resource)} {UNIT[resource]} "
        f"where {getattr(demand, resource)} are asked"
    )


def _known_site(site: str, fleet: list[Node], *, key: str) -> None:
    sites = sorted({node.site for node in fleet})
    if site and site not in sites:
        raise JobRefused(
            f"{key}: there is no site {site!r}{_nearest(site, sites)}; sites: {', '.join(sites)}"
        )


def _short(demand: Capacity, capacity: Capacity) -> list[str]:
    return [name for name in RESOURCES if getattr(demand, name) > getattr(capacity, name)]


def _job_key(resource: str) -> str:
    return "cpu" if resource == "cpu_milli" else resource


# --------------------------------------------------------------------------- reading


def _plain(text: bytes) -> Any:  # Any: whatever YAML holds, checked by `_shaped`
    """The document as plain values. Anchors are refused: a few of them can unfold without end."""
    try:
        decoded = text.decode("utf-8")
        _scan(decoded)
        return yaml.load(decoded, Loader=_Strict)  # noqa: S506 - derives from SafeLoader
    except UnicodeDecodeError as exc:
        raise JobRefused(f"byte {exc.start} is no UTF-8 text; a job file is YAML") from exc
    except yaml.YAMLError as exc:
        raise JobRefused(f"it is no YAML: {_yaml_problem(exc)}") from exc
    except ValueError as exc:  # dates and numbers that YAML recognises and Python cannot hold
        raise JobRefused(f"a value cannot be read: {exc}") from exc


def _scan(text: str) -> None:
    """Looks at the tokens before anything is built from them: no anchors, no depth, so no blow-up."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            raise JobRefused(f"line {token.start_mark.line + 1}: anchors, aliases and tags are not used here")
        if isinstance(token, _OPENING):
            depth += 1
        elif isinstance(token, _CLOSING):
            depth -= 1
        if depth > DEPTH_MAX:
            raise JobRefused(
                f"line {token.start_mark.line + 1}: nested too deeply; a job file has three levels"
            )


class _Strict(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the standard keeps the last one silently.

    Dates stay text: a job has none, and `2001-99-99` should be named by its key.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - declared like this by its base
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _value in node.value:
            name = str(key.value)
            if name in seen:
                raise JobRefused(f"line {key.start_mark.line + 1}: the key {name[:60]!r} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def _yaml_problem(exc: yaml.YAMLError) -> str:
    mark = getattr(exc, "problem_mark", None)
    problem = getattr(exc, "problem", None) or "unreadable"
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(problem)


def _shaped(value: Any) -> Job:  # Any: plain YAML or JSON values
    if not isinstance(value, dict):
        raise JobRefused("it holds no keys; a job file begins with 'name: …'")
    _refuse_unknown(value, Job, prefix="")
    try:
        return msgspec.convert(value, Job)
    except msgspec.ValidationError as exc:
        raise JobRefused(_sentence(str(exc))) from exc


def _refuse_unknown(value: Mapping[Any, Any], shape: type[msgspec.Struct], *, prefix: str) -> None:
    hints = get_type_hints(shape)
    for key, inner in value.items():
        if key not in hints:
            raise JobRefused(f"unknown key {prefix}{str(key)[:60]}{_nearest(str(key), list(hints))}")
        nested = _struct_of(hints[key])
        if nested is not None and isinstance(inner, dict):
            _refuse_unknown(inner, nested, prefix=f"{prefix}{key}.")


def _struct_of(hint: Any) -> type[msgspec.Struct] | None:  # Any: a type annotation
    for option in (hint, *get_args(hint)):
        if (
            isinstance(option, type)
            and not isinstance(option, EnumMeta)
            and issubclass(option, msgspec.Struct)
        ):
            return option
    return None


def _nearest(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else f"; known: {', '.join(known)}"


def _sentence(problem: str) -> str:
    """msgspec's `Expected …, got … - at `$.a.b`` with the key first."""
    message, _, where = problem.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    missing = re.fullmatch(r"Object missing required field `(.+)`", message)
    if missing:
        return f"{key + '.' if key else ''}{missing[1]}: missing, and required"
    return f"{key or 'job'}: {message[:1].lower()}{message[1:]}"


# --------------------------------------------------------------------------- values


def _match(pattern: re.Pattern[str], value: str, *, key: str, allowed: str) -> None:
    if not pattern.fullmatch(value):
        raise JobRefused(f"{key}: {value[:60]!r} is not allowed; use {allowed}")


def _between(value: float, least: float, most: float, *, key: str, unit: str) -> None:
    if not least <= value <= most:  # also refuses NaN
        raise JobRefused(f"{key}: {value}; it is between {least} and {most} {unit}")


def _check_demand(job: Job) -> None:
    demand = job.demand
    _between(demand.cpu, 0.001, QUANTITY_MAX / 1000, key="demand.cpu", unit="cores")
    _between(demand.memory_mib, 1, QUANTITY_MAX, key="demand.memory_mib", unit="MiB")
    _between(demand.storage_mib, 1, QUANTITY_MAX, key="demand.storage_mib", unit="MiB")
    _between(demand.bandwidth_mbps, 0, QUANTITY_MAX, key="demand.bandwidth_mbps", unit="Mbit/s")


def _check_command(run: tuple[str, ...]) -> None:
    if not run or not run[0]:
        raise JobRefused("run: empty; give the command and its arguments as a list")
    if len(run) > ARGUMENTS_MAX or sum(len(part.encode()) for part in run) > ARGUMENTS_BYTES_MAX:
        raise JobRefused(f"run: at most {ARGUMENTS_MAX} arguments and {ARGUMENTS_BYTES_MAX} bytes together")
    if any("\0" in part for part in run):
        raise JobRefused("run: a NUL character cannot be passed to a program")


def _check_data(job: Job) -> None:
    if job.data is None:
        return
    if not job.data.path or "\0" in job.data.path or len(job.data.path) > 4096:
        raise JobRefused("data.path: it is the path of a directory, as seen by the submitter")
    _match(_SITE, job.data.site, key="data.site", allowed="lowercase letters, digits and '-'")


def _check_output(output: str) -> None:
    parts = output.rstrip("/").split("/")
    if not output or output.startswith("/") or len(output) > 1024 or "\0" in output:
        raise JobRefused(f"output: {output[:60]!r}; it is a relative path, such as out/")
    if any(part in ("", ".", "..") for part in parts):
        raise JobRefused(f"output: {output[:60]!r}; it must stay below the job's own directory")
