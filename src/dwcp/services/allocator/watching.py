"""What is looked at now and then beside the questions: gauges of the fleet and of the shadow, and the invariant."""

from __future__ import annotations

import asyncio

from dwcp.services.allocator.desk import Desk

EVERY_S = 5.0


async def watch(desk: Desk) -> None:
    """Every 5 s; until cancelled."""
    while True:
        await asyncio.sleep(EVERY_S)
        look(desk)


def look(desk: Desk) -> None:
    """One look."""
    shadow = desk.stage.shadow
    desk.counting.shadow(
        regret_usd=shadow.mean_regret_usd,
        agreement=shadow.agreement,
        ood=shadow.out_of_range,
        share=shadow.model_share,
        cost_usd=shadow.cost_usd / max(shadow.decisions, 1),
    )
    desk.queues()
    desk.counting.fleet(desk.scene())
    desk.counting.violated(desk.fleet.overfull())
