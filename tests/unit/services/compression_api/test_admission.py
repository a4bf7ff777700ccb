"""Overload: the rated load is answered, what is more is told when to come again, and nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.services.compression_api.scene import service

from dwcp.services.compression_api.admission import Bucket
from dwcp.services.compression_api.routes import BATCH_PATH, PREDICT_PATH

QUESTION = {"total_size": 1 << 20}


def test_four_times_the_rated_load(tmp_path: Path) -> None:
    """Goal: 429 with Retry-After, every request answered, the rate held. Method: 4 × 100/s for 5 s."""

    async def main() -> None:
        async with service(tmp_path, rated_per_s=100) as running:
            answers = []
            for at in range(2000):
                running.seconds[0] = at / 400
                answers.append(await running.ask("POST", PREDICT_PATH, json=QUESTION))
            statuses = [answer.status_code for answer in answers]

            assert statuses.count(200) + statuses.count(429) == 2000
            assert 495 <= statuses.count(200) <= 530
            assert all(
                answer.headers["Retry-After"] == "1" for answer in answers if answer.status_code == 429
            )
            assert running.desk.answered == statuses.count(200)

    asyncio.run(main())


def test_a_batch_costs_what_it_holds(tmp_path: Path) -> None:
    """Goal: batches are no way around. Method: one of a hundred uses up a second of 100/s."""

    async def main() -> None:
        async with service(tmp_path, rated_per_s=100) as running:
            items = {"items": [QUESTION] * 100}
            assert (await running.ask("POST", BATCH_PATH, json=items)).status_code == 200
            assert (await running.ask("POST", PREDICT_PATH, json=QUESTION)).status_code == 429
            running.seconds[0] = 1.0
            assert (await running.ask("POST", PREDICT_PATH, json=QUESTION)).status_code == 200

    asyncio.run(main())


@given(st.lists(st.tuples(st.floats(0, 0.1), st.integers(1, 50)), max_size=200))
def test_never_more_than_the_rate(steps: list[tuple[float, int]]) -> None:
    """Goal: over any time no more than rate × time + burst + one batch. Method: random arrivals."""
    bucket = Bucket(100.0, 25.0, 25.0)
    now = taken = 0.0
    for pause, wanted in steps:
        now += pause
        if not bucket.take(wanted, now_s=now):
            taken += wanted

    assert taken <= 100 * now + 25 + 50
