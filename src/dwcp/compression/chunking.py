"""Content-defined chunks: where an edit moves bytes, all chunks but its neighbours keep their addresses.

FastCDC by the compiled part of `fastcdc` (its pure fallback is some hundred
times slower and is refused). Boundaries depend on content and on the three sizes
below only, so they are part of the manifest format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from blake3 import blake3

from dwcp.compression.errors import ChunkerMissing
from dwcp.consensus.crypto.hashes import Domain

CHUNK_BYTES_MIN = 16 << 10
CHUNK_BYTES_AVERAGE = 64 << 10
CHUNK_BYTES_MAX = 256 << 10
_WINDOW_BYTES = 4 << 20  # how much is cut at once; bounds memory, does not move boundaries


_begun = blake3(Domain.CHUNK.value)


def address(chunk: bytes | memoryview) -> bytes:
    """The name of a chunk: BLAKE3-256 under the chunk domain, as `hashes.digest` has it, without a copy."""
    hasher = _begun.copy()
    hasher.update(chunk)
    return hasher.digest()


@cache
def _compiled() -> Callable[..., Iterator[Any]]:  # Any: the library's extension type has no stubs
    """Raises `ChunkerMissing` rather than fall back."""
    try:
        from fastcdc.fastcdc_cy import fastcdc_cy
    except ImportError as exc:
        raise ChunkerMissing(
            "the compiled part of fastcdc is missing (its pure fallback is too slow to use): "
            "reinstall it where a C compiler or a binary wheel is available"
        ) from exc
    cut: Callable[..., Iterator[Any]] = fastcdc_cy
    return cut


def cut(data: bytes) -> Iterator[bytes]:
    """The chunks of one complete piece of data; none for no data."""
    return map(bytes, cut_views(memoryview(data)))


def cut_views(view: memoryview) -> Iterator[memoryview]:
    """`cut` without copies."""
    if len(view) <= CHUNK_BYTES_MIN:
        if view:
            yield view
        return
    for chunk in _compiled()(view, CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX):
        yield view[chunk.offset : chunk.offset + chunk.length]


def cut_stream(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks as `cut` of the joined pieces, in memory bounded by the window.

    A boundary looks at most `CHUNK_BYTES_MAX` ahead of its chunk's start, so every
    chunk that starts at least that far before the end of the window is final.
    """
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        if len(buffer) >= _WINDOW_BYTES:
            done = 0
            for chunk in cut(bytes(buffer)):
                if len(buffer) - done < CHUNK_BYTES_MAX:
                    break
                done += len(chunk)
                yield chunk
            del buffer[:done]
    yield from cut(bytes(buffer))
