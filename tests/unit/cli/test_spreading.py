"""Seeds one after the other and through Ray: the same function, the same answers."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dwcp.cli.spreading import LOCAL, Files, RayMissing, Told, seeds_of, spread

GIVEN: dict[int, Files] = {3: {"kept": b"before"}, 5: {}}


def doubled(seed: int, files: Files) -> Told:
    return Told(seed, {"twice": 2 * seed}, {**files, "new": b"%d" % seed})


WANTED = [Told(3, {"twice": 6}, {"kept": b"before", "new": b"3"}), Told(5, {"twice": 10}, {"new": b"5"})]


def test_without_ray_one_after_the_other() -> None:
    """Goal: nothing optional is needed. Method: two seeds, one with files of an earlier run."""
    assert list(spread(doubled, GIVEN, ray="")) == WANTED


def test_a_missing_ray_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the operator learns which extra to install. Method: no such module."""
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(RayMissing, match=r"dwcp\[ray\]"):
        list(spread(doubled, GIVEN, ray=LOCAL))


class Nearby(ModuleType):
    """A Ray without machines: what its `remote` takes and its tasks answer, one after the other."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self.joined: list[Any] = []

    def init(self, address: str | None, **_more: Any) -> None:
        self.joined.append(address)

    def remote(self, **_more: Any) -> Callable[[Any], Any]:
        def decorated(work: Any) -> Any:
            if not inspect.isfunction(work):
                raise TypeError("The @ray.remote decorator must be applied to either a function or a class.")
            return SimpleNamespace(remote=lambda *given: functools.partial(work, *given))

        return decorated

    def wait(self, waiting: list[Any], *, num_returns: int) -> tuple[list[Any], list[Any]]:
        return waiting[:num_returns], waiting[num_returns:]

    def get(self, done: Any) -> Any:
        return done()

    def shutdown(self) -> None:
        self.joined.append("left")


def test_work_that_is_bound_to_its_settings_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: what `train` hands over is a function with its settings bound, which Ray itself does not take. Method: a
    Ray of one process that is as strict; it is left afterwards."""
    nearby = Nearby()
    monkeypatch.setitem(sys.modules, "ray", nearby)

    assert list(spread(functools.partial(doubled), GIVEN, ray=LOCAL)) == WANTED
    assert nearby.joined == [None, "left"]


@pytest.mark.process
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")  # Ray's own
def test_through_ray_the_answers_are_the_same() -> None:
    """Goal: where a seed runs changes nothing, and one that fails stops nobody. Method: a Ray of this machine's own,
    beside the plain loop; then a third seed that raises."""
    pytest.importorskip("ray", reason="pip install 'dwcp[ray]' brings Ray")

    def frail(seed: int, files: Files) -> Told:
        if seed == 9:
            raise ValueError("seed nine is unlucky")
        return Told(seed, {"twice": 2 * seed}, {**files, "new": b"%d" % seed})

    found = sorted(spread(functools.partial(frail), {**GIVEN, 9: {}}, ray=LOCAL))
    assert found[:2] == WANTED
    assert found[2].seed == 9
    assert "unlucky" in found[2].fault


@pytest.mark.parametrize(("text", "found"), [("0", (0,)), ("0,4,2", (0, 4, 2)), ("3:6", (3, 4, 5))])
def test_seeds_are_listed_or_a_range(text: str, found: tuple[int, ...]) -> None:
    """Goal: both ways to write them. Method: one, three, a range."""
    assert seeds_of(text) == found


@pytest.mark.parametrize("text", ["", "a", "1,1", "4:4", "1:", "1:2:3"])
def test_what_are_no_seeds_is_refused(text: str) -> None:
    """Goal: a mistyped list never trains something else. Method: nothing, words, twice the same, empty ranges."""
    with pytest.raises(ValueError, match=r".+"):
        seeds_of(text)
