"""Real files come back: the held-out corpora and generated data, through the container, in every codec."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from blake3 import blake3

from dwcp.compression import codecs, corpus_generated
from dwcp.compression.codecs import Codec
from dwcp.compression.container import End, Header, PackedBlock, Reader, Writer
from dwcp.compression.corpus_heldout import unpacked

CORPORA = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpora"
BLOCK_BYTES = 1 << 20
STREAM = bytes(range(16))
QUICK_BLOCKS = 2  # of a file in every-day runs: its beginning and its end

beside = pytest.mark.skipif(
    not CORPORA.is_dir(), reason=f"the corpora are not beside this checkout ({CORPORA}); they are not ours to give"
)  # fmt: skip


def blocks_of(raw: bytes) -> list[bytes]:
    return [raw[at : at + BLOCK_BYTES] for at in range(0, len(raw), BLOCK_BYTES)]


def through(blocks: list[bytes], chosen: Iterator[Codec]) -> bytes:
    """The digest of what a reader gets of these blocks; a codec each, arriving in odd pieces."""
    writer = Writer(Header(STREAM, BLOCK_BYTES, 0))
    sent = [writer.block(block, next(chosen)) for block in blocks]
    data = writer.header.encode() + b"".join(sent) + writer.end()
    reader, got, ended = Reader(raw_bytes_max=sum(map(len, blocks)) + 1), blake3(), False
    for at in range(0, len(data), 99_991):
        for item in reader.feed(data[at : at + 99_991]):
            ended = ended or isinstance(item, End)
            if isinstance(item, PackedBlock):
                got.update(item.unpack())
    reader.finish()
    assert ended
    return got.digest()


@beside
def test_every_corpus_file_comes_back() -> None:
    """Goal: no real file is too strange. Method: first and last MiB of all files, codecs in turn."""
    turn = (codecs.CODECS[at % len(codecs.CODECS)] for at in count())
    names = []
    for name, raw in unpacked(CORPORA):
        whole = blocks_of(raw)
        blocks = whole if len(whole) <= QUICK_BLOCKS else [whole[0], whole[-1]]
        assert through(blocks, turn) == blake3(b"".join(blocks)).digest(), name
        names.append(name)
    assert len(names) > 40


@beside
@pytest.mark.soak
@pytest.mark.timeout(1800)  # the slowest codec packs all files in minutes
@pytest.mark.parametrize("codec", codecs.CODECS, ids=lambda codec: codec.name)
def test_every_corpus_file_comes_back_in_every_codec(codec: Codec) -> None:
    """Goal: the same for all bytes. Method: whole files, one codec."""
    for name, raw in unpacked(CORPORA):
        blocks = blocks_of(raw)
        assert through(blocks, iter([codec] * len(blocks))) == blake3(raw).digest(), name


@pytest.mark.parametrize("kind", sorted(corpus_generated.KINDS))
def test_generated_data_comes_back_in_every_codec(kind: str) -> None:
    """Goal: and what no file holds. Method: 96 KiB of each kind, all codecs."""
    raw = corpus_generated.generate(kind, seed=7, size=96 << 10)
    blocks = [raw[:1], raw[1:70_000], b"", raw[70_000:]] * len(codecs.CODECS)
    chosen = (codec for codec in codecs.CODECS for _ in range(4))
    assert through(blocks, chosen) == blake3(b"".join(blocks)).digest()
