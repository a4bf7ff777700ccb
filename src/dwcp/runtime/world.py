"""The world of one installation: sites, replicas, agents; and every service's configuration from it.

`cluster.yaml` holds a `World`. Configuration files are made from it at each start,
so that one decision is written in one place. Knows nothing of processes.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from dwcp.api.workloads import Capacity
from dwcp.runtime.config import Address, Settings
from dwcp.runtime.errors import ConfigInvalid
from dwcp.runtime.layout import Layout
from dwcp.runtime.principals import AGENTS, MANAGER
from dwcp.runtime.principals import OPERATOR as OPERATOR

MUTUAL_PORT = 7443
PEER_PORT, CLIENT_PORT, NODE_HTTP_PORT, AGENT_PORT = 9000, 9001, 8080, 7070
CONTROL_SITES = ("hub", "oslo", "rome", "lima", "kyoto", "cairo", "perth")
Name = Annotated[str, Meta(pattern="^[a-z][a-z0-9-]{0,30}$")]


class Site(Settings, frozen=True):
    """A place with machines; its links are as fast as its agents' own pacing makes them."""

    name: Annotated[Name, Meta(description="the site's name")]
    uplink_mbps: Annotated[float, Meta(gt=0, description="what its agents send, Mbit/s")] = 100.0
    downlink_mbps: Annotated[float, Meta(gt=0, description="what its agents receive, Mbit/s")] = 100.0


class AgentPlan(Settings, frozen=True):
    """One worker machine."""

    site: Annotated[Name, Meta(description="the site it stands at; the agent is dwcp-agent-SITE")]
    cpu_milli: Annotated[int, Meta(ge=1, description="what it offers, thousandths of a core")]
    memory_mib: Annotated[int, Meta(ge=1, description="what it offers, MiB")]
    storage_mib: Annotated[int, Meta(ge=1, description="what it offers, MiB")]


class World(Settings, frozen=True):
    """The content of `cluster.yaml`."""

    sites: Annotated[tuple[Site, ...], Meta(description="every site")]
    replicas: Annotated[tuple[Name, ...], Meta(description="sites of the control replicas, in genesis order")]
    agents: Annotated[tuple[AgentPlan, ...], Meta(description="the worker machines")]
    name: Annotated[Name, Meta(description="the installation's name")] = "dwcp"
    net: Annotated[str, Meta(description="first two numbers of the loopback network, for example 127.0")] = (
        "127.0"
    )
    testing: Annotated[bool, Meta(description="services accept --failpoint; never in production")] = False
    lease_ms: Annotated[
        int, Meta(ge=1000, le=600_000, description="lease of a placed or running attempt, ms")
    ] = 30_000

    def validate(self) -> None:
        check_net(self.net)
        known = [site.name for site in self.sites]
        _distinct("sites", known)
        _distinct("replicas", list(self.replicas))
        _distinct("agents", [agent.site for agent in self.agents])
        for key, names in (("replicas", self.replicas), ("agents", [agent.site for agent in self.agents])):
            for name in names:
                if name not in known:
                    raise ConfigInvalid(f"{key}: {name!r} is not one of the sites ({', '.join(known)})")
        if not 4 <= len(self.replicas) <= 64:
            raise ConfigInvalid(f"replicas: {len(self.replicas)}; a control log has 4 to 64 of them")

    def host(self, suffix: str) -> str:
        """An address of this world, for example `host("0.11")`."""
        return f"{self.net}.{suffix}"

    def site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One process: how it is started and where it answers."""

    name: str
    module: str
    config: dict[str, Any]  # Any: the shape is the service's own
    plain: Address | None = None
    mutual: Address | None = None
    others: tuple[Address, ...] = ()  # further listeners, named when a port is taken

    @property
    def listens(self) -> tuple[Address, ...]:
        own = tuple(address for address in (self.plain, self.mutual) if address is not None)
        return own + self.others

    @property
    def host(self) -> str:
        return self.listens[0].host


def default_world(
    *, net: str = "127.0", replicas: int = 4, testing: bool = False, lease_ms: int = 30_000
) -> World:
    """The world of DWCP's documentation: four or seven control replicas, three worker sites."""
    if not 4 <= replicas <= len(CONTROL_SITES):
        raise ConfigInvalid(
            f"--replicas {replicas}: the built-in world has 4 to {len(CONTROL_SITES)} replicas"
        )
    cpu_milli = 1000 * max(1, os.cpu_count() or 1)
    speeds = {"oslo": 100.0, "rome": 20.0, "lima": 5.0}
    agents = tuple(
        AgentPlan(site=site, cpu_milli=cpu_milli, memory_mib=2048, storage_mib=4096) for site in speeds
    )
    sites = tuple(
        Site(name=name, uplink_mbps=speeds.get(name, 100.0), downlink_mbps=speeds.get(name, 100.0))
        for name in CONTROL_SITES[:replicas]
    )
    world = World(
        net=net,
        testing=testing,
        lease_ms=lease_ms,
        sites=sites,
        replicas=tuple(CONTROL_SITES[:replicas]),
        agents=agents,
    )
    world.validate()
    return world


def check_net(net: str) -> None:
    """Raises `ConfigInvalid` unless `net` is the first half of a loopback network."""
    if not re.fullmatch(r"127\.[0-9]{1,3}", net) or int(net[4:]) > 255:
        raise ConfigInvalid(
            f"net: {net!r} is no loopback network; give its first two numbers, for example 127.77"
        )
    ipaddress.ip_address(f"{net}.0.1")


