"""The manifest: canonical, and no entry that could leave its directory or fool its reader."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression import manifest as m
from dwcp.compression.chunking import CHUNK_BYTES_MAX, address
from dwcp.compression.errors import ManifestInvalid
from dwcp.compression.manifest import Chunk, Entry, Kind, Limits, Manifest

GOLDEN = Path(__file__).parents[2] / "golden" / "manifest"


def _file(path: str, content: bytes = b"x", mode: int = 0o644) -> Entry:
    chunks = (Chunk(address(content), len(content)),) if content else ()
    return Entry(path, Kind.FILE, mode, len(content), chunks)


def _directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode)


def _link(path: str, target: str) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, 0, (), target)


def _sample() -> Manifest:
    return m.make(
        [
            _directory("bin"),
            _file("bin/run", b"#!/bin/sh\n", 0o755),
            _file("empty", b""),
            _link("latest", "bin/run"),
            _directory("ä"),
            _link("ä/up", "../bin/./run"),
        ]
    )


def test_encoding_is_the_golden_one() -> None:
    """Bytes and root of the first release: stored manifests stay readable and keep their names."""
    golden = (GOLDEN / "sample.manifest").read_bytes()

    assert m.encode(_sample()) == golden
    assert m.root(m.decode(golden)).hex() == (GOLDEN / "sample.root").read_text().strip()


def test_the_counts() -> None:
    """Bytes and files are those of the files; the plan names each chunk once, in order of use."""
    sample = m.make([_file("a", b"one"), _file("b", b"two!"), _file("c", b"one")])

    assert (sample.total_bytes, sample.file_count) == (10, 3)
    assert sample.chunks() == {address(b"one"): 3, address(b"two!"): 4}


REFUSED: list[tuple[str, list[Entry], str]] = [
    ("empty path", [_file("")], "empty path"),
    ("parent component", [_file("../x")], r"'\.\./x' has the component '\.\.'"),
    ("inner parent component", [_directory("a"), _file("a/../b")], "could leave"),
    ("dot", [_file("./x")], "component"),
    ("double slash", [_directory("a"), _file("a//b")], "component ''"),
    ("trailing slash", [_directory("a/")], "component ''"),
    ("absolute", [_file("/etc/passwd")], "absolute path"),
    ("nul", [_file("a\0b")], "NUL"),
    ("twice", [_file("a"), _file("a")], "'a' is listed twice"),
    ("case", [_file("README"), _file("readme")], "differ by case"),
    ("composition", [_file("e\u0301"), _file("\u00e9")], "composition"),
    ("case of a directory", [_directory("A"), _file("A/x"), _directory("a"), _file("a/x")], "differ by case"),
    ("no parent", [_file("a/b")], "not listed before it"),
    ("file as parent", [_file("a"), _file("a/b")], "which is a file"),
    ("through a symlink", [_link("a", "b"), _file("a/x"), _directory("b")], "goes through the symlink 'a'"),
    ("absolute link", [_link("a", "/etc/shadow")], "absolute path '/etc/shadow'"),
    ("escaping link", [_link("a", "../x")], "leaves the payload"),
    ("deep escaping link", [_directory("d"), _link("d/a", "../../x")], "leaves the payload"),
    ("escape by a missing name", [_link("a", "nowhere/../../x")], "leaves the payload"),
    (
        "escape through a link",
        [_directory("d"), _link("d/up", ".."), _link("out", "d/up/..")],
        "leaves the payload",
    ),
    ("circle", [_link("a", "b"), _link("b", "a")], "circles"),
    ("empty link", [_link("a", "")], "empty target"),
    ("nul in link", [_link("a", "x\0y")], "NUL"),
    ("setuid", [_file("su", mode=0o4755)], "'su' has the setuid bit"),
    ("setgid", [_directory("d", 0o2755)], "setgid"),
    ("sticky", [_directory("tmp", 0o1777)], "sticky"),
    ("type bits", [_file("a", mode=0o100644)], "impossible mode"),
    ("negative mode", [_file("a", mode=-1)], "impossible mode"),
    ("device kind", [Entry("tty", 3, 0o644)], "kind 3"),
    ("link mode", [Entry("a", Kind.SYMLINK, 0o755, 0, (), "b")], "expected 777"),
    ("file with target", [Entry("a", Kind.FILE, 0o644, 0, (), "b")], "no symlink"),
    ("directory with content", [Entry("d", Kind.DIRECTORY, 0o755, 1, (Chunk(bytes(32), 1),))], "no file"),
    (
        "size without chunks",
        [Entry("sparse", Kind.FILE, 0o644, 1 << 30)],
        "'sparse' has 1073741824 bytes but",
    ),
    ("short address", [Entry("a", Kind.FILE, 0o644, 1, (Chunk(b"short", 1),))], "address of 5 bytes"),
    ("empty chunk", [Entry("a", Kind.FILE, 0o644, 0, (Chunk(bytes(32), 0),))], "chunk of 0"),
    ("huge chunk", [Entry("a", Kind.FILE, 0o644, 1 << 20, (Chunk(bytes(32), 1 << 20),))], "chunk of 1048576"),
    (
        "two sizes",
        [
            Entry(name, Kind.FILE, 0o644, size, (Chunk(bytes(32), size),))
            for name, size in (("a", 1), ("b", 2))
        ],
        "two sizes",
    ),
    ("too deep", [_file("/".join("d" * 65))], "65 levels deep"),
    ("too long", [_file("x" * 300)], "component longer"),
    ("long path", [_file("/".join(["x" * 200] * 6))], "1205 bytes long"),
]


@pytest.mark.parametrize(
    ("entries", "sentence"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_is_refused(entries: list[Entry], sentence: str) -> None:
    """Each rule, alone, ends in a sentence that names the entry; decoding applies the same rules."""
    with pytest.raises(ManifestInvalid, match=sentence):
        m.make(entries)
    encoded = m.encode(Manifest(1, tuple(sorted(entries, key=lambda entry: entry.path.encode()))))
    with pytest.raises(ManifestInvalid, match=sentence):
        m.decode(encoded)


def test_unsorted_entries_are_refused() -> None:
    """One payload has one manifest: another order would be another root."""
    with pytest.raises(ManifestInvalid, match="out of order"):
        m.decode(m.encode(Manifest(1, (_file("b"), _file("a")))))


def test_a_surrogate_name_is_refused_with_a_sentence() -> None:
    """A name that is no UTF-8 comes from the file system as surrogates."""
    with pytest.raises(ManifestInvalid, match="UTF-8"):
        m.check_path("caf\udce9", Limits())


def test_limits_are_kept() -> None:
    """Entries, sum of sizes, size of a file, size of the manifest."""
    two = [_file("a", b"12345"), _file("b", b"12345")]
    for limits, sentence in (
        (Limits(entries=1), "2 entries"),
        (Limits(total_bytes=9), "10 bytes, 9 allowed"),
        (Limits(file_bytes=4), "'a' has 5 bytes"),
    ):
        with pytest.raises(ManifestInvalid, match=sentence):
            m.make(two, limits)
    with pytest.raises(ManifestInvalid, match="manifest has"):
        m.decode(m.encode(m.make(two)), Limits(manifest_bytes=20))


def test_one_chunk_repeated_cannot_hide_its_size() -> None:
    """A small manifest may describe a huge file by repeating a chunk: the sum counts."""
    chunk = Chunk(bytes(32), CHUNK_BYTES_MAX)
    bomb = Entry("zeros", Kind.FILE, 0o644, CHUNK_BYTES_MAX * 1000, (chunk,) * 1000)

    with pytest.raises(ManifestInvalid, match="262144000 bytes"):
        m.make([bomb], Limits(total_bytes=1 << 20))


def test_another_version_is_refused() -> None:
    """A newer manifest is not guessed at."""
    with pytest.raises(ManifestInvalid, match="version 2"):
        m.decode(m.encode(Manifest(2, ())))


@settings(deadline=None)
@given(junk=st.binary(max_size=300))
def test_junk_is_refused(junk: bytes) -> None:
    """Bytes are a manifest that encodes to themselves, or end in `ManifestInvalid`."""
    try:
        manifest = m.decode(junk)
    except ManifestInvalid:
        return
    assert m.encode(manifest) == junk


@settings(deadline=None, max_examples=300)
@given(at=st.integers(0, 1000), value=st.integers(0, 255))
def test_a_changed_byte_changes_the_root_or_is_refused(at: int, value: int) -> None:
    """No two byte strings are the same manifest."""
    encoded = bytearray(m.encode(_sample()))
    encoded[at % len(encoded)] = value
    if bytes(encoded) == m.encode(_sample()):
        return

    try:
        changed = m.decode(bytes(encoded))
    except ManifestInvalid:
        return
    assert m.root(changed) != m.root(_sample())


_NAMES = st.text(st.sampled_from("ab.\0/"), max_size=6)


@settings(deadline=None, max_examples=300)
@given(paths=st.lists(st.tuples(_NAMES, st.sampled_from(list(Kind)), _NAMES), max_size=6))
def test_whatever_is_accepted_stays_inside(paths: list[tuple[str, Kind, str]]) -> None:
    """Random paths and links: what passes, resolved by an independent walk, never leaves the root."""
    entries = {
        path: Entry(path, kind, 0o777, 0, (), target if kind == Kind.SYMLINK else "")
        for path, kind, target in paths
    }
    try:
        manifest = m.make(entries.values())
    except ManifestInvalid:
        return
    links = {tuple(e.path.split("/")): e.target for e in manifest.entries if e.kind == Kind.SYMLINK}
    for link in links:
        assert _stays_inside(link, links, 0)


def _stays_inside(path: tuple[str, ...], links: dict[tuple[str, ...], str], depth: int) -> bool:
    """A slow twin: resolves from the root, component by component, by recursion."""
    return _resolve((), path, links, depth) is not None


def _resolve(
    at: tuple[str, ...], parts: tuple[str, ...], links: dict[tuple[str, ...], str], depth: int
) -> tuple[str, ...] | None:
    for part in parts:
        if part in {"", "."}:
            continue
        if part == "..":
            if not at:
                return None
            at = at[:-1]
        elif (*at, part) in links:
            if depth > 60:
                return None
            inner = _resolve(at, tuple(links[(*at, part)].split("/")), links, depth + 1)
            if inner is None:
                return None
            at = inner
        else:
            at = (*at, part)
    return at


def test_shown_never_breaks_a_line() -> None:
    """A path in a sentence cannot forge a log line or flood it."""
    text = m.shown("a\n\x1b[31mb" + "c" * 5000)

    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 250


def test_unknown_fields_are_refused() -> None:
    """An entry with one field more than this version knows is no manifest of this version."""
    with pytest.raises(ManifestInvalid):
        m.decode(msgspec.msgpack.encode([1, [["a", 0, 0o644, 0, [], "", 1]]]))
