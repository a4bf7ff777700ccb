"""The report's page: it shows what was found, a dash for what was not, and runs nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from tests.unit.allocation.test_report import node, workload

from dwcp.allocation.replay import Against, Replay
from dwcp.allocation.report import Decisions, Fleet, fleet
from dwcp.allocation.report_page import NODES_MAX, Told, page
from dwcp.api.workloads import State

TOLD = Told("OK", "3 of 8 cores are placed", "2026-01-01T00:00:00Z")
DECISIONS = Decisions({"maddpg-placer": 75, "balance+": 25}, 0.75, {"ood": 25}, {}, -0.001, 0.9)
VOID = {"meta", "br"}


class Tree(HTMLParser):
    """Elements by name with their attributes and text; every one must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def some(count: int = 2) -> Fleet:
    work = [workload("ann", 3, State.RUNNING), workload("bob", 1, State.PENDING)]
    return fleet([node(f"n{at:03}", placed=3000 if at == 1 else 0) for at in range(count)], work)


def replayed(*, low: float | None, high: float | None) -> Replay:
    one = Against(0.9, 1.0, 0.1, low, high, 4, 1)
    return Replay(40, 30, 0, {"first-fit": one, "drf": Against(0.0, 0.0, None, None, None, 0, 0)})


def test_everything_found_is_on_the_page() -> None:
    """Goal: use by node and resource, Jain, costs with intervals, who decided. Method: the texts and bars of a small
    report, in a document whose elements are all closed."""
    tree = Tree(page(TOLD, some(), DECISIONS, replayed(low=0.02, high=0.18)))
    text = " ".join(tree.text)

    assert "Allocation: OK 3 of 8 cores are placed" in text
    assert "+10.0% (+2.0% to +18.0%)" in text
    assert "there 4 waited, 1 never started" in text
    assert "3 of 4 cores" in text
    assert "Jain's index: 0.500" in text
    assert "75.0%" in text
    assert "Rules instead of a model: ood 25. No room: –" in text
    widths = [attributes["style"] for tag, attributes in tree.found if tag == "i"]
    assert "width:75.0%" in widths


def test_an_interval_is_drawn_where_it_lies() -> None:
    """Goal: the picture says what the figures say. Method: the ends of the line around zero's place; a saving that is
    surely negative has the other colour, one without an interval no line."""
    tree = Tree(page(TOLD, None, None, replayed(low=-0.05, high=0.18)))
    lines = [attributes for tag, attributes in tree.found if tag == "line"]
    zero = next(float(one["x1"] or 0) for one in lines if one["class"] == "zero")
    mine = next(one for one in lines if one["class"] == "mine")
    assert float(mine["x1"] or 0) < zero < float(mine["x2"] or 0)

    dearer = Replay(40, 0, 0, {"drf": Against(1.3, 1.0, -0.3, -0.4, -0.2, 0, 0)})
    kinds = {one["class"] for tag, one in Tree(page(TOLD, None, None, dearer)).found if tag == "line"}
    assert kinds == {"axis", "zero", "over"}
    few = {one.get("class") for tag, one in Tree(page(TOLD, None, None, replayed(low=None, high=None))).found}
    assert "mine" not in few


def test_what_nobody_told_is_a_gap() -> None:
    """Goal: unknown is never 0. Method: no source answers, and each is named with its reason."""
    told = Told("UNKNOWN", "nothing answers", "now", (("fleet", "it is down"),))
    text = " ".join(Tree(page(told, None, None, None)).text)

    assert "Not known: fleet: it is down" in text
    assert text.count("–") == 5
    assert " 0" not in text.partition("now Not known")[2]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x>', "a&b"])
def test_names_are_text_and_nothing_is_loaded(name: str) -> None:
    """Goal: whoever names a node or a tenant writes no page. Method: hostile names in each place; no element or
    attribute that loads or runs anything."""
    found = fleet([node(name, placed=1)], [workload(name, 1, State.RUNNING)])
    decided = Decisions({name: 1}, None, {name: 1}, {name: 1}, None, None)
    told = Told("WARN", name, name, ((name, name),))
    rivals = Replay(1, 0, 0, {name: Against(1.0, 1.0, 0.0, None, None, 0, 0)})
    document = page(told, found, decided, rivals)
    tree = Tree(document)

    assert name in "".join(tree.text)
    assert {tag for tag, _ in tree.found}.isdisjoint({"script", "img", "link", "iframe", "object", "a"})
    assert not any(key.startswith("on") or key in {"src", "href"} for _, at in tree.found for key in at)
    assert not re.search(r"url\(|@import|http", document.replace("http-equiv", ""))


def test_a_large_fleet_is_cut_and_says_so() -> None:
    """Goal: a page that opens. Method: more nodes than rows; the full one is kept and is the first."""
    text = " ".join(Tree(page(TOLD, some(NODES_MAX + 5), None, None)).text)

    assert "and 5 nodes with less" in text
    rows = text[text.index("Use by node") :]
    assert len(re.findall(r"\bready, \d placed", rows)) == NODES_MAX
    assert rows.index("n001") < rows.index("n000")
