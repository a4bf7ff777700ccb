"""Length-prefixed frames on a byte stream: u32 big-endian length, then that many bytes.

Pure. A link is closed at the first frame above its limit: nothing is buffered
for a sender that announces more than it may send.
"""

from __future__ import annotations

import struct

from dwcp.consensus.core.errors import MalformedFrame

FRAME_BYTES_MAX = 8 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_HEAD = _LENGTH.size


class FrameTooLong(MalformedFrame):
    """A peer announced a frame above this link's limit; the connection is closed and counted."""


def packet(frame: bytes) -> bytes:
    """The bytes of one frame on the wire."""
    return _LENGTH.pack(len(frame)) + frame


class FrameReader:
    """Cuts a stream into frames. Holds at most one incomplete frame of `frame_bytes_max` bytes."""

    __slots__ = ("_buffer", "_frame_bytes_max")

    def __init__(self, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._frame_bytes_max = frame_bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes. Raises `FrameTooLong`; the reader is useless afterwards."""
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < _HEAD or len(buffer) < _HEAD + self._length(buffer, 0):
                return []
            data = bytes(buffer)
            buffer.clear()
        frames = []
        offset, size = 0, len(data)
        while size - offset >= _HEAD:
            start = offset + _HEAD
            end = start + self._length(data, offset)
            if end > size:
                break
            frames.append(data[start:end])
            offset = end
        if offset < size:
            buffer += data[offset:] if offset else data
        return frames

    def _length(self, data: bytes | bytearray, offset: int) -> int:
        length: int = _LENGTH.unpack_from(data, offset)[0]
        if length > self._frame_bytes_max:
            raise FrameTooLong(f"a frame of {length} bytes; the limit here is {self._frame_bytes_max}")
        return length

    @property
    def partial(self) -> int:
        """Bytes of an incomplete frame that are held."""
        return len(self._buffer)
