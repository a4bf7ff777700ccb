"""What this agent's choices of codecs came to, told to the compression service: news, never waited for.

The service is asked what it would have chosen for a sample of a pack that has left already; where that is
what was sent, the pack's outcome goes to it, else it is asked about the codec that was sent. So its counters
and calibration are of real transfers, and the two ways of choosing are compared.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from dwcp.runtime.telemetry import Telemetry

if TYPE_CHECKING:
    from dwcp.runtime.choosing_learned import Chosen

PREDICT_PATH = "/api/v1/compression/predict"
FEEDBACK_PATH = "/api/v1/feedback"
SAMPLE_BYTES = 64 << 10
PAUSE_S = 1.0  # between two packs that are told of
SILENCE_S = 10.0  # the same after a failure
_ANSWER_S_MAX = 2.0
_ANSWER_BYTES_MAX = 64 << 10


class _Answer(msgspec.Struct, frozen=True):
    codec: Annotated[str, Meta(max_length=40)]
    decision_id: Annotated[str, Meta(max_length=64)]


class _Failed(Exception):
    """The service did not answer as it should; the message says how."""


class Outcomes:
    """Holds one pack at a time: those that come meanwhile are counted and not told of."""

    def __init__(self, client: httpx.AsyncClient, url: str, *, telemetry: Telemetry) -> None:
        self._client = client
        self._url = url.rstrip("/")
        self._telemetry = telemetry
        self._waiting: Chosen | None = None
        self._news = asyncio.Event()

    def told(self, chosen: Chosen) -> None:
        """Of every pack that this agent sends; at once."""
        self._telemetry.count("dwcp_ship_choices_total", codec=chosen.codec, tier=chosen.tier)
        self._telemetry.count("dwcp_ship_choosing_seconds_total", chosen.select_s, part="selection")
        self._telemetry.count("dwcp_ship_choosing_seconds_total", chosen.race_s, part="race")
        if self._waiting is None and chosen.raw:
            self._waiting = chosen
            self._news.set()

    async def run(self, *, pause_s: float = PAUSE_S, silence_s: float = SILENCE_S) -> None:
        """Until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            chosen = self._waiting
            assert chosen is not None  # set before the news
            result = await self.report(chosen)
            self._telemetry.count("dwcp_agent_choices_compared_total", result=result)
            self._waiting = None
            await asyncio.sleep(silence_s if result == "failed" else pause_s)

    async def report(self, chosen: Chosen) -> str:
        """ "agrees", "differs" or "failed"; whatever happens, nobody waits for it."""
        try:
            async with asyncio.timeout(_ANSWER_S_MAX):
                wanted = await self._ask(chosen, allowed=())
                agrees = wanted.codec == chosen.codec
                answer = wanted if agrees else await self._ask(chosen, allowed=(chosen.codec,))
                if answer.codec == chosen.codec:
                    await self._post(FEEDBACK_PATH, _outcome(chosen, answer.decision_id))
        except (httpx.HTTPError, TimeoutError, msgspec.DecodeError, RecursionError, OSError, _Failed):
            return "failed"
        return "agrees" if agrees else "differs"

    async def _ask(self, chosen: Chosen, *, allowed: tuple[str, ...]) -> _Answer:
        middle = max(0, (len(chosen.raw) - SAMPLE_BYTES) // 2)
        sample = chosen.raw[middle : middle + SAMPLE_BYTES]
        question = {
            "total_size": max(chosen.left_bytes, len(chosen.raw)),
            "link": {"bandwidth_bps": chosen.rate_bps},
            "sample_b64": base64.b64encode(sample).decode(),
            "allowed": allowed,
        }
        return msgspec.json.decode(await self._post(PREDICT_PATH, question), type=_Answer)

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:  # Any: JSON
        headers = {"Content-Type": "application/json"}
        answer = await self._client.post(self._url + path, content=msgspec.json.encode(body), headers=headers)
        if answer.status_code != httpx.codes.OK or len(answer.content) > _ANSWER_BYTES_MAX:
            raise _Failed(f"{path}: {answer.status_code}")
        return answer.content


def _outcome(chosen: Chosen, decision_id: str) -> dict[str, Any]:  # Any: JSON
    took = {"compress_s": chosen.pack_s} if chosen.pack_s > 0 else {}
    sizes = {"raw_bytes": len(chosen.raw), "packed_bytes": max(1, chosen.packed_bytes)}
    return {"decision_id": decision_id, **sizes, **took}
