"""The compression service's routes: each form of question, and a sentence for everything else."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.services.compression_api import scene
from tests.unit.services.compression_api.scene import OCTETS, SPEEDS

from dwcp.compression.codecs import CODECS
from dwcp.services.compression_api.routes import PREDICT_PATH

_FOLDER: list[Path] = []


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each request gets a service of its own; so does its folder."""
    _FOLDER[:] = [tmp_path_factory.mktemp("capi")]


def _ask(method: str, path: str, **more: Any) -> httpx.Response:  # Any: httpx's own arguments
    place = _FOLDER[0] / str(len(list(_FOLDER[0].iterdir())))
    place.mkdir()
    return scene.ask(place, method, path, **more)


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
    assert "from the table" in slow["reason"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "total_size"),
        ({"total_size": -1}, "total_size"),
        ({"total_size": 1 << 60}, "total_size"),
        ({"total_size": 1, "link": {"bandwidth_bps": 0}}, "bandwidth_bps"),
        ({"total_size": 1, "sizes": 2}, "sizes"),
        ({"total_size": 1, "sample_b64": "§"}, "base64"),
        ({"total_size": 1, "objective": "time_under_cpu"}, "max_cpu_s"),
        ({"total_size": 1, "objective": "luck"}, "objective"),
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
    assert _ask("POST", PREDICT_PATH, content=bytes(65_537), headers=OCTETS).status_code == 413
    assert _ask("POST", PREDICT_PATH, content=bytes(200_000), headers=OCTETS).status_code == 413
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


def test_other_methods_and_places() -> None:
    """The hot path answers for itself, everything else as the app does."""
    assert _ask("GET", PREDICT_PATH).status_code == 405
    assert _ask("GET", PREDICT_PATH + "s").status_code == 404
    assert _ask("GET", "/ready").status_code == 200


def test_every_route_is_described() -> None:
    """Goal: whoever checks all routes for their token finds them. Method: the description lists each."""
    paths = set(_ask("GET", "/openapi.json").json()["paths"])
    ours = {"compression/predict", "compression/batch", "feedback", "stream/compress", "stream/decompress"}
    ours |= {"models", "models/deploy", "models/canary", "models/rollback", "dictionaries/{digest}/compress"}

    assert {f"/api/v1/{path}" for path in ours} <= paths


def test_objectives_change_the_answer() -> None:
    """On a slow link time wants the slowest codec; a CPU budget forbids it; a deadline allows it again."""
    base = {"total_size": 1 << 26, "link": {"bandwidth_bps": 1e6}}
    soonest = _predict(base).json()
    frugal = _predict({**base, "objective": "time_under_cpu", "max_cpu_s": 0.5}).json()
    small = _predict({**base, "objective": "bytes_under_deadline", "deadline_ms": 1e9}).json()

    spent = frugal["predicted"]["compress_s"] + frugal["predicted"]["decompress_s"]
    assert spent <= 0.5 < soonest["predicted"]["compress_s"] + soonest["predicted"]["decompress_s"]
    assert small["predicted"]["ratio"] == max(row["ratio"] for row in small["ranked"])
    assert _predict({**base, "objective": "cost"}).json()["objective"] == "cost"


def test_a_batch_keeps_order_and_errors_stay_with_their_item() -> None:
    """Forms may be mixed; an item that is none gets its own sentence."""
    items = [
        {"total_size": 1 << 26, "link": {"bandwidth_bps": 1e6}},
        {"total_size": -1},
        {"data_type": "text", "size": 1 << 26, "latency": 5, "bandwidth": 10_000},
        {"total_size": 1, "allowed": ["snappy"]},
        7,
    ]
    answer = _ask("POST", "/api/v1/compression/batch", json={"items": items})
    answers = answer.json()["answers"]

    assert (answer.status_code, answer.json()["failed"]) == (200, 3)
    assert answers[0]["codec"] == _predict(items[0]).json()["codec"]
    assert answers[2]["codec"] == "none"
    codes = [each.get("error", {}).get("code") for each in answers]
    assert codes == [None, "malformed", None, "unknown_codec", "malformed"]


def test_a_batch_has_limits() -> None:
    """A thousand items are answered; one more, or more than 16 MiB, are not."""
    items = [{"total_size": 5}] * 1000
    assert len(_ask("POST", "/api/v1/compression/batch", json={"items": items}).json()["answers"]) == 1000
    assert _ask("POST", "/api/v1/compression/batch", json={"items": [*items, {}]}).status_code == 422
    large = b'{"items": [' + b" " * (16 << 20) + b"]}"
    assert _ask("POST", "/api/v1/compression/batch", content=large).status_code == 413


def test_explain_shows_every_codec_and_the_bottleneck() -> None:
    """Beside the answer stand all others; on a slow link sending is what takes the time."""
    answer = _ask(
        "POST", "/api/v1/compression/explain", json={"total_size": 1 << 26, "link": {"bandwidth_bps": 1e6}}
    ).json()

    assert {row["codec"] for row in answer["every_codec"]} == {codec.name for codec in CODECS}
    assert answer["slowest_stage"] == "send"
    assert answer["codec"] in {row["codec"] for row in answer["every_codec"][:3]}


def test_simulate_goes_over_bandwidths() -> None:
    """The same question at several rates: the answers are those of single questions, in order."""
    rates = [1e6, 1e8, 1e10]
    asked = {"total_size": 1 << 26, "bandwidths_bps": rates}
    answers = _ask("POST", "/api/v1/compression/simulate", json=asked).json()["answers"]
    single = [_predict({"total_size": 1 << 26, "link": {"bandwidth_bps": rate}}).json() for rate in rates]

    assert [each["codec"] for each in answers] == [each["codec"] for each in single]
    assert [each["bandwidth_bps"] for each in answers] == rates
    assert len(_ask("POST", "/api/v1/compression/simulate", json={"total_size": 9}).json()["answers"]) == 9
