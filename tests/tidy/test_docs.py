"""Every command, key, metric and error is documented, and the pages say what the program says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.tidy import generate

from dwcp.cli.main import COMMANDS
from dwcp.runtime.failpoints import POINTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_generated_pages_are_current(name: str) -> None:
    """Goal: the reference cannot lie. Method: make each page again and compare."""
    expected = generate.PAGES[name]()

    assert (generate.DOCS / name).read_text(encoding="utf-8") == expected, (
        "run `make docs` and review the difference"
    )


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_nothing_is_undocumented(name: str) -> None:
    """Goal: every entry has its sentence. Method: look for the mark that the generator leaves."""
    lines = [line for line in generate.PAGES[name]().splitlines() if generate.MISSING in line]

    assert lines == []


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_command_shows_an_example(entry: object) -> None:
    """Goal: help tells how a command is typed. Method: look for the example in each command's help."""
    helps = dict(generate._helps(entry))  # type: ignore[arg-type]
    leaves = {
        path: text for path, text in helps.items() if not any(other.startswith(path + " ") for other in helps)
    }

    shown = {path: " ".join(text.split()).partition("Example: ")[2] for path, text in leaves.items()}

    assert [path for path, example in shown.items() if path not in example] == []


def test_failpoints_and_code_agree() -> None:
    """Goal: no point is listed and never passed. Method: look for each name in the source."""
    source = "".join(
        path.read_text() for path in (ROOT / "src").rglob("*.py") if path.name != "failpoints.py"
    )

    assert [name for name in POINTS if f'"{name}"' not in source] == []


def test_links_lead_somewhere() -> None:
    """Goal: no dead link between pages. Method: resolve every relative link of every page."""
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]

    assert dead == []
