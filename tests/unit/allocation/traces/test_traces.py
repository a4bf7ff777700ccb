"""Traces: formats are read as they say, generators have their fitted numbers, windows their load."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation import worlds

from dwcp.allocation.traces import generators, splits
from dwcp.allocation.traces.records import TraceMalformed, azure, openb, swf
from dwcp.allocation.traces.windows import Wanted, WindowImpossible, realised_load
from dwcp.allocation.traces.world import make_world, parse_prices

FLAVOURS = "1,1.75 b\n8,56 o\n"
BINS = "0 0\n300 1\n600 2\n900 2\n1200 3\n"


def test_azure_lines_become_workloads() -> None:
    """Goal: the processed Azure format. Method: two bins by hand, batches and a censored run among them."""
    got = azure(
        "300 b,b,|,o,|,\n600 b,|,\n",
        "300 U1,U1,|,C3,|,\n600 U0,|,\n",
        FLAVOURS,
        BINS,
        rng=np.random.default_rng(0),
    )

    assert sorted(got.cpu_milli.tolist()) == [1000, 1000, 1000, 8000]
    assert len(set(got.batch.tolist())) == 3
    pair = got.batch == np.bincount(got.batch).argmax()
    assert len(set(got.arrival_s[pair])) == 1, "a batch arrives together"
    assert ((got.duration_s[pair] >= 300) & (got.duration_s[pair] <= 600)).all()
    assert got.duration_s[got.cpu_milli == 8000][0] >= 1200, "it still ran in its bin"
    assert (np.diff(got.arrival_s) >= 0).all()


@pytest.mark.parametrize(
    ("vms", "lives", "message"),
    [
        ("300 b,|,\n", "600 U1,|,\n", "line 1"),
        ("300 z,|,\n", "300 U1,|,\n", "flavour 'z'"),
        ("300 b,|,\n", "300 U99,|,\n", "table of bins"),
    ],
)
def test_wrong_azure_lines_are_sentences(vms: str, lives: str, message: str) -> None:
    """Goal: bad input is named. Method: times that differ, an unknown flavour, an unknown bin."""
    with pytest.raises(TraceMalformed, match=message):
        azure(vms, lives, FLAVOURS, BINS, rng=np.random.default_rng(0))


def test_openb_and_swf() -> None:
    """Goal: the other two formats. Method: by hand, with an unscheduled pod and a job wider than a node."""
    head = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,"
    head += "creation_time,deletion_time,scheduled_time"
    pods = openb(f"{head}\np,12000,16384,1,1000,,LS,Running,5,100,7\nq,1000,64,0,0,,BE,Failed,9,80,\n")
    jobs = swf("; a comment\n1 50 -1 120 40 -1 -1 -1 -1 -1 1 -1\n2 60 -1 -1 4 -1 -1 4\n")

    assert pods.duration_s.tolist() == [93]
    assert pods.priority is not None
    assert pods.priority.tolist() == [2]
    assert jobs.cpu_milli.tolist() == [14_000] * 3
    assert len(set(jobs.batch.tolist())) == 1
    with pytest.raises(TraceMalformed, match="line 1"):
        swf("1 2 3\n")
    with pytest.raises(TraceMalformed, match="no column"):
        openb("name,cpu\n")


def test_g1_has_its_fitted_numbers() -> None:
    """Goal: the generator is the fit. Method: shares of batches and lifetimes of a long stream."""
    stream = generators.generate(generators.G1, np.random.default_rng(3), count=60_000)
    sizes = np.bincount(stream.batch)
    sizes = sizes[sizes > 0]

    assert abs((sizes == 1).mean() - 0.571) < 0.03
    assert abs((sizes >= 10).mean() - 0.069) < 0.02
    assert abs((stream.duration_s > 3600).mean() - 0.31) < 0.06
    assert abs((stream.duration_s > 86_400).mean() - 0.049) < 0.03


def test_g2_has_its_fitted_numbers() -> None:
    """Goal: as above for openb. Method: quantiles of durations, and the correlation of CPU and memory."""
    stream = generators.generate(generators.G2, np.random.default_rng(3), count=40_000)
    correlation = np.corrcoef(np.log(stream.cpu_milli), np.log(stream.memory_mib))[0, 1]

    assert 0.1 < np.median(stream.duration_s) / 3600 < 0.25
    assert abs(correlation - 0.87) < 0.05
    assert stream.duration_s.std() / stream.duration_s.mean() > 5


def test_splits_never_meet() -> None:
    """Goal: nothing is tuned on what is quoted. Method: seeds and parts of the splits are disjoint."""
    seeds = [splits.generator_seed(split, number) for split in splits.SEEDS for number in (0, 9_999)]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(ValueError, match="below 10000"):
        splits.generator_seed("train", 10_000)

    whole = generators.generate(generators.G2, np.random.default_rng(0), count=10_000)
    dev, validation, test = (splits.recorded(whole, split) for split in ("dev", "validation", "test"))
    assert len(validation) + len(test) == 10_000
    assert dev.arrival_s[-1] < validation.arrival_s[-1] < test.arrival_s[0]
    with pytest.raises(ValueError, match="recorded trace"):
        splits.recorded(whole, "train")


@pytest.mark.parametrize("split", ["dev", "validation", "test"])
def test_short_traces_have_windows_in_every_split(split: str) -> None:
    """Goal: openb, with 7,255 pods, can be measured on. Method: as many workloads; cut the usual windows; what is
    for looking at while developing stays within validation's part."""
    whole = generators.generate(generators.G2, np.random.default_rng(1), count=7_255)

    found = splits.windows(splits.recorded(whole, split), count=2, seed=30_000, wanted=Wanted())

    assert found.capacity.shape[0] == 2
    assert len(splits.recorded(whole, "dev")) <= len(splits.recorded(whole, "validation"))


@pytest.mark.parametrize("load", [0.7, 1.1])
def test_windows_have_exactly_their_load(load: float) -> None:
    """Goal: load is realised demand / capacity. Method: compute it anew from the arrays."""
    episode = worlds.small(load=load, measured=300, count=3)

    for window in range(3):
        assert abs(realised_load(worlds.one(episode, window)) - load) < 0.03 * load


def test_a_short_trace_is_refused() -> None:
    """Goal: no window is made up. Method: a stream shorter than one window."""
    records = splits.generated("g1", "dev", 0, count=500)

    with pytest.raises(WindowImpossible, match="a window needs"):
        splits.windows(records, count=1, seed=0, wanted=Wanted())


def test_training_windows_vary_and_can_be_padded() -> None:
    """Goal: one compiled shape for many worlds. Method: pad to 8 nodes; the additional ones have nothing."""
    episode = splits.training_window(1, wanted=Wanted(measured=60, warm=10), nodes=5, sites=3, pad_nodes=8)

    assert episode.capacity.shape == (8, 4)
    assert (episode.capacity[5:] == 0).all()
    assert (episode.capacity[:5] > 0).all()


def test_price_tables() -> None:
    """Goal: published prices can be used. Method: a table by hand, and a ragged one."""
    prices = parse_prices(",a,b\na,0,0.02\nb,0.08,0\n")

    assert prices.tolist() == [[0, 0.02], [0.08, 0]]
    world = make_world(np.random.default_rng(0), nodes=3, sites=2, prices=prices)
    assert (np.diag(world.price) == 0).all()
    with pytest.raises(ValueError, match="price table"):
        parse_prices(",a,b\na,0,zero\n")
