"""The world decides every address once, and contradictions in it are refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dwcp.runtime import config
from dwcp.runtime.errors import ConfigInvalid
from dwcp.runtime.layout import Layout
from dwcp.runtime.world import World, default_world, services


def test_no_two_processes_listen_on_one_address() -> None:
    """Goal: services never collide. Method: collect all listeners of both built-in worlds."""
    for replicas in (4, 7):
        plans = services(default_world(replicas=replicas), Layout(Path("/state")))
        addresses = [str(address) for plan in plans for address in plan.listens]

        assert len(addresses) == len(set(addresses))
        assert len(plans) == replicas + 7


def test_documented_addresses() -> None:
    """Goal: the published addresses hold. Method: compare with the table."""
    plans = {plan.name: plan for plan in services(default_world(), Layout(Path("/state")))}

    assert str(plans["dwcp-manager"].plain) == "127.0.0.11:8080"
    assert str(plans["compression-api"].plain) == "127.0.0.12:5000"
    assert str(plans["maddpg-allocator"].plain) == "127.0.0.13:8080"
    assert str(plans["dwcp-monitoring"].plain) == "127.0.0.14:8081"
    assert str(plans["dwcp-agent-lima"].mutual) == "127.0.0.33:7070"
    assert [str(one) for one in plans["probft-4"].listens] == [
        "127.0.1.4:8080",
        "127.0.1.4:9000",
        "127.0.1.4:9001",
    ]
    assert plans["dwcp-agent-lima"].plain is None


def test_world_survives_its_file() -> None:
    """Goal: cluster.yaml says all. Method: dump and parse."""
    world = default_world(net="127.77", replicas=7, testing=True, lease_ms=3000)

    assert config.parse(config.dump(world), World, source="cluster.yaml") == world


@pytest.mark.parametrize("net", ["10.0", "127.256", "127", "127.0.0", "127.-1", "localhost", "127.1\n"])
def test_only_loopback_networks(net: str) -> None:
    """Goal: a platform never listens on a real network by a slip. Method: other networks."""
    with pytest.raises(ConfigInvalid, match="no loopback network"):
        default_world(net=net)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replicas": ("hub", "oslo", "rome")}, "4 to 64"),
        ({"replicas": ("hub", "oslo", "rome", "rome")}, "listed twice"),
        ({"replicas": ("hub", "oslo", "rome", "oz")}, "'oz' is not one of the sites"),
        ({"agents": default_world().agents * 2}, "listed twice"),
    ],
)
def test_contradictions_name_their_key(change: dict[str, object], words: str) -> None:
    """Goal: a broken relation is found at load. Method: change one thing of a good world."""
    world = msgspec.structs.replace(default_world(), **change)

    with pytest.raises(ConfigInvalid, match=words):
        world.validate()
