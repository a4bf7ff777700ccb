"""Decisions of a batch several at a time, and yet as if one after the other.

Where a workload goes depends on where those before it went. So that is guessed, all are decided on as if the guesses
were true, and what holds is kept: everything up to the first workload that goes elsewhere than guessed, and that one
too, since those before it were right. The rest is guessed anew from what has just been found. Few operations on many
rows cost far less than many on few. The guess changes how long it takes, never what comes out. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dwcp.allocation.feasibility import choose_rows
from dwcp.allocation.serving.chain import Decision, Rule, Served, judged
from dwcp.allocation.serving.scene import Scene
from dwcp.allocation.serving.sheet import Sheet, Standing

TOGETHER_MAX = 12  # more would mostly be decided on in vain: of a dozen the first half holds


class Ahead:
    """A batch that is being decided on. Only for sheets that are `alike` and rules that are taken apart.

    Its workloads are on no node of the scene yet, and no two have one name.
    """

    def __init__(self, sheet: Sheet, scene: Scene, rule: Rule, model: Served) -> None:
        self._sheet = sheet
        self._rule = rule
        self._guesses = _favourites(sheet, scene, model)

    def decide(
        self,
        place: int,
        scene: Scene,
        *,
        model: Served,
        left_s: Callable[[], float],
        expect_s: float,
        refused: str = "",
    ) -> list[Decision]:
        """On workload `place` and as many after it as are sure, in `scene`; as `chain.decide`. At least one."""
        supposed = self._guesses[place : place + TOGETHER_MAX - 1]
        supposed = supposed[: len(self._sheet.wanted) - place - 1]
        standing = Standing(self._sheet, place, scene, supposed)
        found = judged(standing, self._rule, model=model, refused=refused, left_s=left_s, expect_s=expect_s)
        rows = [found.row(rank) for rank in range(len(supposed) + 1)]
        self._guesses[place : place + len(rows)] = rows
        wrong = (rank for rank, row in enumerate(supposed) if rows[rank] != row)
        return [found.decision(rank) for rank in range(next(wrong, len(supposed)) + 1)]


def _favourites(sheet: Sheet, scene: Scene, model: Served) -> list[int | None]:
    """Where the rule below the model would put each if it were the first."""
    standing = Standing(sheet, 0, scene, [None] * (len(sheet.wanted) - 1))
    columns = choose_rows(model.scorer.below(standing), standing.mask, np).tolist()
    return [column if 0 <= column < len(scene.open) else None for column in columns]
