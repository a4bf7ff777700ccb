"""The composition root of `dwcp-monitoring`."""

from __future__ import annotations

import asyncio

import httpx

from dwcp.operations.clusters import CONTROL, judge, overall
from dwcp.operations.runs import Record
from dwcp.runtime import http
from dwcp.runtime.process import Process, run
from dwcp.runtime.runs import Runs
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.monitoring.config import MonitoringConfig
from dwcp.services.monitoring.prober import Prober
from dwcp.services.monitoring.routes import add_routes

_FIRST_ROUNDS = 10  # while services still start, a second apart, so that the first picture is soon a true one


async def main(config: MonitoringConfig, process: Process) -> None:
    prober = Prober(config.targets, clock=process.clock, telemetry=process.telemetry)
    process.health.add("probes", lambda: _asked(prober), needed=True)
    app = http.application(process.health, process.telemetry)
    add_routes(app, prober, lag_warn=config.lag_warn)
    async with (
        http.client(config.tls, timeout_s=config.timeout_ms / 1000) as client,
        asyncio.TaskGroup() as tasks,
    ):
        probing = tasks.create_task(_probe(prober, client, config, process))
        await http.serve_configured(
            app,
            config,
            stop=process.stop,
            telemetry=process.telemetry,
        )
        probing.cancel()


async def _probe(
    prober: Prober, client: httpx.AsyncClient, config: MonitoringConfig, process: Process
) -> None:
    rounds = 0
    before = ""
    while True:
        await prober.ask_all(client)
        before = _publish(prober, config, process, before)
        if config.runs is not None:
            publish_runs(await asyncio.to_thread(Runs(config.runs).last), process.telemetry)
        rounds += 1
        hurried = rounds < _FIRST_ROUNDS and before != "ok"
        await asyncio.sleep(1 if hurried else config.probe_ms / 1000)


def _publish(prober: Prober, config: MonitoringConfig, process: Process, before: str) -> str:
    """Metrics of the clusters, and a log line where the verdict changed; returns the verdict."""
    clusters = judge(prober.probes(), lag_warn=config.lag_warn)
    for cluster in clusters:
        if cluster.name == CONTROL and cluster.can_lose is not None and cluster.lag is not None:
            process.telemetry.gauge("dwcp_cluster_can_lose", cluster.can_lose, cluster=cluster.name)
            process.telemetry.gauge("dwcp_cluster_lag", cluster.lag, cluster=cluster.name)
    verdict = overall(clusters)
    if verdict != before:
        details = {cluster.name: cluster.detail for cluster in clusters}
        process.log.info("clusters.verdict", verdict=verdict, before=before or None, **details)
    return verdict


def publish_runs(records: list[Record], telemetry: Telemetry) -> None:
    """When each operations script ended last, and how: what an alert about a run that is missing looks at."""
    for record in records:
        if record.ended_ms is not None and record.exit is not None:
            ended_s = record.ended_ms / 1000
            telemetry.gauge("dwcp_ops_last_run_timestamp_seconds", ended_s, script=record.script)
            telemetry.gauge("dwcp_ops_last_run_exit_code", record.exit, script=record.script)


def _asked(prober: Prober) -> http.Check:
    if prober.asked_all():
        return http.Check(http.Verdict.OK)
    return http.Check(http.Verdict.UNKNOWN, "not every process has been asked yet")


if __name__ == "__main__":
    run(MonitoringConfig, main)
