"""Four times the rated load on real sockets: the rated part is answered, the rest is told when to come again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from tests.integration.compression_service import Installed, installation, serving

pytestmark = [pytest.mark.process, pytest.mark.alone]

RATED_PER_S = 50.0
SECONDS = 3.0
CONNECTIONS = 16
PREDICT = "/api/v1/compression/predict"


@pytest.fixture(scope="module")
def running() -> Iterator[Installed]:
    """The service at a rate that any machine holds."""
    with installation() as made:
        config = made.layout.config("compression-api")
        config.write_text(config.read_text() + f"rated_per_s: {RATED_PER_S}\n")
        with serving(made, "dwcp.services.compression_api") as one:
            yield one


async def _load(url: str, count: int) -> list[httpx.Response]:
    """`count` questions, distinct, at four times the rate, from `CONNECTIONS` callers who keep their connection."""
    begun = time.monotonic()

    async def caller(first: int) -> list[httpx.Response]:
        answers = []
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            for number in range(first, count, CONNECTIONS):
                await asyncio.sleep(max(0.0, begun + number / (4 * RATED_PER_S) - time.monotonic()))
                headers = {"Content-Type": "application/octet-stream", "X-Total-Size": "67108864"}
                body = number.to_bytes(4, "big") * 1024
                answers.append(await client.post(url, content=body, headers=headers))
        return answers

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller(first)) for first in range(CONNECTIONS)]
    return [answer for task in tasks for answer in task.result()]


def test_four_times_the_rated_load_on_sockets(running: Installed) -> None:
    """Goal: 429 with `Retry-After`, every question answered, no decision lost or made twice. Method: count on both
    sides: answers here; decisions, refusals and requests in the service's own counters; the rate by the clock."""
    count = int(4 * RATED_PER_S * SECONDS)
    begun = time.monotonic()

    answers = asyncio.run(_load(running.plain + PREDICT, count))

    took = time.monotonic() - begun
    statuses = Counter(answer.status_code for answer in answers)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert statuses[200] + statuses[429] == count
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert all(answer.json()["error"]["code"] == "overloaded" for answer in refused)
    assert RATED_PER_S * SECONDS * 0.5 < statuses[200] <= RATED_PER_S * (took + 0.25) + 1
    decisions = {answer.json()["decision_id"] for answer in answers if answer.status_code == 200}
    assert len(decisions) == statuses[200]

    live = httpx.get(f"{running.plain}/api/v1/model/info", trust_env=False).json()["live"]
    metrics = httpx.get(f"{running.plain}/metrics", trust_env=False).text
    assert (live["decisions"], live["refused"]) == (statuses[200], statuses[429])
    assert f'dwcp_compression_overload_total{{reason="rate"}} {float(statuses[429])}' in metrics


def test_live_counters_say_what_happened(running: Installed) -> None:
    """Goal: `/api/v1/model/info` counts live, by codec and tier. Method: ask, report an outcome, and compare before
    and after."""
    with httpx.Client(base_url=running.plain, trust_env=False) as client:
        before = client.get("/api/v1/model/info").json()["live"]
        headers = {"Content-Type": "application/octet-stream", "X-Total-Size": "67108864"}
        for wait_s in (0.0, 0.5, 1.0, 2.0):  # what was asked too much before has to be paid off
            time.sleep(wait_s)
            answer = client.post(PREDICT, content=b"some text " * 400, headers=headers)
            if answer.is_success:
                break
        told = answer.json()
        after = client.get("/api/v1/model/info").json()["live"]

    assert after["decisions"] == before["decisions"] + 1
    key = f"{told['codec']} {told['tier']}"
    assert after["by_codec_and_tier"][key] == before["by_codec_and_tier"].get(key, 0) + 1
    assert after["outcomes_awaited"] == before["outcomes_awaited"] + 1
    assert after["selection_us_p50"] > 0
