"""What an agent tells of its older files: to owners of the tenant only, bounded, and never believed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression import deltas, relative
from dwcp.compression.errors import RequestInvalid, TransferError
from dwcp.compression.recall import Recall
from dwcp.compression.rolling import RollingHash
from dwcp.consensus.crypto import codec
from dwcp.runtime import held
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.held import HELD_FILES_MAX, NEAR_HINTS_MAX, Hint, NearAnswer, NearRequest
from dwcp.runtime.trees import capture

MULTIPLIER = (1 << 64) - 3
NOISE = random.Random(5).randbytes(700_000)


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    """One payload with one file of some ten chunks, and an empty one."""
    (tmp_path / "payload").mkdir()
    (tmp_path / "payload" / "noise").write_bytes(NOISE)
    (tmp_path / "payload" / "empty").touch()
    made = ChunkStore.open(tmp_path / "store")
    capture(tmp_path / "payload", made, owner="w-1")
    return made


def _lists(store: ChunkStore, *paths: str) -> list[Recall]:
    question = relative.pack(codec.encode(paths))
    return [Recall(each) for each in codec.Codec(tuple[bytes, ...]).decode(held.held_answer(question, store))]


def _near(store: ChunkStore, *hints: Hint, block_bytes: int = 1024) -> NearAnswer:
    question = relative.pack(codec.encode(NearRequest(block_bytes, MULTIPLIER, hints)))
    return codec.Codec(NearAnswer).decode(held.near_answer(question, store))


def test_a_file_is_described_by_its_chunks_in_order(store: ChunkStore) -> None:
    """Goal: sizes and names of what is there, nothing of what is not. Method: a file, an empty one, none."""
    noise, empty, absent = _lists(store, "noise", "empty", "absent")
    chunks = held.newest(store, "noise")

    assert noise.sizes == [chunk.size for chunk in chunks]
    assert noise.names == [chunk.address[:16] for chunk in chunks]
    assert empty.sizes == absent.sizes == []


def test_a_file_with_a_lost_chunk_is_as_if_it_were_not_there(store: ChunkStore) -> None:
    """Goal: the agent vouches for what it has only. Method: damage one chunk and look for it."""
    victim = held.newest(store, "noise")[2].address
    store._chunk_path(victim).write_bytes(b"x")
    store.recheck([victim])

    assert _lists(store, "noise")[0].sizes == []


def test_sketches_are_of_the_chunks_that_were_asked_for(store: ChunkStore) -> None:
    """Goal: places are numbers in the list. Method: two chunks at each size of blocks; a place beyond the end."""
    chunks = held.newest(store, "noise")
    for size in held.BLOCK_BYTES:
        (found, beyond) = _near(store, Hint("noise", 1, 2), Hint("noise", 99, 1), block_bytes=size).sketches
        hashing = RollingHash(size, MULTIPLIER)
        assert [each.address for each in found] == [chunk.address for chunk in chunks[1:3]]
        assert found[0] == deltas.sketch(chunks[1].address, store.get(chunks[1].address), hashing)
        assert beyond == ()


@pytest.mark.parametrize(
    "request_",
    [
        NearRequest(1024, 3, (Hint("noise", 0, 1),) * (NEAR_HINTS_MAX + 1)),
        NearRequest(100, 3, (Hint("noise", 0, 1),)),
        NearRequest(1024, -3, (Hint("noise", 0, 1),)),
        NearRequest(1024, 3, (Hint("noise", -1, 1),)),
        NearRequest(1024, 3, (Hint("noise", 0, 10**6),)),
    ],
    ids=["too many", "other blocks", "no multiplier", "before the first", "no place"],
)
def test_questions_beyond_the_limits_are_refused(store: ChunkStore, request_: NearRequest) -> None:
    """Goal: work and memory are bounded by the question. Method: each limit overstepped."""
    with pytest.raises(RequestInvalid):
        held.near_answer(relative.pack(codec.encode(request_)), store)
    with pytest.raises(RequestInvalid, match="allowed"):
        _lists(store, *["noise"] * (HELD_FILES_MAX + 1))


def test_an_answer_does_not_grow_with_the_question(store: ChunkStore) -> None:
    """Goal: bounded answers. Method: the most places that may be asked for, each of many chunks."""
    answer = _near(store, *[Hint("noise", 0, deltas.BASES_MAX)] * NEAR_HINTS_MAX, block_bytes=256)

    assert len(codec.encode(answer)) < 4 << 20
    assert answer.sketches[0]
    assert answer.sketches[-1] == ()


@settings(deadline=None, max_examples=50)
@given(junk=st.binary(max_size=100))
def test_junk_ends_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """Goal: nothing foreign is raised. Method: arbitrary bytes, bare and packed, to both questions."""
    empty = ChunkStore.open(tmp_path_factory.mktemp("store"))
    for answer_of in (held.held_answer, held.near_answer):
        for body in (junk, relative.pack(junk)):
            with pytest.raises(TransferError):
                answer_of(body, empty)
