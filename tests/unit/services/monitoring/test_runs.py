"""What the monitor shows of the operations scripts' runs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dwcp.operations.runs import Record
from dwcp.runtime.runs import Runs
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.monitoring.__main__ import publish_runs


def test_the_latest_end_of_each_script(tmp_path: Path) -> None:
    """Goal: a run that is missing can be alerted on. Method: one that ended, one under way; read the metrics."""
    runs = Runs(tmp_path)
    told = Record(
        id="", script="sweep", target="", argv=(), actor="ann", host="here", pid=7, started_ms=1_000_000
    )
    begun = runs.begin(told)
    runs.end(msgspec.structs.replace(begun, exit=4, ended_ms=1_002_000), b"{}")
    runs.begin(msgspec.structs.replace(told, script="mop"))
    telemetry = Telemetry("monitor", version="0")

    publish_runs(runs.last(), telemetry)

    shown = telemetry.exposition().decode()
    assert 'dwcp_ops_last_run_timestamp_seconds{script="sweep"} 1002.0' in shown
    assert 'dwcp_ops_last_run_exit_code{script="sweep"} 4.0' in shown
    assert "mop" not in shown
