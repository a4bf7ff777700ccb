"""Features: deterministic, finite, and about what they are named for."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression import features
from dwcp.compression.corpus_generated import KINDS, generate
from dwcp.compression.features import COUNT, NAMES, extract, sample

MIB = 1 << 20


def _of(raw: bytes, name: str) -> float:
    return float(extract(raw)[NAMES.index(name)])


@settings(deadline=None)
@given(raw=st.binary(max_size=3000), repeat=st.integers(0, 40))
def test_any_bytes_give_finite_numbers_twice_the_same(raw: bytes, repeat: int) -> None:
    """Every length from nothing on; entropies stay within 0 to 8 bits, shares within 0 to 1."""
    vector = extract(raw * repeat)

    assert vector.shape == (COUNT,)
    assert np.isfinite(vector).all()
    assert np.array_equal(vector, extract(raw * repeat))
    assert (vector[2:11] >= 0).all()
    assert (vector[[2, 12, 13, 14, 15, 16]] <= 8.0001).all()
    if raw and repeat:
        assert abs(vector[3:9].sum() - 1) < 1e-9


def test_noise_text_and_zeros_are_told_apart() -> None:
    """Noise has 8 bits and no ratio, text letters, zeros nothing."""
    noise = random.Random(1).randbytes(MIB)
    text = generate("gen-prose", seed=1, size=MIB)

    assert _of(noise, "entropy") > 7.9
    assert _of(noise, "zstd1_scattered") < 0.01
    assert _of(text, "letters") > 0.7
    assert _of(text, "zstd1_scattered") > 0.3
    assert _of(bytes(MIB), "zeros") == 1.0
    assert _of(bytes(MIB), "entropy") == 0.0


def test_numbers_show_in_differences_and_planes() -> None:
    """A counter of 32 bits: the difference at distance 4 and its steadiest plane say so, bytes alone do not."""
    counters = np.arange(0, 7 * MIB, 7, dtype="<u4").tobytes()[:MIB]

    assert _of(counters, "delta4") < _of(counters, "entropy")
    assert _of(counters, "plane_last") < 0.5


def test_a_prefix_does_not_decide() -> None:
    """64 KiB of header before noise leave the verdict as it is: pieces come from everywhere."""
    noise = random.Random(2).randbytes(MIB)

    assert abs(_of(b"header " * 9000 + noise, "zstd1_scattered") - _of(noise, "zstd1_scattered")) < 0.2


@settings(deadline=None)
@given(size=st.integers(1, 200_000))
def test_a_sample_has_the_pieces_that_it_should(size: int) -> None:
    """Never longer than what it is taken from or than 12 KiB; of short bytes, all of them."""
    raw = bytes(size)
    expected = min(size, features.PIECES * features.PIECE_BYTES)

    assert len(sample(raw)) == expected


def test_the_size_is_the_one_that_is_decided_about() -> None:
    """A sample of 64 KiB that stands for 1 MiB says 1 MiB."""
    assert extract(bytes(1 << 16), total_bytes=MIB)[NAMES.index("log2_size")] == 20


def test_generated_data_is_the_same_everywhere_and_of_the_size_asked_for() -> None:
    """Each kind twice: equal bytes, exact size, another seed other bytes."""
    for kind in KINDS:
        raw = generate(kind, seed=3, size=70_001)

        assert len(raw) == 70_001
        assert raw == generate(kind, seed=3, size=70_001)
        assert raw != generate(kind, seed=4, size=70_001)
