"""Bearer tokens of people and scripts: 256 random bits, kept as hashes, with a role each."""

from __future__ import annotations

import fcntl
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec
from blake3 import blake3

from dwcp.runtime.durable import replace_private
from dwcp.runtime.errors import KeyUnusable
from dwcp.runtime.layout import ensure


class Role(StrEnum):
    """What a holder may do; each includes the one before."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One known token; the token itself is nowhere stored."""

    name: str
    role: Role
    blake3: str  # hex
    created_ms: int = 0


class TokenBook:
    """The tokens of an installation, read again when the file changes, so that a revocation acts at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()

    def find(self, presented: str) -> Token | None:
        """The entry that this token belongs to, or None. An unreadable book knows nobody."""
        digest = _digest(presented)
        found = None
        for token in self.current():
            if hmac.compare_digest(token.blake3, digest):
                found = token
        return found

    def current(self) -> tuple[Token, ...]:
        """The known tokens, the same object as long as the file is the same; none where it cannot be read."""
        try:
            return self.tokens()
        except KeyUnusable:  # said to whoever manages tokens; a stranger with a guess learns nothing
            return ()

    def tokens(self) -> tuple[Token, ...]:
        try:
            status = self._path.stat()
        except OSError:
            self._stamp, self._tokens = None, ()
            return ()
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._stamp:
            self._tokens = _read(self._path)
            self._stamp = stamp
        return self._tokens

    def create(self, name: str, role: Role, *, now_ms: int) -> str:
        """A new token, returned once. Raises `KeyUnusable` where the name is taken or is none."""
        if not _NAME.fullmatch(name):
            raise KeyUnusable(
                f"{name[:40]!r} is no name for a token: 1 to 63 letters, digits, '.', '_', '@', '-'"
            )
        with self._alone():
            tokens = self.tokens()
            if any(token.name == name for token in tokens):
                raise KeyUnusable(f"a token named {name!r} exists: revoke it first, or choose another name")
            secret = secrets.token_urlsafe(32)
            _write(self._path, (*tokens, Token(name, role, _digest(secret), now_ms)))
        return secret

    def revoke(self, name: str) -> None:
        """Raises `KeyUnusable` where nobody has that name."""
        with self._alone():
            tokens = self.tokens()
            left = tuple(token for token in tokens if token.name != name)
            if len(left) == len(tokens):
                raise KeyUnusable(f"no token is named {name!r}: see `dwcp token list`")
            _write(self._path, left)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time: two at once could bring a revoked token back."""
        ensure(self._path.parent)
        lock = os.open(self._path.with_name(".lock"), os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(lock, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._stamp = None  # two changes of one size within the clock's grain would look alike
            yield


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")


def _digest(token: str) -> str:
    return blake3(token.encode()).hexdigest()


def _read(path: Path) -> tuple[Token, ...]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Token, ...])
    except (OSError, msgspec.DecodeError) as exc:
        raise KeyUnusable(
            f"{path}: cannot be read as a token file: {exc}; restore it, or run `dwcp init`"
        ) from exc


def _write(path: Path, tokens: tuple[Token, ...]) -> None:
    """Replaces the file atomically, so that a reader sees the old book or the new one."""
    ensure(path.parent)
    replace_private(path, msgspec.json.format(msgspec.json.encode(tokens), indent=2) + b"\n")