def services(world: World, layout: Layout) -> tuple[ServicePlan, ...]:
    """Every process of the world, in the order in which they are shown."""
    return (
        *(_node(world, layout, position) for position in range(len(world.replicas))),
        _manager(world, layout),
        _allocator(world, layout),
        _compression(world, layout),
        *(_agent(world, layout, position) for position in range(len(world.agents))),
        _monitoring(world, layout),
    )


def replica_name(position: int) -> str:
    return f"probft-{position + 1}"


def agent_name(site: str) -> str:
    return f"{AGENTS}{site}"


def url(address: Address, *, tls: bool) -> str:
    return f"{'https' if tls else 'http'}://{address}"


def manager_address(world: World) -> Address:
    return Address(host=world.host("0.11"), port=MUTUAL_PORT)


def agent_address(world: World, position: int) -> Address:
    return Address(host=world.host(f"0.{31 + position}"), port=AGENT_PORT)


def node_address(world: World, position: int, port: int) -> Address:
    return Address(host=world.host(f"1.{position + 1}"), port=port)


def _shared(world: World, layout: Layout, name: str) -> dict[str, Any]:
    files = layout.tls(name)
    return {
        "name": name,
        "data_dir": layout.data(name),
        "genesis": layout.genesis,
        "tls": {"certificate": files.certificate, "key": files.key, "authority": files.authority},
        "tokens": layout.tokens,
        "run_dir": layout.run,
        "testing": world.testing,
    }


def _listeners(plain: Address | None, mutual: Address | None) -> dict[str, Any]:
    found = {"plain": plain, "mutual": mutual}
    return {key: {"host": a.host, "port": a.port} for key, a in found.items() if a is not None}


def _node(world: World, layout: Layout, position: int) -> ServicePlan:
    name = replica_name(position)
    plain = node_address(world, position, NODE_HTTP_PORT)
    config = {
        **_shared(world, layout, name),
        **_listeners(plain, None),
        "sign_key": layout.sign_key(name),
        "replica": position,
    }
    others = (node_address(world, position, PEER_PORT), node_address(world, position, CLIENT_PORT))
    return ServicePlan(name, "dwcp.services.consensus_node", config, plain=plain, others=others)


def _central(world: World, layout: Layout, name: str, module: str, at: str, port: int) -> ServicePlan:
    plain = Address(host=world.host(at), port=port)
    mutual = Address(host=world.host(at), port=MUTUAL_PORT)
    config = {**_shared(world, layout, name), **_listeners(plain, mutual)}
    return ServicePlan(name, module, config, plain=plain, mutual=mutual)


def _with(plan: ServicePlan, **more: Any) -> ServicePlan:  # Any: the shape is the service's own
    return ServicePlan(plan.name, plan.module, {**plan.config, **more}, plan.plain, plan.mutual, plan.others)


def _manager(world: World, layout: Layout) -> ServicePlan:
    name = MANAGER
    agents = [
        {"name": plan.site, "site": plan.site, "url": url(agent_address(world, position), tls=True)}
        for position, plan in enumerate(world.agents)
    ]
    return _with(
        _central(world, layout, name, "dwcp.services.manager", "0.11", 8080),
        sign_key=layout.sign_key(name),
        allocator=f"https://{world.host('0.13')}:{MUTUAL_PORT}",
        agents=agents,
        lease_ms=world.lease_ms,
    )


def _compression(world: World, layout: Layout) -> ServicePlan:
    return _central(world, layout, "compression-api", "dwcp.services.compression_api", "0.12", 5000)


def _allocator(world: World, layout: Layout) -> ServicePlan:
    plan = _central(world, layout, "maddpg-allocator", "dwcp.services.allocator", "0.13", 8080)
    links = [
        {"site": site.name, "uplink_mbps": site.uplink_mbps, "downlink_mbps": site.downlink_mbps}
        for site in world.sites
    ]
    return _with(plan, links=links)


def _agent(world: World, layout: Layout, position: int) -> ServicePlan:
    plan = world.agents[position]
    site = world.site(plan.site)
    name = agent_name(plan.site)
    mutual = agent_address(world, position)
    capacity = Capacity(plan.cpu_milli, plan.memory_mib, plan.storage_mib, int(site.downlink_mbps))
    config = {
        **_shared(world, layout, name),
        **_listeners(None, mutual),
        "sign_key": layout.sign_key(name),
        "node": plan.site,
        "site": plan.site,
        "address": str(mutual),
        "capacity": {field: getattr(capacity, field) for field in capacity.__struct_fields__},
        "uplink_mbps": site.uplink_mbps,
        "downlink_mbps": site.downlink_mbps,
        "lease_ms": world.lease_ms,
        "manager": url(manager_address(world), tls=True),
        "compression": f"https://{world.host('0.12')}:{MUTUAL_PORT}",
    }
    return ServicePlan(name, "dwcp.services.agent", config, mutual=mutual)


def _monitoring(world: World, layout: Layout) -> ServicePlan:
    plan = _central(world, layout, "dwcp-monitoring", "dwcp.services.monitoring", "0.14", 8081)
    watched = [_node(world, layout, position) for position in range(len(world.replicas))]
    watched += [_manager(world, layout), _allocator(world, layout), _compression(world, layout)]
    watched += [_agent(world, layout, position) for position in range(len(world.agents))]
    return _with(plan, targets=[_target(service) for service in watched], runs=str(layout.root / "runs"))


def _target(service: ServicePlan) -> dict[str, str]:
    address = service.plain or service.mutual
    assert address is not None
    kind = "replica" if service.module.endswith("consensus_node") else "service"
    return {"name": service.name, "url": url(address, tls=service.plain is None), "kind": kind}


def _distinct(key: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigInvalid(f"{key}: {name!r} is listed twice")
