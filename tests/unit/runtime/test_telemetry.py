"""Metrics exist by their listed name only."""

from __future__ import annotations

import re

import pytest

from dwcp.runtime.telemetry import METRICS, Kind, Telemetry


def test_names_carry_units_and_are_unique() -> None:
    """Goal: names follow one rule. Method: check every metric."""
    names = [metric.name for metric in METRICS]
    wrong = [
        metric.name
        for metric in METRICS
        if not re.fullmatch(r"dwcp_[a-z0-9_]+", metric.name)
        or (metric.kind is Kind.COUNTER) != metric.name.endswith("_total")
        or not metric.help.endswith(".")
    ]

    assert wrong == []
    assert len(names) == len(set(names))


def test_values_are_exposed() -> None:
    """Goal: what is counted is what is scraped. Method: use one metric of each kind."""
    telemetry = Telemetry("test", version="1")
    telemetry.count("dwcp_http_rejected_total", 2, reason="no_token")
    telemetry.gauge("dwcp_ready", 1)
    telemetry.observe("dwcp_journal_sync_seconds", 0.003)
    telemetry.touch("dwcp_consensus_operations_total")

    text = telemetry.exposition().decode()

    assert 'dwcp_http_rejected_total{reason="no_token"} 2.0' in text
    assert "dwcp_ready 1.0" in text
    assert 'dwcp_journal_sync_seconds_bucket{le="0.005"} 1.0' in text
    assert "dwcp_consensus_operations_total 0.0" in text


def test_unknown_names_and_wrong_kinds_fail() -> None:
    """Goal: a typo cannot make a new metric. Method: both mistakes."""
    telemetry = Telemetry("test", version="1")

    with pytest.raises(KeyError):
        telemetry.count("dwcp_unheard_of_total")
    with pytest.raises(TypeError):
        telemetry.gauge("dwcp_http_rejected_total", 1, reason="x")


def test_equal_values_are_recorded_in_one_go() -> None:
    """Goal: the series are those of as many single observations. Method: both ways, on, below and above bounds."""
    many, single = (Telemetry("selector", version="0") for _ in range(2))
    for value in (0.0, 0.0005, 0.003, 99.0):
        many.observe_equal("dwcp_journal_sync_seconds", value, 3)
        for _ in range(3):
            single.observe("dwcp_journal_sync_seconds", value)

    def shown(telemetry: Telemetry) -> list[str]:
        lines = telemetry.exposition().decode().splitlines()
        return [line for line in lines if line.startswith("dwcp_journal") and "_created" not in line]

    assert shown(many) == shown(single)
    assert "dwcp_journal_sync_seconds_count 12.0" in shown(many)
