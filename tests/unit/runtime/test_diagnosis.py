"""What `dwcp doctor` makes of an installation that is absent, stopped or damaged."""

from __future__ import annotations

from pathlib import Path

from dwcp.api.health import Verdict
from dwcp.runtime import installation
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.config import Environment
from dwcp.runtime.diagnosis import examine
from dwcp.runtime.layout import Layout
from dwcp.runtime.world import default_world

CLOCK = SystemClock()


def found(layout: Layout) -> dict[str, Verdict]:
    return {finding.what: finding.verdict for finding in examine(layout, Environment(), clock=CLOCK)}


def test_an_absent_installation_is_unknown_and_asked_nothing(tmp_path: Path) -> None:
    """Goal: nothing is called well that is not there. Method: an empty folder."""
    seen = found(Layout(tmp_path / "none"))

    assert seen["installation"] is Verdict.UNKNOWN
    assert "services" not in seen


def test_a_stopped_platform_is_well_and_a_readable_key_is_not(tmp_path: Path) -> None:
    """Goal: stopped is no fault, a key that others may read is one. Method: make one, then open its key."""
    layout = Layout(tmp_path / "state")
    installation.create(layout, default_world(net="127.77"), now_ms=CLOCK.now_ms())
    before = found(layout)
    (layout.keys("dwcp-manager") / "tls.key").chmod(0o644)

    assert (before["installation"], before["services"]) == (Verdict.OK, Verdict.OK)
    assert found(layout)["installation"] is Verdict.CRIT
