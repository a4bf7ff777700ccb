"""Every metric's name, and how logs look. Services count here and nowhere else.

A metric that is not in `METRICS` cannot be used. Units are suffixes. Logs are JSON
lines on standard output: an event name and key-values.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name ends in its unit, its help is a sentence."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # of a histogram; empty: by its unit


TINY_SECONDS = (1e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1, 1)
LOG_ERRORS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5)
WAIT_SECONDS = (0.1, 1, 5, 15, 60, 300, 600, 1800, 3600, 7200, 14_400, 43_200)
FAST_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

METRICS: tuple[Metric, ...] = (
    # every service
    Metric("dwcp_build_info", Kind.GAUGE, "Always 1; its labels say what runs.", ("service", "version")),
    Metric("dwcp_ready", Kind.GAUGE, "1 while the service answers ready."),
    Metric(
        "dwcp_request_duration_seconds", Kind.HISTOGRAM, "Time to answer HTTP requests.", ("method", "status")
    ),
    Metric(
        "dwcp_http_rejected_total", Kind.COUNTER, "HTTP requests refused before their route.", ("reason",)
    ),
    Metric("dwcp_up", Kind.GAUGE, "1 if the component answered the last probe.", ("component",)),
    Metric("dwcp_breaker_state", Kind.GAUGE, "0 closed, 1 half open, 2 open.", ("dependency",)),
    # consensus nodes
    Metric("dwcp_consensus_view", Kind.GAUGE, "The view this replica is in."),
    Metric("dwcp_consensus_voting", Kind.GAUGE, "1 if this replica votes, 0 if it only learns."),
    Metric("dwcp_consensus_decided_index", Kind.GAUGE, "Highest index that is decided here."),
    Metric("dwcp_consensus_executed_index", Kind.GAUGE, "Highest index that is executed here."),
    Metric("dwcp_consensus_checkpoint_index", Kind.GAUGE, "Index of the last stable checkpoint."),
    Metric("dwcp_consensus_view_changes_total", Kind.COUNTER, "Views entered after the first."),
    Metric("dwcp_consensus_operations_total", Kind.COUNTER, "Operations executed."),
    Metric("dwcp_consensus_batch_operations", Kind.HISTOGRAM, "Operations in a batch."),
    Metric("dwcp_consensus_pending_bytes", Kind.GAUGE, "Bundles that wait to be ordered."),
    Metric("dwcp_consensus_accusations_total", Kind.COUNTER, "Provable misbehaviour seen.", ("kind",)),
    Metric("dwcp_consensus_state_transfers_total", Kind.COUNTER, "Snapshots installed from peers."),
    Metric("dwcp_journal_sync_seconds", Kind.HISTOGRAM, "Time of one journal sync."),
    Metric("dwcp_journal_written_bytes_total", Kind.COUNTER, "Bytes appended to the journal."),
    Metric("dwcp_peer_connected", Kind.GAUGE, "1 while the link to that replica is up.", ("peer",)),
    Metric("dwcp_peer_sent_bytes_total", Kind.COUNTER, "Bytes sent to that replica.", ("peer",)),
    Metric("dwcp_peer_received_bytes_total", Kind.COUNTER, "Bytes received from that replica.", ("peer",)),
    Metric("dwcp_peer_dropped_total", Kind.COUNTER, "Frames dropped because a queue was full.", ("peer",)),
    Metric(
        "dwcp_link_refused_total", Kind.COUNTER, "Connections closed before or for their frames.", ("reason",)
    ),
    Metric("dwcp_ledger_sessions", Kind.GAUGE, "Client sessions known."),
    Metric("dwcp_ledger_connections", Kind.GAUGE, "Client connections open."),
    Metric("dwcp_ledger_watches", Kind.GAUGE, "Watches open."),
    # manager
    Metric("dwcp_manager_workloads", Kind.GAUGE, "Workloads by state.", ("state",)),
    Metric(
        "dwcp_manager_transitions_total", Kind.COUNTER, "State changes committed by this process.", ("state",)
    ),
    Metric("dwcp_manager_conflicts_total", Kind.COUNTER, "Transactions that lost a comparison.", ("step",)),
    Metric("dwcp_manager_placement_seconds", Kind.HISTOGRAM, "From pending to placed."),
    Metric(
        "dwcp_manager_moves_total",
        Kind.COUNTER,
        "Workloads asked to move: off a drained node, or by an operator's plan.",
        ("reason",),
    ),
    Metric("dwcp_manager_moves_under_way", Kind.GAUGE, "Workloads asked to move and not placed again yet."),
    Metric("dwcp_manager_refused_total", Kind.COUNTER, "Jobs refused at submission.", ("reason",)),
    # allocator
    Metric("dwcp_maddpg_optimization_total", Kind.COUNTER, "Placements computed.", ("policy",)),
    Metric("dwcp_maddpg_optimization_seconds", Kind.HISTOGRAM, "Time to compute a placement."),
    Metric(
        "dwcp_maddpg_optimization_infeasible_total",
        Kind.COUNTER,
        "Requests that no node could meet.",
        ("resource",),
    ),
    Metric(
        "dwcp_maddpg_optimization_reward",
        Kind.GAUGE,
        "Mean reward of a decision, dollars: minus what its choice costs at once; 0 before the first.",
    ),
    Metric(
        "dwcp_maddpg_decisions_total",
        Kind.COUNTER,
        "Decisions by the chosen node's site, who decided (shadow: both chose) and result.",
        ("site", "policy", "result"),
    ),
    Metric(
        "dwcp_maddpg_decision_seconds",
        Kind.HISTOGRAM,
        "Time to decide and take the room, the request around it left out, by request: single or batch; and its "
        "parts: features (the request, what its workloads share), score (choosing), commit (the room, the record).",
        ("stage",),
        TINY_SECONDS,
    ),
    Metric(
        "dwcp_maddpg_fallback_total",
        Kind.COUNTER,
        "Decisions by a rule though a model was wanted.",
        ("reason",),
    ),
    Metric(
        "dwcp_maddpg_infeasible_masked_total",
        Kind.COUNTER,
        "Nodes masked in decisions that found none.",
        ("resource",),
    ),
    Metric(
        "dwcp_maddpg_commit_conflicts_total",
        Kind.COUNTER,
        "Choices made again because the node had changed.",
        ("site",),
    ),
    Metric(
        "dwcp_maddpg_capacity_invariant_violations_total",
        Kind.COUNTER,
        "Nodes found overfull that no description made so; stays 0.",
    ),
    Metric(
        "dwcp_maddpg_shadow_regret_usd",
        Kind.GAUGE,
        "Mean immediate cost of the model's choice less the rule's.",
    ),
    Metric(
        "dwcp_maddpg_shadow_agreement_ratio",
        Kind.GAUGE,
        "Share of decisions where model and rule chose alike.",
    ),
    Metric(
        "dwcp_maddpg_wan_bytes_total",
        Kind.COUNTER,
        "Bytes of data that placements sent from one site to another; sites beyond 64 are `other`.",
        ("src", "dst"),
    ),
    Metric("dwcp_maddpg_model_share", Kind.GAUGE, "Share of decisions that the model made."),
    Metric("dwcp_maddpg_ood_ratio", Kind.GAUGE, "Share of decisions outside of the model's training range."),
    Metric(
        "dwcp_maddpg_feature_psi",
        Kind.GAUGE,
        "Population stability index of a feature; above 0.2 the data has changed; see drift.",
        ("feature",),
    ),
    Metric(
        "dwcp_maddpg_state_staleness_seconds",
        Kind.GAUGE,
        "Age of the oldest that is known of a site.",
        ("site",),
    ),
    Metric(
        "dwcp_maddpg_node_utilization_ratio",
        Kind.GAUGE,
        "Share of a site's capacity that is placed or promised.",
        ("site", "resource"),
    ),
    Metric(
        "dwcp_maddpg_stranded_ratio",
        Kind.GAUGE,
        "Share of a site's cores that are free but of no use to a middling workload.",
        ("site",),
    ),
    Metric(
        "dwcp_maddpg_sla_violations_total",
        Kind.COUNTER,
        "Workloads that start after their waiting budget, each once: capacity (it ended without a place), wait (placed "
        "after it), shipping (placed in time, the data arrives later).",
        ("priority", "cause"),
    ),
    Metric(
        "dwcp_maddpg_queue_length",
        Kind.GAUGE,
        "Workloads that were asked for in the last ten minutes and have no place, by the site that they are pinned "
        "to or have their data at.",
        ("site", "priority"),
    ),
    Metric(
        "dwcp_maddpg_wait_seconds",
        Kind.HISTOGRAM,
        "What a workload had waited when it was placed: as its asker says, or since it was first asked for in vain.",
        ("priority",),
        WAIT_SECONDS,
    ),
    Metric(
        "dwcp_maddpg_cost_usd_total",
        Kind.COUNTER,
        "What placements cost at once, by the environment's prices.",
        ("component",),
    ),
    Metric(
        "dwcp_maddpg_model_info",
        Kind.GAUGE,
        "1 for a model that serves, 0 for one that did.",
        ("version", "digest"),
    ),
    Metric(
        "dwcp_maddpg_model_reload_total",
        Kind.COUNTER,
        "Models loaded after a change, by result.",
        ("result",),
    ),
    Metric("dwcp_maddpg_canary_fraction", Kind.GAUGE, "Share of the sites that a canary decides for."),
    # data path
    Metric(
        "dwcp_compression_predictions_total",
        Kind.COUNTER,
        "Codec choices made.",
        ("codec", "tier", "objective"),
    ),
    Metric(
        "dwcp_compression_selection_seconds",
        Kind.HISTOGRAM,
        "Time to choose a codec, the request around it left out.",
        ("tier",),
        TINY_SECONDS,
    ),
    Metric(
        "dwcp_compression_predicted_saved_seconds_total",
        Kind.COUNTER,
        "Seconds that choices save by prediction.",
        ("against",),
    ),
    Metric("dwcp_compression_feedback_total", Kind.COUNTER, "Outcomes reported for decisions.", ("result",)),
    Metric(
        "dwcp_compression_residual_log",
        Kind.HISTOGRAM,
        "Absolute natural log of actual over predicted.",
        ("what",),
        LOG_ERRORS,
    ),
    Metric(
        "dwcp_compression_calibration_scale",
        Kind.GAUGE,
        "Factor that outcomes put on a codec's measured speed.",
        ("codec",),
    ),
    Metric(
        "dwcp_compression_overload_total", Kind.COUNTER, "Requests answered 429 because of load.", ("reason",)
    ),
    Metric("dwcp_compression_streams_open", Kind.GAUGE, "Streams being compressed or decompressed."),
    Metric(
        "dwcp_compression_stream_raw_bytes_total", Kind.COUNTER, "Uncompressed bytes of streams.", ("way",)
    ),
    Metric(
        "dwcp_compression_stream_packed_bytes_total", Kind.COUNTER, "Compressed bytes of streams.", ("way",)
    ),
    Metric(
        "dwcp_compression_refused_total",
        Kind.COUNTER,
        "Streams and messages refused: a bomb, damage, a limit.",
        ("reason",),
    ),
    Metric("dwcp_compression_dictionaries", Kind.GAUGE, "Dictionaries held."),
    Metric(
        "dwcp_compression_model_info",
        Kind.GAUGE,
        "1 for the model in each role; its digest is a label.",
        ("role", "digest"),
    ),
    Metric("dwcp_compression_model_errors_total", Kind.COUNTER, "Faults of models; the table answered."),
    Metric("dwcp_compression_shadow_samples", Kind.GAUGE, "Decisions priced under both models."),
    Metric(
        "dwcp_compression_shadow_regret_log",
        Kind.GAUGE,
        "Mean log of the candidate's cost over the incumbent's.",
    ),
    Metric("dwcp_compression_shadow_skipped_total", Kind.COUNTER, "Decisions too many to be priced."),
    Metric(
        "dwcp_compression_drift_psi",
        Kind.GAUGE,
        "Population stability index of a feature; above 0.25 the data has changed.",
        ("feature",),
    ),
    Metric("dwcp_ship_raw_bytes_total", Kind.COUNTER, "Bytes moved before compression.", ("direction",)),
    Metric("dwcp_ship_wire_bytes_total", Kind.COUNTER, "Bytes moved after compression.", ("direction",)),
    Metric(
        "dwcp_ship_refused_total",
        Kind.COUNTER,
        "Transfers refused because something did not verify.",
        ("reason",),
    ),
    Metric(
        "dwcp_ship_choices_total",
        Kind.COUNTER,
        "Packs sent, by their codec and by who decided.",
        ("codec", "tier"),
    ),
    Metric(
        "dwcp_ship_choosing_seconds_total",
        Kind.COUNTER,
        "CPU spent on decisions, and on trials that were not sent.",
        ("part",),
    ),
    Metric(
        "dwcp_ship_selector_learned",
        Kind.GAUGE,
        "1 where transfers go by the learned selector, 0 where by this host's table.",
    ),
    Metric("dwcp_chunk_store_bytes", Kind.GAUGE, "Bytes held by the chunk store."),
    # agent
    Metric("dwcp_agent_attempts_open", Kind.GAUGE, "Attempts that this agent works on now."),
    Metric("dwcp_agent_attempts_total", Kind.COUNTER, "Attempts ended here by outcome.", ("outcome",)),
    Metric("dwcp_agent_lease_renewals_total", Kind.COUNTER, "Lease renewals by result.", ("result",)),
    Metric(
        "dwcp_agent_choices_compared_total",
        Kind.COUNTER,
        "Choices of codecs compared with the compression service's: agrees, differs, failed.",
        ("result",),
    ),
    Metric("dwcp_agent_work_stopped_total", Kind.COUNTER, "Commands stopped before their end.", ("reason",)),
    # monitoring
    Metric(
        "dwcp_cluster_can_lose", Kind.GAUGE, "Replicas that may still fail before writes stop.", ("cluster",)
    ),
    Metric("dwcp_cluster_lag", Kind.GAUGE, "Entries that the slowest replica is behind.", ("cluster",)),
    Metric(
        "dwcp_ops_last_run_timestamp_seconds",
        Kind.GAUGE,
        "Unix time at which the script's latest run ended.",
        ("script",),
    ),
    Metric("dwcp_ops_last_run_exit_code", Kind.GAUGE, "How the script's latest run ended.", ("script",)),
    Metric("dwcp_probe_seconds", Kind.HISTOGRAM, "Time of one health probe.", ("component",)),
)

_COUNT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Telemetry:
    """The metrics of one process. An unknown name or label is our own mistake and raises at once."""

    def __init__(self, service: str, *, version: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._known = {metric.name: metric for metric in METRICS}
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._children: dict[tuple[object, ...], Any] = {}  # Any: as `_child` answers
        self.gauge("dwcp_build_info", 1, service=service, version=version)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        self._child(name, Kind.COUNTER, labels).inc(by)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._child(name, Kind.GAUGE, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Records one value of a histogram."""
        self._child(name, Kind.HISTOGRAM, labels).observe(value)

    def observe_equal(self, name: str, value: float, times: int, **labels: str) -> None:
        """Records one value of a histogram `times` times; its labels are looked up once."""
        child = self._child(name, Kind.HISTOGRAM, labels)
        for _ in range(times):
            child.observe(value)

    def touch(self, name: str, **labels: str) -> None:
        """Shows a metric at 0 before its first event, so that a query finds it."""
        self._child(name, self._known[name].kind, labels)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def _child(
        self, name: str, kind: Kind, labels: dict[str, str]
    ) -> Any:  # Any: prometheus types the three apart
        key = (name, kind, *labels.items())
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._find(name, kind, labels)
        return child

    def _find(self, name: str, kind: Kind, labels: dict[str, str]) -> Any:  # Any: as `_child` answers
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self._make(self._known[name])
        if self._known[name].kind is not kind:
            raise TypeError(f"{name} is a {self._known[name].kind}, not a {kind}")
        return made.labels(**labels) if labels else made

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        match metric.kind:
            case Kind.COUNTER:
                return Counter(metric.name, metric.help, metric.labels, registry=self._registry)
            case Kind.GAUGE:
                return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)
            case Kind.HISTOGRAM:
                unit = FAST_SECONDS if metric.name.endswith("_seconds") else _COUNT_BUCKETS
                buckets = metric.buckets or unit
                return Histogram(
                    metric.name, metric.help, metric.labels, registry=self._registry, buckets=buckets
                )


def setup_logs(service: str, *, level: str = "info") -> structlog.stdlib.BoundLogger:
    """JSON lines on standard output, ours and the libraries'; returns the service's logger."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.dict_tracebacks,
    ]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(service).bind(
        service=service, pid=os.getpid()
    )
    return logger
