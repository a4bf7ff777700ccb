"""Payloads that submitters left here: given back once their workload has ended."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import msgspec

from dwcp.api.workloads import state_key
from dwcp.control import attempt_log
from dwcp.control.attempt import is_final
from dwcp.services.agent.ports import ControlLog, Goods

UNKNOWN_KEPT_NS = 3_600 * 10**9  # a payload whose workload was never created: its submitter may try again
READ_TIMEOUT_S = 5.0
_WORKLOAD = re.compile(r"w-[a-z0-9]{10}")


@dataclass(slots=True)
class Claims:
    """`first_seen_ns`: since when this agent knows a claim whose workload the log does not hold."""

    log: ControlLog
    goods: Goods
    first_seen_ns: dict[str, int] = field(default_factory=dict)

    async def sweep(self, *, now_ns: int) -> None:
        """One look at every workload's claim, by ordered reads. Raises `LogUnsure` or `LogRefused`."""
        workloads = [owner for owner in await self.goods.claims() if _WORKLOAD.fullmatch(owner)]
        self.first_seen_ns = {owner: seen for owner, seen in self.first_seen_ns.items() if owner in workloads}
        for workload in workloads:
            if await self._is_over(workload, now_ns):
                await self.goods.release(workload)

    async def _is_over(self, workload: str, now_ns: int) -> bool:
        read = await self.log.read(state_key(workload), linearizable=True, timeout_s=READ_TIMEOUT_S)
        try:
            state = attempt_log.read_state(read).state
        except msgspec.MsgspecError:
            return False
        if state is not None:
            return is_final(state)
        return now_ns - self.first_seen_ns.setdefault(workload, now_ns) >= UNKNOWN_KEPT_NS
