"""`dwcp compress` and `dwcp decompress` as a user types them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dwcp.cli.environment import Environment
from dwcp.cli.main import main
from dwcp.cli.progress import amount, describe, duration
from dwcp.compression.pacing import Outlook
from dwcp.runtime.errors import Exit

DWCP = [sys.executable, "-m", "dwcp.cli.main"]


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = main(arguments, Environment(out=out, err=err))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "log.txt"
    path.write_bytes(b"".join(b"%d the same words again\n" % n for n in range(200_000)))
    return path


def test_a_file_there_and_back(text: Path, tmp_path: Path) -> None:
    """Goal: the two commands undo each other and say what they did. Method: run both, compare."""
    code, out, _ = run("compress", str(text), "--codec", "zstd-3", "--json")
    answer = json.loads(out)

    assert code == Exit.OK
    assert answer["raw_bytes"] == text.stat().st_size
    assert answer["packed_bytes"] == (tmp_path / "log.txt.dwcz").stat().st_size < text.stat().st_size / 3
    assert run("decompress", str(text) + ".dwcz")[0] == Exit.REFUSED  # it would replace the original
    assert run("decompress", str(text) + ".dwcz", "-o", str(tmp_path / "copy"))[0] == Exit.OK
    assert (tmp_path / "copy").read_bytes() == text.read_bytes()


def test_a_directory_there_and_back(text: Path, tmp_path: Path) -> None:
    """Goal: directories keep their metadata. Method: a mode and a link."""
    folder = tmp_path / "d"
    folder.mkdir()
    text.rename(folder / "log.txt")
    (folder / "log.txt").chmod(0o640)
    (folder / "l").symlink_to("log.txt")

    assert run("compress", str(folder), "--codec", "lz4")[0] == Exit.OK
    assert run("decompress", str(folder) + ".dwcz", "-o", str(tmp_path / "e"))[0] == Exit.OK
    assert (tmp_path / "e/log.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "e/l").readlink() == Path("log.txt")


def test_cut_input_is_reported_and_resumed(text: Path, tmp_path: Path) -> None:
    """Goal: neither direction starts again. Method: cut the container, unpack, complete both."""
    run("compress", str(text), "--codec", "zstd-1")
    packed = Path(str(text) + ".dwcz")
    whole = packed.read_bytes()
    packed.rename(str(packed) + ".part")
    os.truncate(str(packed) + ".part", len(whole) // 2)

    code, _, err = run("decompress", str(packed) + ".part", "-o", str(tmp_path / "copy"))
    assert (code, "cut after block" in err) == (Exit.FAILED, True)
    assert not (tmp_path / "copy").exists()
    assert run("compress", str(text), "--codec", "zstd-1", "--resume")[0] == Exit.OK
    assert packed.read_bytes() == whole
    assert run("decompress", str(packed), "-o", str(tmp_path / "copy"), "--resume")[0] == Exit.OK
    assert (tmp_path / "copy").read_bytes() == text.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("compress", "/nonexistent", "--codec", "lz4"), Exit.REFUSED),
        (("compress", "{text}", "--codec", "zip"), Exit.USAGE),
        (("send", "{text}", "rome:x", "--codec", "zip"), Exit.USAGE),
        (("compress", "{text}", "-o", "-", "--resume"), Exit.USAGE),
        (("compress", "{text}", "--link", "-3"), Exit.USAGE),
        (("decompress", "{text}"), Exit.USAGE),
        (("decompress", "/nonexistent"), Exit.REFUSED),
        (("decompress", "{text}", "-o", "{text}.new"), Exit.FAILED),
    ],
    ids=[
        "no file",
        "no such codec",
        "no such codec to send",
        "resumed pipe",
        "no such link",
        "no name",
        "nothing",
        "no container",
    ],
)
def test_mistakes_end_in_one_sentence(text: Path, arguments: tuple[str, ...], code: Exit) -> None:
    """Goal: exit code and a sentence, no traceback. Method: one mistake each."""
    found, _, err = run(*(argument.format(text=text) for argument in arguments))

    assert found == code
    assert err.strip()
    assert "fault in dwcp" not in err


@pytest.mark.process
def test_pipes_carry_the_stream(text: Path) -> None:
    """Goal: `compress | decompress` is the identity; a damaged stream is not delivered as if whole."""
    packed = subprocess.run(
        [*DWCP, "compress", "--codec", "zstd-1"], input=text.read_bytes(), capture_output=True
    )
    assert packed.returncode == 0
    again = subprocess.run([*DWCP, "decompress"], input=packed.stdout, capture_output=True)
    cut = subprocess.run([*DWCP, "decompress"], input=packed.stdout[:-9], capture_output=True)

    assert again.stdout == text.read_bytes()
    assert cut.returncode == Exit.FAILED
    assert b"cut" in cut.stderr


def test_progress_speaks_of_the_last_seconds() -> None:
    """Goal: an honest time left. Method: a link that becomes ten times slower; the estimate follows."""
    outlook = Outlook(now_s=0.0)
    for second in range(1, 21):
        fast = describe(second * 1000, 100_000, outlook=outlook, now_s=float(second))
    assert fast == "19.5 KiB, 1000 B/s, 80 s left"
    for second in range(21, 41):
        slow = describe(20_000 + (second - 20) * 100, 100_000, outlook=outlook, now_s=float(second))
    assert slow == "21.5 KiB, 100 B/s, 13 min 0 s left"
    assert describe(22_000, 100_000, outlook=outlook, now_s=200.0) == "21.5 KiB"
    assert (amount(5), amount(3 << 30), duration(8000)) == ("5 B", "3.0 GiB", "2 h 13 min")
