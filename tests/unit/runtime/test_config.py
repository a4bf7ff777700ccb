"""Configuration is read strictly, and every refusal names the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from dwcp.runtime import config
from dwcp.runtime.config import Address, Settings
from dwcp.runtime.errors import ConfigInvalid


class Inner(Settings, frozen=True):
    wait_ms: Annotated[int, Meta(ge=1, description="how long, ms")] = 5


class Sample(Settings, frozen=True):
    listen: Address
    folder: Path
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()

    def validate(self) -> None:
        if self.inner.wait_ms > 100:
            raise ConfigInvalid("inner.wait_ms: longer than 100")


GOOD = "listen: {host: 127.0.0.1, port: 80}\nfolder: /tmp\n"


def refusal(text: str) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        config.parse(text, Sample, source="a.yaml")
    return str(caught.value)


def test_good_file_and_its_dump_are_the_same() -> None:
    """Goal: --dump-config loses nothing. Method: parse, dump, parse again."""
    first = config.parse(GOOD, Sample, source="a.yaml")

    again = config.parse(config.dump(first), Sample, source="dump")

    assert again == first
    assert first.inner.wait_ms == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "foldr: /x\n", ["a.yaml", "'foldr'", "did you mean 'folder'"]),
        (GOOD + "inner: {wait_s: 5}\n", ["inner", "'wait_s'", "did you mean 'wait_ms'"]),
        (GOOD + "many: [{}, {zzz: 1}]\n", ["many[1]", "'zzz'", "known keys are wait_ms"]),
        (GOOD + "inner: {wait_ms: 0}\n", ["a.yaml", "$.inner.wait_ms"]),
        (GOOD + "inner: {wait_ms: 101}\n", ["a.yaml", "inner.wait_ms: longer than 100"]),
        (GOOD + "inner: {wait_ms: '5'}\n", ["a.yaml", "$.inner.wait_ms"]),
        ("listen: {host: x, port: 70000}\nfolder: /tmp\n", ["$.listen.port"]),
        ("folder: /tmp\n", ["missing required field `listen`"]),
        ("- just\n- a list\n", ["a.yaml"]),
        ("a: [1\n", ["a.yaml: not YAML"]),
        ("", ["a.yaml"]),
    ],
)
def test_refusals_name_file_and_key(text: str, words: list[str]) -> None:
    """Goal: an operator finds the mistake from the sentence alone. Method: one mistake each."""
    sentence = refusal(text)

    assert [word for word in words if word not in sentence] == []


@given(st.text(max_size=200))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    """Goal: bad input is always a `ConfigInvalid`. Method: arbitrary text."""
    assert refusal(text).startswith("a.yaml: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Goal: missing, oversized and binary files are sentences. Method: one of each."""
    (tmp_path / "big").write_bytes(b"#" * (config.FILE_BYTES_MAX + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")

    for name, words in (("absent", "cannot be read"), ("big", "larger than"), ("binary", "not UTF-8")):
        with pytest.raises(ConfigInvalid, match=words):
            config.load(tmp_path / name, Sample)


def test_environment_is_read_from_what_is_given() -> None:
    """Goal: only the named variables count. Method: hand in a mapping."""
    found = config.environment({"DWCP_NET": "127.9", "DWCP_STATE": "/s", "OTHER": "x"})

    assert (found.net, found.state, found.no_color) == ("127.9", "/s", False)
