"""What an agent holds of a tree's older versions: two questions of a push, and their answers.

held    by path: how the newest file there was cut, so that a sender need not search its own boundaries and
        learns which of its chunks are there already
near    sketches of some of these chunks, so that one that changed a little travels as what is new
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import httpx

from dwcp.compression import deltas, relative
from dwcp.compression.deltas import Sketch
from dwcp.compression.errors import ChunkMissing, RequestInvalid, SourceLied
from dwcp.compression.manifest import Chunk
from dwcp.compression.recall import Recall, describe
from dwcp.compression.rolling import MULTIPLIER_MAX, RollingHash
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Record
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.shipping import Extensions, exchange

HELD_PATH = "/v1/chunks/held"
NEAR_PATH = "/v1/chunks/near"
HELD_FILES_MAX = 512
HELD_CHUNKS_MAX = 65_536  # in one answer; files beyond are answered as if they were not there
NEAR_HINTS_MAX = 1024
BLOCK_BYTES = (256, 512, 1024)  # of sketches
_SKETCH_BYTES = 64  # of one beside its hashes, at most
_QUESTION_BYTES_MAX = 2 << 20
_HELD_BYTES_MAX = 2 << 20
_NEAR_BYTES_MAX = 4 << 20
_SILENCE_S = 10.0


class Hint(Record, frozen=True):
    """A chunk that the agent lacks may be like these of its file at the path: numbers, in order."""

    path: str
    first: int
    count: int


class NearRequest(Record, frozen=True):
    """`POST /v1/chunks/near`: the size of a sketch's blocks, the multiplier of their hash, and places."""

    block_bytes: int
    multiplier: int
    hints: tuple[Hint, ...]


class NearAnswer(Record, frozen=True):
    """For each hint what the agent holds there."""

    sketches: tuple[tuple[Sketch, ...], ...]


_paths: codec.Codec[tuple[str, ...]] = codec.Codec(tuple[str, ...])
_lists: codec.Codec[tuple[bytes, ...]] = codec.Codec(tuple[bytes, ...])
_near_request: codec.Codec[NearRequest] = codec.Codec(NearRequest)
_near_answer: codec.Codec[NearAnswer] = codec.Codec(NearAnswer)


async def held(
    client: httpx.AsyncClient, url: str, paths: Sequence[str], *, extensions: Extensions = None
) -> dict[str, Recall]:
    """How the agent's newest files at these paths were cut; those that it has. At most `HELD_FILES_MAX`.

    Raises `SourceFailed` or `SourceLied`.
    """
    answer = await exchange(
        client,
        "POST",
        url + HELD_PATH,
        body=relative.pack(codec.encode(tuple(paths))),
        size_max=_HELD_BYTES_MAX,
        stall_s=_SILENCE_S,
        extensions=extensions,
    )
    try:
        lists = _lists.decode(answer)
        found = {path: Recall(described) for path, described in zip(paths, lists, strict=True) if described}
    except (MalformedFrame, RequestInvalid, ValueError) as exc:
        raise SourceLied(f"{url} answers with something else than lists of chunks: {exc}") from exc
    return found


def held_answer(body: bytes, store: ChunkStore) -> bytes:
    """The other side, blocking: an answer for a question from anybody. Raises `RequestInvalid`."""
    try:
        paths = _paths.decode(relative.unpack(body, _QUESTION_BYTES_MAX))
    except (MalformedFrame, UnicodeError) as exc:
        raise RequestInvalid(f"this is no question about files: {exc}") from exc
    if len(paths) > HELD_FILES_MAX:
        raise RequestInvalid(f"{len(paths)} files in one question, {HELD_FILES_MAX} are allowed")
    left = HELD_CHUNKS_MAX
    lists = []
    for path in paths:
        chunks = newest(store, path)
        known = len(chunks) <= left and all(store.has(chunk.address) for chunk in chunks)
        left -= len(chunks) if known else 0
        lists.append(describe(chunks) if known else b"")
    return codec.encode(tuple(lists))


def newest(store: ChunkStore, path: str) -> tuple[Chunk, ...]:
    """The chunks of the newest payload's file at the path; none where there is no such file."""
    for entry in store.entries_at(path)[:1]:
        return entry.chunks
    return ()


async def near(
    client: httpx.AsyncClient,
    url: str,
    hints: Sequence[Hint],
    *,
    hashing: RollingHash,
    extensions: Extensions = None,
) -> list[tuple[Sketch, ...]]:
    """Sketches of what the agent has at these places. Raises `SourceFailed` or `SourceLied`."""
    found: list[tuple[Sketch, ...]] = []
    for start in range(0, len(hints), NEAR_HINTS_MAX):
        part = tuple(hints[start : start + NEAR_HINTS_MAX])
        answer = await exchange(
            client,
            "POST",
            url + NEAR_PATH,
            body=relative.pack(codec.encode(NearRequest(hashing.block_bytes, hashing.multiplier, part))),
            size_max=_NEAR_BYTES_MAX,
            stall_s=_SILENCE_S,
            extensions=extensions,
        )
        try:
            sketches = _near_answer.decode(answer).sketches
        except MalformedFrame as exc:
            raise SourceLied(f"{url} answers with something else than sketches: {exc}") from exc
        if len(sketches) != len(part):
            raise SourceLied(f"{url} was asked about {len(part)} places and answers about {len(sketches)}")
        found += sketches
    return found


def near_answer(body: bytes, store: ChunkStore) -> bytes:
    """The other side, blocking: an answer for a request from anybody. Raises `RequestInvalid`."""
    try:
        request = _near_request.decode(relative.unpack(body, _QUESTION_BYTES_MAX))
    except (MalformedFrame, UnicodeError) as exc:
        raise RequestInvalid(f"this is no question about places: {exc}") from exc
    if len(request.hints) > NEAR_HINTS_MAX:
        raise RequestInvalid(f"{len(request.hints)} places in one question, {NEAR_HINTS_MAX} are allowed")
    if request.block_bytes not in BLOCK_BYTES or not 0 <= request.multiplier <= MULTIPLIER_MAX:
        raise RequestInvalid(f"blocks of {request.block_bytes} bytes, not one of {BLOCK_BYTES}")
    hashing = RollingHash(request.block_bytes, request.multiplier)
    left = _NEAR_BYTES_MAX // 2
    answers: list[tuple[Sketch, ...]] = []
    for hint in request.hints:  # what no longer fits travels whole
        answers.append(_at(hint, store, hashing) if left > 0 else ())
        left -= sum(len(sketch.hashes) + _SKETCH_BYTES for sketch in answers[-1])
    return codec.encode(NearAnswer(tuple(answers)))


def _at(hint: Hint, store: ChunkStore, hashing: RollingHash) -> tuple[Sketch, ...]:
    if hint.first < 0 or not 0 < hint.count <= deltas.BASES_MAX:
        raise RequestInvalid(f"{hint.count} chunks from number {hint.first} on are no place")
    sketches: list[Sketch] = []
    for chunk in newest(store, hint.path)[hint.first : hint.first + hint.count]:
        with contextlib.suppress(ChunkMissing):
            sketches.append(deltas.sketch(chunk.address, store.peek(chunk.address), hashing))
    return tuple(sketches)
