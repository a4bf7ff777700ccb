"""Runs of operations scripts on this machine's disk: a record of each, and one at a time per target.

    STATE/runs/ID/run.json       the record, written when a run begins and again when it ends
    STATE/runs/ID/answer.json    what `--json` prints
    STATE/runs/ID/log.txt        what was said meanwhile
    STATE/runs/last/SCRIPT.json  the record of a script's latest run that has ended
    STATE/runs/locks/…           held by flock, so that the kernel frees a killed run's

No database is needed, so that a run is recorded while there is none.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta

from dwcp.operations.runs import Record, file_name
from dwcp.runtime.clock import iso
from dwcp.runtime.config import Settings
from dwcp.runtime.durable import replace_private
from dwcp.runtime.errors import Exit, RuntimeFault
from dwcp.runtime.layout import ensure

_DECODER = msgspec.json.Decoder(Record)


class Busy(RuntimeFault):
    """The same script works on the same target already: wait for it, or stop the process that is named."""

    exit_code = Exit.REFUSED


class OperationsConfig(Settings, frozen=True):
    """`operations.yaml`: what all operations scripts share; each takes another one by `--config`."""

    state: Annotated[
        Path | None, Meta(description="the installation; else $DWCP_STATE, else the default")
    ] = None
    runs_dir: Annotated[Path | None, Meta(description="folder of run records; else STATE/runs")] = None
    runs_days: Annotated[float, Meta(gt=0, le=36500, description="how long run records are kept, days")] = 400
    budget_s: Annotated[
        float, Meta(ge=0, description="seconds that a script may take; 0: each one's own number")
    ] = 0
    testing: Annotated[bool, Meta(description="accept `failpoints`; never in production")] = False
    failpoints: Annotated[
        tuple[str, ...], Meta(description="NAME=ACTION, armed for the scripts' own processes")
    ] = ()


@dataclass(frozen=True, slots=True)
class Runs:
    """The folder of records. Methods block; none is needed for a script to do its work."""

    folder: Path

    def begin(self, record: Record) -> Record:
        """The record with an id of its own, durable. Raises `OSError`."""
        name = f"{_stamp(record.started_ms)}-{record.script}-{secrets.token_hex(3)}"
        named = msgspec.structs.replace(record, id=name)
        ensure(self.folder / named.id)
        self._write(self.folder / named.id / "run.json", named)
        return named

    def end(self, record: Record, document: bytes) -> None:
        """What the run came to, durable. Raises `OSError`."""
        home = self.folder / record.id
        replace_private(home / "answer.json", document)
        told = msgspec.structs.replace(record, output_digest=blake3(document).hexdigest())
        self._write(home / "run.json", told)
        self._write(ensure(self.folder / "last") / f"{file_name(record.script)}.json", told)

    def note(self, record: Record, line: str) -> None:
        """One line of the run's log. Raises `OSError`."""
        with (self.folder / record.id / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def all(self, script: str = "*", *, most: int = 1000) -> list[Record]:
        """The latest `most` records that can be read, the latest first."""
        paths = sorted(self.folder.glob(f"*Z-{script}-*/run.json"), reverse=True)[:most]
        return [record for record in map(_read, paths) if record is not None]

    def last(self) -> list[Record]:
        """Each script's latest run that has ended."""
        records = map(_read, sorted(self.folder.glob("last/*.json")))
        return [record for record in records if record is not None]

    def broken_off(self, record: Record) -> Record | None:
        """The run of this kind before `record`, where it never ended. For the holder of the lock: any other
        run without an end was killed."""
        for other in self.all(record.script):
            if other.id != record.id and other.target == record.target and not other.dry_run:
                return other if other.exit is None else None
        return None

    def forget(self, *, before_ms: int) -> int:
        """Removes the runs that began earlier; how many. Their names tell: no record is read."""
        stamp = _stamp(max(0, before_ms))
        old = [path for path in self.folder.glob("????????T??????Z-*") if path.name < stamp]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        return len(old)

    @contextmanager
    def alone(self, record: Record) -> Iterator[None]:
        """One run per script and target. Raises `Busy`, naming who holds it."""
        path = self._lock(record.script, record.target)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise Busy(_held(record, file.read())) from exc
            file.truncate(0)
            file.write(msgspec.json.encode(record))
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def _lock(self, script: str, target: str) -> Path:
        return ensure(self.folder / "locks") / f"{file_name(script)}@{file_name(target)}"

    def _write(self, path: Path, record: Record) -> None:
        text = msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=2)
        replace_private(path, text + b"\n")


def _stamp(at_ms: int) -> str:
    return iso(at_ms)[:19].replace("-", "").replace(":", "") + "Z"


def actor(sudo_user: str = "") -> str:
    """Who runs this; behind sudo the person, not root."""
    try:
        own = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        own = str(os.geteuid())
    return f"{sudo_user} as {own}" if sudo_user and sudo_user != own else own


def host() -> str:
    return socket.gethostname()


def epoch_of(cluster: Path) -> str:
    """Which configuration a run met: the digest of the installation's own file; "" without one."""
    try:
        return blake3(cluster.read_bytes()).hexdigest()[:12]
    except OSError:
        return ""


def _held(record: Record, content: bytes) -> str:
    what = f"{record.script} {record.target}".strip()
    try:
        holder = _DECODER.decode(content)
    except msgspec.DecodeError:
        return f"another `{what}` is under way: wait for it"
    return (
        f"another `{what}` is under way: {holder.actor} on {holder.host}, pid {holder.pid}, since "
        f"{iso(holder.started_ms)}; wait for it"
    )


def _read(path: Path) -> Record | None:
    try:
        return _DECODER.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
