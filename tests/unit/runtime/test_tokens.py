"""Tokens are known by their hash, and a revocation acts at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dwcp.runtime.errors import KeyUnusable
from dwcp.runtime.tokens import Role, TokenBook


def test_token_is_found_and_not_stored(tmp_path: Path) -> None:
    """Goal: the file does not give tokens away. Method: search it for the token."""
    book = TokenBook(tmp_path / "tokens.json")
    token = book.create("ci", Role.OPERATOR, now_ms=1)

    found = book.find(token)

    assert found is not None
    assert (found.name, found.role) == ("ci", Role.OPERATOR)
    assert token not in (tmp_path / "tokens.json").read_text()
    assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("presented", ["", "x", "é\0", "a" * 10_000])
def test_strangers_are_not_found(tmp_path: Path, presented: str) -> None:
    """Goal: nothing else passes. Method: present other strings."""
    book = TokenBook(tmp_path / "tokens.json")
    book.create("ci", Role.VIEWER, now_ms=1)

    assert book.find(presented) is None


def test_a_damaged_book_knows_nobody(tmp_path: Path) -> None:
    """Goal: a service with a damaged book refuses, it does not fail. Method: junk over a good book."""
    book = TokenBook(tmp_path / "tokens.json")
    token = book.create("ci", Role.ADMIN, now_ms=1)
    assert book.find(token) is not None

    (tmp_path / "tokens.json").write_bytes(b"[junk")

    assert book.find(token) is None
    with pytest.raises(KeyUnusable, match=r"tokens\.json"):
        book.tokens()


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 64, "../x", "-x"])
def test_strange_names_are_refused(tmp_path: Path, name: str) -> None:
    """Goal: a name can be shown in one line of a list. Method: empty, long and broken names."""
    book = TokenBook(tmp_path / "tokens.json")

    with pytest.raises(KeyUnusable, match="no name"):
        book.create(name, Role.VIEWER, now_ms=1)


def test_revocation_reaches_other_readers(tmp_path: Path) -> None:
    """Goal: a running service refuses a revoked token. Method: two books on one file."""
    service, operator = TokenBook(tmp_path / "tokens.json"), TokenBook(tmp_path / "tokens.json")
    token = operator.create("ci", Role.ADMIN, now_ms=1)
    assert service.find(token) is not None

    operator.revoke("ci")

    assert service.find(token) is None


def test_names_are_unique_and_known(tmp_path: Path) -> None:
    """Goal: no two tokens share a name, unknown names are told. Method: both mistakes."""
    book = TokenBook(tmp_path / "tokens.json")
    book.create("ci", Role.VIEWER, now_ms=1)

    with pytest.raises(KeyUnusable, match="exists: revoke it first"):
        book.create("ci", Role.VIEWER, now_ms=2)
    with pytest.raises(KeyUnusable, match="no token is named 'cd'"):
        book.revoke("cd")


def test_roles_include_the_lesser() -> None:
    """Goal: an admin may do what an operator may. Method: compare all pairs."""
    table = {(a, b): a.includes(b) for a in Role for b in Role}

    assert [pair for pair, holds in table.items() if holds] == [
        (Role.VIEWER, Role.VIEWER),
        (Role.OPERATOR, Role.VIEWER),
        (Role.OPERATOR, Role.OPERATOR),
        (Role.ADMIN, Role.VIEWER),
        (Role.ADMIN, Role.OPERATOR),
        (Role.ADMIN, Role.ADMIN),
    ]


def test_changes_at_once_do_not_undo_each_other(tmp_path: Path) -> None:
    """Goal: a revoked token stays revoked while others are made. Method: makers and a revoker side by side."""
    path = tmp_path / "tokens.json"
    secret = TokenBook(path).create("gone", Role.ADMIN, now_ms=1)

    def change(number: int) -> None:
        book = TokenBook(path)
        if number == 4:
            book.revoke("gone")
        else:
            book.create(f"t{number}", Role.VIEWER, now_ms=1)

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(change, range(9)))
    assert TokenBook(path).find(secret) is None
    assert len(TokenBook(path).tokens()) == 8
