"""`dwcp send`: who is meant."""

from __future__ import annotations

import pytest

from dwcp.cli.sending import Place, place


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("rome:", Place("rome", "", "")),
        ("rome:data", Place("rome", "", "data")),
        ("https://127.0.0.31:7070/data", Place("", "https://127.0.0.31:7070", "data")),
        ("https://127.0.0.31:7070", Place("", "https://127.0.0.31:7070", "")),
        ("./rome:data", None),
        ("/tmp/data", None),
        ("data", None),
        ("-", None),
    ],
)
def test_places_and_paths_are_told_apart(text: str, meant: Place | None) -> None:
    """Goal: as scp users expect; a path with a colon is written with ./ before it. Method: one of each."""
    assert place(text) == meant
