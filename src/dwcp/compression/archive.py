"""A directory as one stream of bytes, so that a container can hold it: first what there is, then the files.

Layout, big-endian: "DWTR" version u8, listing_size u32, listing (a manifest whose files have sizes and no
chunks), then the files' bytes in the listing's order with nothing between them. A listing obeys every
rule of manifests, so an archive cannot name a place outside its directory. Sans-IO.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from dwcp.compression import manifest as manifests
from dwcp.compression.errors import ContainerInvalid, ManifestInvalid
from dwcp.compression.manifest import Entry, Kind, Limits, Manifest, shown
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec

FLAG_TREE = 0x01  # of the container's header: its raw bytes are an archive
MAGIC = b"DWTR"
VERSION = 1
_HEAD = struct.Struct(">4sBI")
_listing: codec.Codec[Manifest] = codec.Codec(Manifest)


def opening(entries: Iterable[Entry], limits: Limits = Limits()) -> bytes:
    """The bytes before the files' content. Raises `ManifestInvalid`."""
    listed = Manifest(manifests.VERSION, tuple(entries))
    _validate(listed, limits)
    encoded = codec.encode(listed)
    return _HEAD.pack(MAGIC, VERSION, len(encoded)) + encoded


class Opening:
    """Collects the opening of an archive from anybody; holds at most the limit of a manifest."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self._buffer = bytearray()

    def feed(self, data: bytes) -> tuple[tuple[Entry, ...], bytes] | None:
        """(entries, the first bytes of the content), once complete.

        Raises `ContainerInvalid` or `ManifestInvalid`.
        """
        self._buffer += data
        if not MAGIC.startswith(bytes(self._buffer[: len(MAGIC)])):
            raise ContainerInvalid(f"the archive does not begin with {MAGIC!r}")
        if len(self._buffer) < _HEAD.size:
            return None
        _magic, version, size = _HEAD.unpack_from(self._buffer)
        if version != VERSION:
            raise ContainerInvalid(f"the archive has version {version}, this release reads {VERSION}")
        if size > self._limits.manifest_bytes:
            raise ContainerInvalid(f"a listing of {size} bytes, {self._limits.manifest_bytes} are allowed")
        end = _HEAD.size + size
        if len(self._buffer) < end:
            return None
        return self._decode(bytes(self._buffer[_HEAD.size : end])), bytes(self._buffer[end:])

    def _decode(self, encoded: bytes) -> tuple[Entry, ...]:
        try:
            listed = _listing.decode(encoded)
        except (MalformedFrame, UnicodeError) as exc:
            raise ManifestInvalid(f"these bytes are no listing of an archive: {exc}") from exc
        _validate(listed, self._limits)
        return listed.entries


def _validate(listed: Manifest, limits: Limits) -> None:
    """The rules of manifests for all but content, and the rules of sizes."""
    bare = tuple(
        Entry(entry.path, entry.kind, entry.mode, 0, entry.chunks, entry.target) for entry in listed.entries
    )
    manifests.validate(Manifest(listed.version, bare), limits)
    for entry in listed.entries:
        allowed = limits.file_bytes if entry.kind == Kind.FILE else 0
        if not 0 <= entry.size <= allowed:
            raise ManifestInvalid(f"{shown(entry.path)} has {entry.size} bytes, {allowed} are allowed")
    if listed.total_bytes > limits.total_bytes:
        raise ManifestInvalid(
            f"the archive's files have {listed.total_bytes} bytes, {limits.total_bytes} are allowed"
        )
