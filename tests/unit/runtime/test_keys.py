"""Keys that others may read, that are damaged or foreign are refused with a sentence."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256

from dwcp.consensus.crypto.signatures import verify
from dwcp.runtime import keys
from dwcp.runtime.authority import create_authority, issue, load_certificate
from dwcp.runtime.config import TlsFiles
from dwcp.runtime.errors import KeyUnusable
from dwcp.runtime.layout import Layout

NOW_MS = 1_790_000_000_000


def installation(folder: Path, name: str = "one") -> TlsFiles:
    layout = Layout(folder)
    authority = create_authority(layout.authority, name="test", now_ms=NOW_MS)
    issue(authority, layout.keys(name), name=name, hosts=("127.0.0.1", "hub"), now_ms=NOW_MS)
    return layout.tls(name)


def test_sign_key_survives_its_file(tmp_path: Path) -> None:
    """Goal: what is loaded is what was made. Method: sign with one, verify with the other's public key."""
    made = keys.create_sign_key(tmp_path / "sign.key")
    loaded = keys.load_sign_key(tmp_path / "sign.key")

    assert verify(made.public, b"text", loaded.sign(b"text"))
    assert (tmp_path / "sign.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.chmod(0o644), "mode 0644.*chmod 600"),
        (lambda path: path.chmod(0o620), "mode 0620"),
        (lambda path: path.write_text("zz"), "not a hexadecimal seed"),
        (lambda path: path.write_text("00ff"), "has 32 bytes, this one 2"),
        (lambda path: path.write_bytes(b"\xff" * 64), "not a hexadecimal seed"),
    ],
)
def test_unusable_sign_keys(tmp_path: Path, spoil: object, words: str) -> None:
    """Goal: every way a key can be unusable is told apart. Method: spoil a good one."""
    path = tmp_path / "sign.key"
    keys.create_sign_key(path)
    assert callable(spoil)
    spoil(path)

    with pytest.raises(KeyUnusable, match=words) as caught:
        keys.load_sign_key(path)
    assert str(path) in str(caught.value)


def test_keys_are_never_replaced(tmp_path: Path) -> None:
    """Goal: a second init cannot destroy an identity. Method: make the same key twice."""
    keys.create_sign_key(tmp_path / "sign.key")

    with pytest.raises(KeyUnusable, match="never replaced"):
        keys.create_sign_key(tmp_path / "sign.key")


def test_tls_contexts_load_and_demand_certificates(tmp_path: Path) -> None:
    """Goal: TLS 1.3 with client certificates, nothing less. Method: look at the contexts."""
    files = installation(tmp_path)

    server, client = keys.server_context(files), keys.client_context(files)

    assert server.verify_mode is client.verify_mode is ssl.CERT_REQUIRED
    assert server.minimum_version is client.minimum_version is ssl.TLSVersion.TLSv1_3
    assert client.check_hostname
    assert len(keys.fingerprint(files.certificate)) == 32


def test_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """Goal: a mixed-up pair is found at start. Method: exchange the keys of two installations."""
    one, other = installation(tmp_path / "a"), installation(tmp_path / "b")

    with pytest.raises(KeyUnusable, match="do not belong together"):
        keys.server_context(TlsFiles(certificate=one.certificate, key=other.key, authority=one.authority))


def _damaged(pem: bytes) -> list[bytes]:
    """Cut short, a line lost, another kind of file, text that is no base64, nothing."""
    lines = pem.splitlines(keepends=True)
    begin, end = lines[0], lines[-1]
    return [
        pem[:80],
        b"".join(lines[:2] + lines[3:]),
        b"\xff" * 90,
        begin + b"AA\xff*\n" + end,
        begin + end,
        b"",
    ]


@pytest.mark.parametrize("which", range(6))
def test_damaged_certificate_is_a_sentence(tmp_path: Path, which: int) -> None:
    """Goal: no traceback for a broken PEM, and none of it is pinned. Method: damage a certificate in all ways."""
    files = installation(tmp_path)
    files.certificate.write_bytes(_damaged(files.certificate.read_bytes())[which])

    for use in (lambda: keys.client_context(files), lambda: keys.fingerprint(files.certificate)):
        with pytest.raises(KeyUnusable, match="not a certificate in PEM"):
            use()
    with pytest.raises(KeyUnusable, match="not a certificate in PEM"):
        load_certificate(files.certificate)


def test_fingerprint_is_that_of_the_certificate_itself(tmp_path: Path) -> None:
    """Goal: what genesis pins does not depend on who reads the file. Method: another library's digest, and text
    before the certificate, as some tools write it."""
    files = installation(tmp_path)
    expected = load_certificate(files.certificate).fingerprint(SHA256())
    found = keys.fingerprint(files.certificate)
    files.certificate.write_bytes(b"subject=CN = one\n" + files.certificate.read_bytes())

    assert found == keys.fingerprint(files.certificate) == expected
