"""Dictionaries for small messages: trained from a tenant's own samples, named by their hash, never shared.

A tenant is whoever asks, by token or certificate: nobody can name another. A dictionary contains pieces of
the samples, so it is shown to its tenant alone, and it makes sizes depend on them: data that mixes secrets
with what a stranger may choose should not be compressed at all.

    dictionaries/TENANT/DIGEST.zdict    the bytes, at most 112 KiB
    dictionaries/TENANT/DIGEST.json     class, version, when it was trained and when it ends
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import zstandard
from blake3 import blake3
from msgspec import Meta

from dwcp.api.workloads import Shape
from dwcp.compression.errors import BlockInvalid, BombRefused
from dwcp.runtime.clock import Clock
from dwcp.runtime.http import Refusal
from dwcp.runtime.layout import ensure

DICTIONARY_BYTES_MAX = 112 << 10
MESSAGE_BYTES_MAX = 1 << 20
SAMPLES_MIN, SAMPLES_MAX = 16, 10_000
SAMPLES_BYTES_MAX = 12 << 20
_LEVEL = 3
_WINDOW_MAX = 8 << 20
_ID_FIRST, _ID_COUNT = 1 << 15, (1 << 31) - (1 << 15)  # below are registered ids (RFC 8878, §5)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Samples(Shape, frozen=True):
    """What a dictionary is trained from; bytes travel as base64. `class_name`: kind of message, the tenant's word."""

    class_name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    samples: Annotated[tuple[bytes, ...], Meta(min_length=SAMPLES_MIN, max_length=SAMPLES_MAX)]
    size_bytes: Annotated[int, Meta(ge=256, le=DICTIONARY_BYTES_MAX)] = DICTIONARY_BYTES_MAX


class Entry(Shape, frozen=True):
    """One dictionary. Times are Unix ms; `zstd_id` is what frames made with it name."""

    digest: str
    class_name: str
    version: int
    size_bytes: int
    zstd_id: int
    samples: int
    trained_at_ms: int
    ends_at_ms: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a dictionary lives, and how many a tenant may have."""

    life_ms: int
    most: int


class Dictionaries:
    """The dictionaries of all tenants, on disk. Methods block: a training takes up to some seconds."""

    def __init__(self, folder: Path, *, limits: Limits, clock: Clock) -> None:
        self._folder = folder
        self._limits = limits
        self._clock = clock

    def train(self, tenant: str, asked: Samples) -> Entry:
        """A new version for the class. Raises `Refusal` where the samples give none or the quota is used up."""
        total = sum(map(len, asked.samples))
        if total > SAMPLES_BYTES_MAX:
            raise Refusal(413, "too_large", f"samples may have {SAMPLES_BYTES_MAX} bytes, these have {total}")
        kept = self.entries(tenant)
        if len(kept) >= self._limits.most:
            raise Refusal(409, "quota", f"{len(kept)} dictionaries are held, as many as one may: delete one")
        content = _trained(tenant, asked)
        now_ms = self._clock.now_ms()
        entry = Entry(
            blake3(content).hexdigest(),
            asked.class_name,
            1 + max((each.version for each in kept if each.class_name == asked.class_name), default=0),
            len(content),
            zstandard.ZstdCompressionDict(content).dict_id(),
            len(asked.samples),
            now_ms,
            now_ms + self._limits.life_ms,
        )
        home = ensure(self._home(tenant))
        _put(home / f"{entry.digest}.zdict", content)
        _put(home / f"{entry.digest}.json", msgspec.json.encode(entry))  # last: its presence says whole
        return entry

    def entries(self, tenant: str) -> tuple[Entry, ...]:
        """The tenant's own, newest first; what has ended is removed."""
        found = []
        for path in sorted(self._home(tenant).glob("*.json")):
            try:
                entry = msgspec.json.decode(path.read_bytes(), type=Entry)
            except (OSError, msgspec.DecodeError):
                continue  # damaged: it is no dictionary any more
            if entry.ends_at_ms <= self._clock.now_ms():
                self._remove(tenant, entry.digest)
            else:
                found.append(entry)
        return tuple(
            sorted(found, key=lambda entry: (-entry.trained_at_ms, entry.class_name, -entry.version))
        )

    def content(self, tenant: str, digest: str) -> bytes:
        """The bytes, verified. Raises `Refusal` 404, which says the same of another tenant's and of none."""
        if _DIGEST.fullmatch(digest) and any(entry.digest == digest for entry in self.entries(tenant)):
            try:
                content = (self._home(tenant) / f"{digest}.zdict").read_bytes()
            except OSError:
                content = b""
            if blake3(content).hexdigest() == digest:
                return content
        raise Refusal(404, "unknown_dictionary", f"you have no dictionary {digest[:64]!r}")

    def delete(self, tenant: str, digest: str) -> None:
        """Raises `Refusal` 404."""
        self.content(tenant, digest)
        self._remove(tenant, digest)

    def compress(self, tenant: str, digest: str, message: bytes) -> bytes:
        """One zstd frame that names the dictionary and its own size."""
        dictionary = zstandard.ZstdCompressionDict(self.content(tenant, digest))
        return zstandard.ZstdCompressor(level=_LEVEL, dict_data=dictionary).compress(message)

    def decompress(self, tenant: str, digest: str, frame: bytes) -> bytes:
        """The message. Raises `BombRefused`, `BlockInvalid`, `Refusal`."""
        dictionary = zstandard.ZstdCompressionDict(self.content(tenant, digest))
        _check_frame(frame, dictionary.dict_id())
        unpacker = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=_WINDOW_MAX)
        try:
            return unpacker.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as exc:
            raise BlockInvalid(f"the frame cannot be unpacked: {exc}") from exc

    def count(self) -> int:
        return sum(1 for _ in self._folder.glob("*/*.json"))

    def _home(self, tenant: str) -> Path:
        """A hash: names of tenants are no paths."""
        return self._folder / blake3(tenant.encode()).hexdigest()[:32]

    def _remove(self, tenant: str, digest: str) -> None:
        for suffix in ("json", "zdict"):
            (self._home(tenant) / f"{digest}.{suffix}").unlink(missing_ok=True)


