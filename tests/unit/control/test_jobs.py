"""Job files: what is accepted, and that every refusal names the key."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.api.workloads import Capacity, Demand, Job, Node, PayloadRef
from dwcp.control.errors import DemandImpossible, JobRefused
from dwcp.control.jobs import (
    JOB_FILE_BYTES_MAX,
    check_identity,
    check_payload,
    check_possible,
    demand_of,
    duration_ms,
    read_job,
)

GOOD = """
name: index-usr-share
demand: {cpu: 1, memory_mib: 256, storage_mib: 400, bandwidth_mbps: 10}
priority: 2
deadline: 10m
data: {path: ./payload, site: oslo}
place: {site: rome}
run: ["sh", "-c", "true"]
output: out/
network: none
retry: safe
verify: 1
limits: {wall: 5m}
"""


def node(name: str, *, cpu: int = 2000, memory: int = 2048, storage: int = 4096, site: str = "") -> Node:
    capacity = Capacity(cpu_milli=cpu, memory_mib=memory, storage_mib=storage, bandwidth_mbps=100)
    return Node(name=name, site=site or name, address="127.0.0.1:1", capacity=capacity)


def job(**changes: object) -> Job:
    base = Job(name="j", demand=Demand(cpu=1, memory_mib=64, storage_mib=64), run=("true",))
    return msgspec.structs.replace(base, **changes)


def test_the_documented_job_is_read() -> None:
    """Goal: the example of the interfaces is valid. Method: read it and look at a few values."""
    read = read_job(GOOD.encode(), source="job.yaml")

    assert (read.name, read.retry.value, read.place.site) == ("index-usr-share", "safe", "rome")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("name: index-usr-share", None),
        ("nmae: x", "did you mean 'name'"),
        ("demand: {cpus: 1, memory_mib: 1, storage_mib: 1}", "unknown key demand.cpus; did you mean 'cpu'"),
        (
            "demand: {cpu: 1, memory_mib: 256MB, storage_mib: 400}",
            "demand.memory_mib: expected `int`, got `str`",
        ),
        ("demand: {memory_mib: 256, storage_mib: 400}", "demand.cpu: missing"),
        ("demand: {cpu: .nan, memory_mib: 256, storage_mib: 400}", "demand.cpu"),
        ("demand: {cpu: .inf, memory_mib: 256, storage_mib: 400}", "demand.cpu"),
        ("demand: {cpu: 0, memory_mib: 256, storage_mib: 400}", "demand.cpu"),
        ("demand: {cpu: 1, memory_mib: -1, storage_mib: 400}", "demand.memory_mib"),
        ("demand: {cpu: 1, memory_mib: 99999999999999999999, storage_mib: 4}", "demand.memory_mib"),
        ("priority: 9", "priority: 9; it is 1"),
        ("deadline: soon", "deadline: 'soon' is no duration"),
        ("deadline: 0s", "deadline"),
        ("data: {path: '', site: oslo}", "data.path"),
        ("data: {path: ./x, site: '../oslo'}", "data.site"),
        ("place: {site: Rome!}", "place.site"),
        ("run: []", "run: empty"),
        ("run: 'rm -rf'", "run: expected `array`"),
        ('run: ["a\\0b"]', "run: a NUL"),
        ("output: ../out", "output: '../out'"),
        ("output: /etc", "output: '/etc'"),
        ("network: all", "network: invalid enum value 'all'"),
        ("verify: 2", "trust log"),
        ("verify: 3", "verify: 3; it is 1"),
        ("limits: {wall: 5}", "limits.wall: expected `str`"),
        ("limits: {wall: 5m, files: 0}", "limits.files"),
        ("name: 'a b'", "name: 'a b' is not allowed"),
        ("retry: [1, 2", "it is no YAML"),
        ("retry: *x", "anchors"),
        ("retry: !!python/object/apply:os.system [ls]", "anchors, aliases and tags"),
        ("deadline: 2001-99-99", "deadline"),
    ],
)
def test_a_wrong_line_is_named(line: str, wanted: str | None) -> None:
    """Goal: a refusal says where and what. Method: replace or add one line of a good job."""
    key = line.partition(":")[0]
    kept = [old for old in GOOD.strip().splitlines() if not old.startswith(f"{key}:")]
    text = "\n".join([*kept, line]).encode()
    if wanted is None:
        read_job(text, source="job.yaml")
        return

    with pytest.raises(JobRefused) as caught:
        read_job(text, source="job.yaml")

    assert str(caught.value).startswith("job.yaml: ")
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"", "it holds no keys"),
        (b"[1, 2]", "it holds no keys"),
        (b"\xff\xfe\x00", "no UTF-8"),
        (b"name: x\nname: y\n", "given twice"),
        (b"x: " + b"[" * 20_000, "nested"),
        (b"#" * (JOB_FILE_BYTES_MAX + 1), "at most"),
        (b"name: x\0y", "no YAML"),
    ],
)
def test_what_is_no_job_file_is_refused(text: bytes, wanted: str) -> None:
    """Goal: bytes that are no job cost a sentence. Method: empty, wrong, huge, deep and doubled input."""
    with pytest.raises(JobRefused, match=wanted):
        read_job(text, source="job.yaml")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_no_input_ends_in_a_traceback(text: bytes) -> None:
    """Goal: only `JobRefused` comes out. Method: random bytes and random text."""
    try:
        read_job(text, source="job.yaml")
    except JobRefused:
        pass


@pytest.mark.parametrize(
    ("text", "ms"), [("90s", 90_000), ("250ms", 250), ("2d", 172_800_000), ("1h", 3_600_000)]
)
def test_durations(text: str, ms: int) -> None:
    """Goal: units are what they say. Method: one of each."""
    assert duration_ms(text, key="k") == ms


def test_a_demand_is_rounded_up() -> None:
    """Goal: a part of a unit is never given twice. Method: fractions just above and exactly on a unit."""
    demand = demand_of(job(demand=Demand(cpu=0.0011, memory_mib=1, storage_mib=1, bandwidth_mbps=0.2)))

    assert (demand.cpu_milli, demand.bandwidth_mbps) == (2, 1)
    assert demand_of(job(demand=Demand(cpu=1.1, memory_mib=1, storage_mib=1))).cpu_milli == 1100


def test_a_demand_beyond_every_node_names_resource_and_largest_node() -> None:
    """Goal: refused at once, naming both. Method: more memory than the larger of two nodes."""
    wanted = job(demand=Demand(cpu=1, memory_mib=9000, storage_mib=1))

    with pytest.raises(DemandImpossible, match=r"demand.memory_mib: 9000 MiB.*lima, has 8192"):
        check_possible(wanted, [node("oslo"), node("lima", memory=8192)])


def test_a_demand_that_only_different_nodes_could_meet_is_impossible() -> None:
    """Goal: one node must have everything. Method: one has the cores, the other the memory."""
    nodes = [node("oslo", cpu=8000, memory=100), node("lima", cpu=1000, memory=9000)]

    with pytest.raises(DemandImpossible, match="no single node"):
        check_possible(job(demand=Demand(cpu=4, memory_mib=4000, storage_mib=1)), nodes)


def test_the_pinned_site_counts_and_unknown_sites_are_named() -> None:
    """Goal: a pin restricts what is possible. Method: the large node is elsewhere; then a mistyped site."""
    nodes = [node("oslo"), node("lima", memory=8192)]
    large = Demand(cpu=1, memory_mib=4000, storage_mib=1)

    check_possible(job(demand=large), nodes)
    with pytest.raises(DemandImpossible, match="largest node at site oslo"):
        check_possible(
            msgspec.convert({**msgspec.to_builtins(job(demand=large)), "place": {"site": "oslo"}}, Job), nodes
        )
    with pytest.raises(JobRefused, match="did you mean 'oslo'"):
        check_possible(msgspec.convert({**msgspec.to_builtins(job()), "place": {"site": "osla"}}, Job), nodes)


def test_drained_nodes_still_make_a_demand_possible() -> None:
    """Goal: only what can never be is refused. Method: the one fitting node is draining."""
    from dwcp.api.workloads import NodeStatus

    drained = msgspec.structs.replace(node("oslo"), status=NodeStatus.DRAINING)
    check_possible(job(), [drained])


def test_the_payload_must_be_the_jobs() -> None:
    """Goal: a submission cannot mix payloads. Method: missing, foreign, too large and malformed ones."""
    with_data = read_job(GOOD.encode(), source="job.yaml")
    good = PayloadRef(root="ab" * 32, bytes=10, files=1, site="oslo", agent="oslo")

    check_payload(with_data, good)
    for wrong in (
        None,
        msgspec.structs.replace(good, site="rome"),
        msgspec.structs.replace(good, root="xyz"),
        msgspec.structs.replace(good, bytes=-1),
        msgspec.structs.replace(good, bytes=401 * 2**20),
        msgspec.structs.replace(good, agent="../x"),
    ):
        with pytest.raises(JobRefused):
            check_payload(with_data, wrong)
    with pytest.raises(JobRefused, match="no data section"):
        check_payload(job(), good)


@pytest.mark.parametrize("identity", ["w-aaaaaaaaaa", "w-a2b3c4d5e6"])
def test_good_identities(identity: str) -> None:
    """Goal: ids as submit makes them pass. Method: two of them."""
    assert check_identity(identity) == identity


@pytest.mark.parametrize("identity", ["", "w-", "w-AAAAAAAAAA", "w-aaaaaaaaa1", "w-aaaaaaaaaa\n", "../../x"])
def test_bad_identities(identity: str) -> None:
    """Goal: nothing else becomes a key or a file name. Method: near misses."""
    with pytest.raises(JobRefused):
        check_identity(identity)
