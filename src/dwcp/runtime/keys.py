"""A process's own keys and certificates: loaded with permission checks, pinned, made into TLS contexts.

A private file that others may read is refused: whoever could read it may already have copied it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import ssl
import stat
from pathlib import Path

from dwcp.consensus.crypto.signatures import SEED_SIZE, SigningKey
from dwcp.runtime.config import TlsFiles
from dwcp.runtime.errors import KeyUnusable
from dwcp.runtime.layout import ensure

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


def create_sign_key(path: Path) -> SigningKey:
    """Makes an Ed25519 seed file (hex); refuses to replace one."""
    seed = secrets.token_bytes(SEED_SIZE)
    ensure(path.parent)
    write_private(path, seed.hex().encode() + b"\n")
    return SigningKey.from_seed(seed)


def load_sign_key(path: Path) -> SigningKey:
    """Raises `KeyUnusable` when missing, damaged or readable by others."""
    text = read_private(path).strip()
    try:
        seed = bytes.fromhex(text.decode("ascii"))
    except ValueError as exc:
        raise KeyUnusable(f"{path}: not a hexadecimal seed; restore it from a backup") from exc
    if len(seed) != SEED_SIZE:
        raise KeyUnusable(
            f"{path}: a seed has {SEED_SIZE} bytes, this one {len(seed)}; restore it from a backup"
        )
    return SigningKey.from_seed(seed)


def fingerprint(path: Path) -> bytes:
    """SHA-256 of the certificate's DER form: what genesis pins."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem(path))).digest()


def certificate_pem(path: Path) -> str:
    """The first certificate of a PEM file, checked to be one. Raises `KeyUnusable`."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise KeyUnusable(f"{path}: cannot be read ({exc.strerror}); restore it from a backup") from exc
    found = _CERTIFICATE.search(content)
    try:
        pem = found[0].decode("ascii") if found else ""
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ssl.PEM_cert_to_DER_cert(pem))
    except (ValueError, ssl.SSLError) as exc:  # no base64, or what it holds is no certificate
        raise KeyUnusable(f"{path}: not a certificate in PEM; restore it from a backup") from exc
    return pem


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 only; a client without a certificate of this installation is refused in the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _fill(context, files)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 only; trusts the installation's authority and nobody else, and checks the address."""
    return _fill(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)


def read_private(path: Path) -> bytes:
    """The content of a private file. Raises `KeyUnusable` if missing, foreign or readable by others."""
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            return file.read()
    except OSError as exc:
        why = "is missing" if isinstance(exc, FileNotFoundError) else f"cannot be read ({exc.strerror})"
        raise KeyUnusable(
            f"{path}: {why}; restore it from a backup, or make a new installation with `dwcp init`"
        ) from exc


def write_private(path: Path, content: bytes) -> None:
    """Makes a new file of mode 0600, durable. Raises `KeyUnusable` where one exists."""
    _write_new(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """Makes a new file of mode 0644, durable."""
    _write_new(path, content, 0o644)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as exc:
        raise KeyUnusable(f"{path}: exists already and is never replaced; move it away first") from exc
    except OSError as exc:
        raise KeyUnusable(f"{path}: cannot be written: {exc.strerror}") from exc
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _check_private(path: Path, status: os.stat_result) -> None:
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(status.st_mode)
        raise KeyUnusable(
            f"{path}: mode {mode:04o} lets others use this key; run `chmod 600 {path}` and consider it leaked"
        )
    if status.st_uid not in {os.geteuid(), 0}:
        raise KeyUnusable(
            f"{path}: belongs to another user (uid {status.st_uid}); run as that user or `chown` it"
        )


def _fill(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    read_private(files.key)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.authority)
    except (ssl.SSLError, OSError) as exc:
        certificate_pem(files.certificate)  # which raises where one of the two is what is wrong
        certificate_pem(files.authority)
        raise KeyUnusable(
            f"{files.certificate} and {files.key} do not belong together: restore both"
        ) from exc
    return context
