"""Questions for a canary in a quiet installation: pieces of this machine's files, as samples of streams.

Everything is drawn from a seed, so that a canary can be repeated. Only files that everybody may read are
read, and nothing of them is kept.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dwcp.api.requests import Request
from dwcp.runtime.errors import RuntimeFault

PREDICT_PATH = "/api/v1/compression/predict"
FOLDERS = (Path("/usr/share"), Path("/usr/lib"), Path("/usr/bin"))
_SAMPLE_BYTES = 64 << 10
_FILES_SEEN_MAX = 20_000
_FILES_MAX = 400
_SIZE_MIN = 4096
_RATES_BPS = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9)


class NothingToReplay(RuntimeFault):
    """There is no file for a canary's questions: name a folder with `--replay`, or say `--no-replay`."""


@dataclass(frozen=True, slots=True)
class Replay:
    """`files` in a fixed order; each question takes the next."""

    files: tuple[Path, ...]
    seed: int = 1

    def questions(self) -> Iterator[Request]:
        """Without end; files that have gone are passed over. Raises `NothingToReplay` where none is left."""
        source = random.Random(self.seed)
        number = 0
        while True:
            sent = number
            for path in self.files:
                sample = _piece(path, source)
                if sample:
                    yield _question(sample, source, stream=f"replay-{self.seed}-{number}")
                    number += 1
            if number == sent:
                raise NothingToReplay(
                    "no file is left to be read for the replay: name a folder with --replay"
                )


def gather(folders: tuple[Path, ...] = FOLDERS, *, seed: int = 1) -> Replay:
    """A few hundred files below `folders` that everybody may read. Raises `NothingToReplay` where there are none."""
    found: list[Path] = []
    for folder in folders:
        found += _below(folder, _FILES_SEEN_MAX // len(folders))
    if not found:
        places = ", ".join(map(str, folders))
        raise NothingToReplay(f"{places}: no file of {_SIZE_MIN} bytes or more that everybody may read")
    random.Random(seed).shuffle(found)
    return Replay(tuple(found[:_FILES_MAX]), seed)


def _below(folder: Path, most: int) -> list[Path]:
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if _readable(path):
                found.append(path)
            if len(found) >= most:
                return found
    return found


def _readable(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    everybody = bool(status.st_mode & stat.S_IROTH)
    return stat.S_ISREG(status.st_mode) and everybody and status.st_size >= _SIZE_MIN


def _piece(path: Path, source: random.Random) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(source.randrange(max(1, size - _SAMPLE_BYTES)))
            return file.read(_SAMPLE_BYTES)
    except OSError:
        return b""


def _question(sample: bytes, source: random.Random, *, stream: str) -> Request:
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Total-Size": str(max(len(sample), 1 << source.randrange(16, 25))),
        "X-Bandwidth-Bps": str(int(source.choice(_RATES_BPS))),
        "X-Stream-Id": stream,
    }
    return Request("POST", PREDICT_PATH, sample, headers)
