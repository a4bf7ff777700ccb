"""The line to the supervisor: bounded in time, and a sentence where nobody answers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dwcp.runtime.errors import NotRunning
from dwcp.runtime.layout import Layout
from dwcp.runtime.supervision import Supervisor


def test_a_supervisor_that_hangs_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """Goal: `dwcp status` never hangs. Method: a socket that takes the call and says nothing."""
    layout = Layout(tmp_path)
    layout.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(layout.run / "supervisor.sock"))
        mute.listen()

        with pytest.raises(NotRunning, match="does not answer"):
            Supervisor(layout, answer_s=0.05).states()
    assert socket.getdefaulttimeout() is None