def _trained(tenant: str, asked: Samples) -> bytes:
    """The id comes from what was trained on, so that two dictionaries hardly ever share one."""
    hasher = blake3(tenant.encode(), derive_key_context="dwcp dictionary id v1")
    for sample in asked.samples:
        hasher.update(len(sample).to_bytes(8, "big") + sample)
    number = _ID_FIRST + int.from_bytes(hasher.digest(length=8), "big") % _ID_COUNT
    try:
        made = zstandard.train_dictionary(
            asked.size_bytes, list(asked.samples), dict_id=number, level=_LEVEL
        ).as_bytes()
    except (zstandard.ZstdError, ValueError) as exc:
        raise Refusal(
            422, "untrainable", f"these samples give no dictionary ({exc}): send more, or less alike"
        ) from exc
    if len(made) > DICTIONARY_BYTES_MAX:
        raise Refusal(
            422, "untrainable", f"the dictionary has {len(made)} bytes, {DICTIONARY_BYTES_MAX} allowed"
        )
    return made


def _check_frame(frame: bytes, dict_id: int) -> None:
    """What the frame asks for, before anything is allocated: the library believes a declared size."""
    try:
        facts = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as exc:
        raise BlockInvalid(f"this is no zstd frame: {exc}") from exc
    if facts.content_size > MESSAGE_BYTES_MAX:
        raise BombRefused(f"the frame declares no size, or more than {MESSAGE_BYTES_MAX} bytes")
    if facts.window_size > _WINDOW_MAX:
        raise BombRefused(f"the frame wants a window of {facts.window_size} bytes, {_WINDOW_MAX} allowed")
    if facts.dict_id != dict_id:
        raise BlockInvalid(f"the frame was made with dictionary {facts.dict_id}, this one is {dict_id}")


def _put(path: Path, content: bytes) -> None:
    """Whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.chmod(0o600)
    temporary.replace(path)
