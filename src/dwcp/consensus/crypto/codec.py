"""The one canonical encoding: msgpack of array-like structs, each value in exactly one form.

Decoding is strict: unknown tags, wrong types, trailing bytes and any encoding
that this module would not have produced are refused.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from dwcp.consensus.core.errors import MalformedFrame

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_SHORT_HEADS = [bytes([0x90 + count]) for count in range(16)]


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of every encoded value; subclasses name an integer `tag` where they form a union."""


def encode(value: Any) -> bytes:  # Any: whatever msgspec encodes
    """The canonical bytes of `value`."""
    return _encoder.encode(value)


def sequence_head(count: int) -> bytes:
    """What stands before the items of an encoded sequence: its items may be encoded one by one."""
    if count < 16:
        return _SHORT_HEADS[count]
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


class Codec(Generic[T]):
    """Decodes one type; the type may be a union of tagged `Record`s."""

    __slots__ = ("_decoder",)

    def __init__(self, shape: Any) -> None:  # Any: a type or a union of types
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(shape)

    def decode(self, data: bytes) -> T:
        """Raises `MalformedFrame` unless `data` is the canonical encoding of a value."""
        try:
            value = self._decoder.decode(data)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise MalformedFrame(f"not a message of this type: {exc}") from exc
        if _encoder.encode(value) != data:
            raise MalformedFrame("the encoding is not canonical")
        return value
