"""The compression service's routes: each form of question, and a sentence for everything else."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression.calibration import Calibration, Speed
from dwcp.compression.codecs import CODECS
from dwcp.compression.table import Table
from dwcp.runtime.http import Health, application
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.compression_api.routes import PREDICT_PATH, Selector, add_routes

SPEEDS = {codec.name: Speed(2e9 / (1 + codec.wire) ** 2.5, 4e9 / (1 + codec.wire)) for codec in CODECS}


def _ask(method: str, path: str, **more: Any) -> httpx.Response:  # Any: httpx's own arguments
    telemetry = Telemetry("compression-api", version="0")
    app = application(Health("compression-api", version="0"), telemetry)
    add_routes(app, Selector(Table(Calibration("host", 0.1, SPEEDS)), telemetry=telemetry))

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://c") as client:
            return await client.request(method, path, **more)

    return asyncio.run(main())


def _predict(body: object) -> httpx.Response:
    return _ask("POST", PREDICT_PATH, json=body)


def test_a_sample_with_headers_is_answered() -> None:
    """The form that agents use: raw bytes, total size and rate beside them; the rate decides."""
    answers = [
        _ask(
            "POST",
            PREDICT_PATH,
            content=b"sample " * 1000,
            headers={
                "Content-Type": "application/octet-stream",
                "X-Total-Size": str(1 << 26),
                "X-Bandwidth-Bps": rate,
            },
        ).json()
        for rate in ("1000000", "10000000000")
    ]

    assert answers[0]["codec"] in {"xz-6", "bz2-9", "brotli-5"}
    assert answers[1]["codec"] == "none"
    assert answers[0]["tier"] == "table"
    assert answers[0]["predicted"]["codec"] == answers[0]["codec"]
    assert answers[0]["bin"] == {"rate_bps": 1_000_000, "size_bytes": 1 << 26}


def test_json_is_answered_and_allowed_codecs_are_kept() -> None:
    """The documented form, with a sample that is not looked at and says so."""
    sample = base64.b64encode(bytes(1000)).decode()
    answer = _predict(
        {"total_size": 1 << 20, "link": {"bandwidth_bps": 1e6}, "sample_b64": sample, "allowed": ["lz4"]}
    ).json()

    assert answer["codec"] == "lz4"
    assert {row["codec"] for row in answer["ranked"]} <= {"lz4", "none"}
    assert "does not look" in answer["reason"]


def test_the_old_form_is_answered_from_the_table_and_says_so() -> None:
    """`bandwidth` is in Mbit/s there: 1 must not be taken for 1 bit/s, nor 10000 for 10 kbit/s."""
    slow = _predict({"data_type": "text", "size": 1 << 26, "latency": 5, "bandwidth": 1}).json()
    fast = _predict({"data_type": "text", "size": 1 << 26, "latency": 5, "bandwidth": 10_000}).json()

    assert slow["bin"]["rate_bps"] == 1_000_000
    assert fast["codec"] == "none"
    assert "data_type" in slow["reason"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "total_size"),
        ({"total_size": -1}, "total_size"),
        ({"total_size": 1 << 60}, "total_size"),
        ({"total_size": 1, "link": {"bandwidth_bps": 0}}, "bandwidth_bps"),
        ({"total_size": 1, "sizes": 2}, "sizes"),
        ({"total_size": 1, "sample_b64": "§"}, "base64"),
        ({"total_size": 1, "allowed": ["snappy"]}, "there is no codec 'snappy'"),
        ({"data_type": "text", "size": 1, "latency": 1}, "bandwidth"),
        ({"data_type": "text", "size": 1, "latency": 1, "bandwidth": 0}, "bandwidth"),
        ([1], "object"),
        ("text", "object"),
    ],
)
def test_what_is_no_question_gets_a_sentence(body: object, sentence: str) -> None:
    """The sentence names the field."""
    answer = _predict(body)

    assert answer.status_code == 422
    assert sentence in answer.json()["error"]["detail"]


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf", "1e99", "0"])
def test_headers_that_are_no_rates(text: str) -> None:
    """Not a number, or no link's rate."""
    headers = {"Content-Type": "application/octet-stream", "X-Bandwidth-Bps": text}

    answer = _ask("POST", PREDICT_PATH, content=b"x", headers=headers)

    assert answer.status_code == 422
    assert "X-Bandwidth-Bps" in answer.json()["error"]["detail"]


def test_too_much_and_the_wrong_kind() -> None:
    """A sample beyond its limit, a body beyond any, and a form."""
    octets = {"Content-Type": "application/octet-stream"}
    assert _ask("POST", PREDICT_PATH, content=bytes(65_537), headers=octets).status_code == 413
    assert _ask("POST", PREDICT_PATH, content=bytes(200_000), headers=octets).status_code == 413
    assert _ask("POST", PREDICT_PATH, content=b"a=b", headers={"Content-Type": "text/csv"}).status_code == 415
    large = base64.b64encode(bytes(70_000)).decode()
    assert _predict({"total_size": 1, "sample_b64": large}).status_code == 413


@settings(deadline=None, max_examples=50)
@given(junk=st.binary(max_size=200))
def test_junk_never_fails_the_service(junk: bytes) -> None:
    """Any bytes as JSON are an answer or a 422."""
    answer = _ask("POST", PREDICT_PATH, content=junk, headers={"Content-Type": "application/json"})

    assert answer.status_code in {200, 422}


def test_the_codecs_and_the_model_are_shown_as_they_are() -> None:
    """All ten with this host's speeds; no model, no accuracy made up."""
    algorithms = _ask("GET", "/api/v1/compression/algorithms").json()["algorithms"]
    model = _ask("GET", "/api/v1/model/info").json()

    assert [each["name"] for each in algorithms] == [codec.name for codec in CODECS]
    assert algorithms[4]["compress_bytes_per_s"] == round(SPEEDS["zstd-1"].pack_bps)
    assert (model["model"], model["tier"], model["accuracy"]) == ("none", "table", None)
    assert model["calibration"]["host"] == "host"
