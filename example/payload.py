"""Gathers a payload of real files from this machine's /usr: text, programs, images and archives.

The choice is the same each time on the same machine; each kind of file fills its share
of the wanted size.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path("/usr")
FILES_MAX = 900
SHARES = {"text": 0.35, "program": 0.35, "archive": 0.2, "image": 0.1}
SUFFIXES = {
    "image": {".png", ".svg", ".jpg", ".jpeg", ".gif", ".ico", ".xpm"},
    "archive": {".gz", ".xz", ".bz2", ".zst", ".zip", ".whl", ".jar", ".deb"},
    "text": {
        ".txt",
        ".py",
        ".md",
        ".h",
        ".pm",
        ".pl",
        ".sh",
        ".json",
        ".xml",
        ".html",
        ".conf",
        ".rst",
        ".c",
    },
    "program": {".so", ".a", ".o", ".bin"},
}


class NotReplaceable(Exception):
    """The folder of an earlier run belongs to another user: remove it as that user."""


def kind_of(path: Path) -> str | None:
    """By name alone; a file without a suffix in a `bin` folder is a program."""
    if path.parent.name in {"bin", "sbin"} and not path.suffix:
        return "program"
    suffixes = set(path.suffixes)
    return next((kind for kind, known in SUFFIXES.items() if suffixes & known), None)


def candidates(source: Path) -> Iterator[tuple[str, Path, int]]:
    """(kind, file, size) of plain files. Folders come in the order of their names' digests: mixed, yet fixed."""
    waiting = [source]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: _mix(entry.path))
        except OSError:
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif entry.is_file(follow_symlinks=False) and (kind := kind_of(path)):
                yield kind, path, entry.stat(follow_symlinks=False).st_size


def choose(source: Path, mib: float) -> list[Path]:
    """Files of about `mib` MiB in all, several hundred; what one kind cannot fill is filled by any."""
    total = int(mib * 1_048_576)
    room = {kind: int(total * share) for kind, share in SHARES.items()}
    piece = {"text": total // 300, "image": total // 300, "program": total // 30, "archive": total // 60}
    chosen: list[Path] = []
    spare: list[tuple[Path, int]] = []
    for kind, path, size in candidates(source):
        if 0 < size <= min(room[kind], piece[kind]) and len(chosen) < FILES_MAX:
            room[kind] -= size
            chosen.append(path)
        elif 0 < size <= total // 10 and len(spare) < 5000:
            spare.append((path, size))
        if sum(room.values()) < total // 50:
            return chosen
    missing = sum(room.values())
    for path, size in sorted(spare, key=lambda one: -one[1]):
        if size <= missing:
            missing -= size
            chosen.append(path)
    return chosen


def _differs_by_case_only(relative: Path, taken: dict[str, Path]) -> bool:
    """A payload must unpack anywhere, so names that differ by case only are refused; here they are left out."""
    parts = [relative, *relative.parents]
    if any(taken.setdefault(str(part).casefold(), part) != part for part in parts):
        return True
    return not str(relative).isascii()


def _mix(path: str) -> bytes:
    return hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest()


def build(target: Path, *, mib: float = 50, source: Path = SOURCE) -> tuple[int, int]:
    """Copies the files to `target`, replacing it; returns (files, bytes)."""
    chosen = choose(source, mib)
    shutil.rmtree(target, ignore_errors=True)
    if target.exists():
        raise NotReplaceable(
            f"{target} belongs to another user and cannot be made anew: remove it as that user"
        )
    target.mkdir(parents=True)
    copied = size_bytes = 0
    taken: dict[str, Path] = {}
    for path in chosen:
        relative = path.relative_to(source)
        if _differs_by_case_only(relative, taken):
            continue
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, copy)
        except PermissionError:
            continue  # an ordinary user may not read everything
        copy.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        copied += 1
        size_bytes += copy.stat().st_size
    return copied, size_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=50)
    parser.add_argument("--target", type=Path, default=Path(__file__).parent / "payload")
    arguments = parser.parse_args()
    copied, size_bytes = build(arguments.target, mib=arguments.mib)
    print(f"{copied} files, {size_bytes / 1_048_576:.1f} MiB in {arguments.target}")


if __name__ == "__main__":
    main()
