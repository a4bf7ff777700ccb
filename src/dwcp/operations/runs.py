"""What a run of an operations script is: its record, its document, its verdict and exit code. Pure.

Every script answers in the same form, so that people, cron and other programs can read any of
them without knowing it: the verdict first, unknown is never 0, and a record of each run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import msgspec

from dwcp.api.health import Verdict, worst

T = TypeVar("T")

SCHEMA_VERSION = 1
EXITS = {Verdict.OK: 0, Verdict.WARN: 1, Verdict.CRIT: 2, Verdict.UNKNOWN: 3}
REFUSED, INTERRUPTED = 4, 75
_SECRET = re.compile(r"(token|secret|password|passphrase|credential|private)", re.IGNORECASE)
_HIDDEN = "***"


class Section(msgspec.Struct, frozen=True):
    """One part of what a script looked at. A source that is down makes its part unknown, not the rest."""

    name: str
    verdict: Verdict
    detail: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One run: a row of `ops_run`. Times in Unix ms; `exit` None: under way, or broken off."""

    id: str
    script: str
    target: str
    argv: tuple[str, ...]
    actor: str
    host: str
    pid: int
    started_ms: int
    dry_run: bool = False
    ended_ms: int | None = None
    exit: int | None = None
    verdict: str = ""
    summary: str = ""
    output_digest: str = ""
    config_epoch: str = ""
    incident: str = ""


class Document(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What `--json` prints: one object, whatever the outcome. `result` is null where there is none."""

    schema: str
    run: str
    script: str
    target: str
    dry_run: bool
    started: str
    ended: str
    budget_s: float
    exit: int
    verdict: Verdict
    summary: str
    next: str = ""
    sections: tuple[Section, ...] = ()
    result: T | None = None


def schema_name(script: str) -> str:
    """A field that changes its meaning or goes changes the number."""
    return f"dwcp.ops.{script}/{SCHEMA_VERSION}"


def exit_of(verdict: Verdict) -> int:
    return EXITS[verdict]


def verdict_of(code: int) -> Verdict:
    """The word for an exit code: what was refused or interrupted wants somebody's eye, nothing is broken."""
    if code in (REFUSED, INTERRUPTED):
        return Verdict.WARN
    return next((verdict for verdict, known in EXITS.items() if known == code), Verdict.CRIT)


def headline(verdict: Verdict, summary: str) -> str:
    """The first line that a person reads."""
    return f"{verdict.value.upper()} {summary}"


def judged(sections: Iterable[Section]) -> tuple[Verdict, str]:
    """The worst of the parts, and a sentence that names it. No part is `unknown`."""
    parts = tuple(sections)
    verdict = worst(part.verdict for part in parts)
    bad = [part for part in parts if part.verdict is not Verdict.OK]
    if not bad:
        return verdict, f"{len(parts)} of {len(parts)} parts are well" if parts else "nothing was looked at"
    first = next(part for part in bad if part.verdict is verdict)
    more = f"; also {', '.join(part.name for part in bad if part is not first)}" if len(bad) > 1 else ""
    return verdict, f"{first.name}: {first.detail or first.verdict.value}{more}"


def redacted(argv: Sequence[str]) -> tuple[str, ...]:
    """The arguments without the values of options that are named like secrets."""
    shown: list[str] = []
    hide = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        secret = name.startswith("-") and bool(_SECRET.search(name))
        if hide and not argument.startswith("-"):
            shown.append(_HIDDEN)
        else:
            shown.append(f"{name}={_HIDDEN}" if secret and equals else argument)
        hide = secret and not equals
    return tuple(shown)


def file_name(text: str) -> str:
    """`text` as part of a file's name: nothing that leads elsewhere, never empty, bounded."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:80] or "all"
