"""What a consensus node says of itself: health checks, `/cluster/status`, logs and metrics."""

from __future__ import annotations

from typing import Any

import structlog

from dwcp.consensus.ledger.genesis import Genesis, GenesisReplica
from dwcp.consensus.ledger.replica import Replica
from dwcp.runtime.client_port import ClientPort
from dwcp.runtime.http import Check, Health, Verdict
from dwcp.runtime.telemetry import Telemetry
from dwcp.runtime.transport import PeerLinks

_PROOF_BYTES_LOGGED = 8192
_QUIET = frozenset({"peer.junk", "vote.refused"})  # whoever floods a node must not flood its log
_QUIET_LOGGED = 20  # of each quiet event, for each `publish`


class NodeView:
    """Reads the parts of a running node."""

    def __init__(
        self,
        genesis: Genesis,
        me: int,
        replica: Replica,
        links: PeerLinks,
        clients: ClientPort,
        learner: str,
    ) -> None:
        self.genesis = genesis
        self.me = me
        self.replica = replica
        self.links = links
        self.clients = clients
        self.learner = learner

    @property
    def own(self) -> GenesisReplica:
        return self.genesis.replicas[self.me]

    def add_checks(self, health: Health) -> None:
        health.add("peers", self.check_peers, needed=True)
        health.add("replica", self.check_replica)

    def check_peers(self) -> Check:
        """Ready means that this replica could take part in a decision now."""
        reached = len(self.links.connected()) + 1
        data = {"connected": reached, "replicas": self.genesis.n, "quorum": self.genesis.quorum}
        if reached < self.genesis.quorum:
            detail = f"{reached} of {self.genesis.n} replicas are in reach, {self.genesis.quorum} are needed"
            return Check(Verdict.CRIT, detail, data)
        if reached < self.genesis.n:
            return Check(Verdict.WARN, f"{self.genesis.n - reached} replicas are out of reach", data)
        return Check(Verdict.OK, "", data)

    def check_replica(self) -> Check:
        status = self.replica.status()
        data = {"view": status.view, "index": status.index, "voting": status.voting}
        if self.learner:
            return Check(Verdict.WARN, f"learner: {self.learner}", data)
        if status.state_transfer:
            return Check(Verdict.WARN, "far behind: bringing a snapshot from peers", data)
        return Check(Verdict.OK, "", data)

    def status(self) -> dict[str, Any]:
        """The answer of `/cluster/status`. Values are JSON's own."""
        status = self.replica.status()
        connected = set(self.links.connected())
        return {
            "service": "probft-node",
            "name": self.own.name,
            "replica": self.me,
            "site": self.own.site,
            "chain_id": self.genesis.chain_id.hex(),
            "engine": self.genesis.engine,
            "replicas": self.genesis.n,
            "faults_tolerated": self.genesis.f,
            "quorum": self.genesis.quorum,
            "epoch": status.epoch,
            "view": status.view,
            "leader": self.genesis.replicas[status.leader].name,
            "index": status.index,
            "revision": status.revision,
            "history": self.replica.ledger.history_digest.hex(),
            "voting": status.voting,
            "learner": self.learner,
            "state_transfer": status.state_transfer,
            "pending_bytes": status.pending_bytes,
            "clients": len(self.clients),
            "peers": [
                {"replica": peer.id, "name": peer.name, "connected": peer.id in connected}
                for peer in self.genesis.replicas
                if peer.id != self.me
            ],
        }


class NodeObserver:
    """Counts in plain integers on the hot path; `publish` copies them to the metrics."""

    def __init__(self, log: structlog.stdlib.BoundLogger, telemetry: Telemetry) -> None:
        self._log = log
        self._telemetry = telemetry
        self._operations = 0
        self._written_bytes = 0
        self._quiet: dict[str, int] = {}
        self._published: dict[tuple[str, str], int] = {}
        for name in (
            "dwcp_consensus_view_changes_total",
            "dwcp_consensus_operations_total",
            "dwcp_consensus_state_transfers_total",
            "dwcp_journal_written_bytes_total",
        ):
            telemetry.touch(name)

    # ----------------------------------------------------------------- the hot path calls these

    def executed(self, operations: int) -> None:
        self._operations += operations

    def written(self, size: int) -> None:
        self._written_bytes += size

    def observed(self, event: str, fields: dict[str, int | str]) -> None:
        if event in _QUIET:
            self._quiet[event] = self._quiet.get(event, 0) + 1
            if self._quiet[event] > _QUIET_LOGGED:
                return
        if event == "view.entered":
            self._telemetry.count("dwcp_consensus_view_changes_total")
        elif event == "snapshot.installed":
            self._telemetry.count("dwcp_consensus_state_transfers_total")
        elif event == "checkpoint.stable":
            self._telemetry.gauge("dwcp_consensus_checkpoint_index", int(fields["index"]))
        self._log.info(event, **{f"of_{k}" if k in _RESERVED else k: v for k, v in fields.items()})

    def accused(self, culprit: int, kind: str, proof: bytes) -> None:
        self._telemetry.count("dwcp_consensus_accusations_total", kind=kind)
        self._log.error(
            "replica.accused", culprit=culprit, kind=kind, proof=proof[:_PROOF_BYTES_LOGGED].hex()
        )

    def peer_changed(self, peer: int, up: bool) -> None:
        self._telemetry.gauge("dwcp_peer_connected", int(up), peer=str(peer))
        self._log.info("peer.connected" if up else "peer.lost", peer=peer)

    # ----------------------------------------------------------------- now and then

    def publish(self, view: NodeView) -> None:
        """Bring the metrics up to date."""
        status, telemetry = view.replica.status(), self._telemetry
        self._quiet.clear()
        for name, value in (
            ("dwcp_consensus_view", status.view),
            ("dwcp_consensus_voting", int(status.voting)),
            ("dwcp_consensus_decided_index", status.index),
            ("dwcp_consensus_executed_index", status.index),
            ("dwcp_consensus_pending_bytes", status.pending_bytes),
            ("dwcp_ledger_connections", len(view.clients)),
            ("dwcp_ledger_sessions", view.replica.ledger.open_sessions),
        ):
            telemetry.gauge(name, value)
        self._advance("dwcp_consensus_operations_total", self._operations)
        self._advance("dwcp_journal_written_bytes_total", self._written_bytes)
        counters = view.links.counters
        for reason, count in counters.refused.items():
            self._advance("dwcp_link_refused_total", count, "reason", reason)
        for name, by_peer in (
            ("dwcp_peer_sent_bytes_total", counters.sent_bytes),
            ("dwcp_peer_received_bytes_total", counters.received_bytes),
            ("dwcp_peer_dropped_total", counters.dropped_frames),
        ):
            for peer, count in by_peer.items():
                self._advance(name, count, "peer", str(peer))

    def _advance(self, name: str, total: int, label: str = "", value: str = "") -> None:
        before = self._published.get((name, value), 0)
        if total > before:
            self._telemetry.count(name, total - before, **({label: value} if label else {}))
            self._published[name, value] = total


_RESERVED = frozenset({"event", "level", "at", "service", "pid"})
