"""What a submitter says before its chunks: the manifest, and which of its chunks follow.

Layout, big-endian: "DWUP" version u8, manifest_size u32, manifest, then one bit per chunk of the
manifest's plan (most significant first, set: it follows), then a container whose blocks are the packs
of those chunks. In version 2 the manifest is said with what the receiver has (`relative`). Sans-IO.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence

from dwcp.compression import manifest as manifests
from dwcp.compression import relative
from dwcp.compression.errors import RequestInvalid
from dwcp.compression.manifest import Chunk, Limits, Manifest
from dwcp.compression.relative import BaseOf

MAGIC = b"DWUP"
VERSION = 1
VERSION_RELATIVE = 2
_HEAD = struct.Struct(">4sBI")


def plan(manifest: Manifest) -> tuple[Chunk, ...]:
    """Every chunk of a payload once, in the order in which it travels."""
    return tuple(Chunk(name, size) for name, size in manifest.chunks().items())


def prelude(manifest: Manifest, sent: Collection[bytes]) -> bytes:
    """The bytes before the container; `sent` are addresses."""
    encoded = manifests.encode(manifest)
    flags = [chunk.address in sent for chunk in plan(manifest)]
    return _HEAD.pack(MAGIC, VERSION, len(encoded)) + encoded + bitmap(flags)


def prelude_relative(manifest: Manifest, known: Mapping[str, Sequence[int]]) -> bytes:
    """`prelude` where no chunk follows; `known` as in `relative.encode`."""
    encoded = relative.encode(manifest, known)
    if encoded is None:
        return prelude(manifest, ())
    nothing = bitmap([False] * len(plan(manifest)))
    return _HEAD.pack(MAGIC, VERSION_RELATIVE, len(encoded)) + encoded + nothing


def bitmap(flags: Sequence[bool]) -> bytes:
    """One bit each, most significant first, padded with zeros."""
    bits = bytearray((len(flags) + 7) // 8)
    for at, flag in enumerate(flags):
        if flag:
            bits[at // 8] |= 0x80 >> at % 8
    return bytes(bits)


def flags(bits: bytes, count: int) -> list[bool]:
    """The opposite of `bitmap`. Raises `RequestInvalid` where the length or the padding is wrong."""
    found = [bool(bits[at // 8] & 0x80 >> at % 8) for at in range(min(count, len(bits) * 8))]
    if bitmap(found) != bits or len(found) != count:
        raise RequestInvalid(f"{len(bits)} bytes are no bitmap of {count} chunks")
    return found


class PreludeReader:
    """Collects the prelude; holds at most the manifest's limit and one piece."""

    def __init__(self, limits: Limits, base_of: BaseOf = lambda _path: ()) -> None:
        self._limits = limits
        self._base_of = base_of
        self._buffer = bytearray()
        self._manifest: Manifest | None = None
        self._plan: tuple[Chunk, ...] = ()

    def feed(self, data: bytes) -> tuple[Manifest, tuple[Chunk, ...], bytes] | None:
        """(manifest, the chunks that follow, the first bytes of the container), once complete.

        Raises `RequestInvalid` or `ManifestInvalid`, or `ChunkMissing` as `relative.decode` does.
        """
        self._buffer += data
        if self._manifest is None and not self._take_manifest():
            return None
        assert self._manifest is not None
        size = (len(self._plan) + 7) // 8
        if len(self._buffer) < size:
            return None
        chosen = flags(bytes(self._buffer[:size]), len(self._plan))
        sent = tuple(chunk for chunk, follows in zip(self._plan, chosen, strict=True) if follows)
        return self._manifest, sent, bytes(self._buffer[size:])

    def _take_manifest(self) -> bool:
        if not MAGIC.startswith(bytes(self._buffer[: len(MAGIC)])):
            raise RequestInvalid(f"the upload does not begin with {MAGIC!r}; use `dwcp submit`")
        if len(self._buffer) < _HEAD.size:
            return False
        _magic, version, size = _HEAD.unpack_from(self._buffer)
        if version not in {VERSION, VERSION_RELATIVE}:
            newest = VERSION_RELATIVE
            raise RequestInvalid(f"the upload has version {version}, this agent reads up to version {newest}")
        if size > self._limits.manifest_bytes:
            raise RequestInvalid(f"a manifest of {size} bytes, {self._limits.manifest_bytes} are allowed")
        if len(self._buffer) < _HEAD.size + size:
            return False
        encoded = bytes(self._buffer[_HEAD.size : _HEAD.size + size])
        if version == VERSION_RELATIVE:
            self._manifest = relative.decode(encoded, self._limits, self._base_of)
        else:
            self._manifest = manifests.decode(encoded, self._limits)
        self._plan = plan(self._manifest)
        del self._buffer[: _HEAD.size + size]
        return True
