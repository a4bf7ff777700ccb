"""The installation's own authority, certificates, and private keys with their permission checks.

Certificates carry Ed25519 keys. A private file that others may read is refused:
whoever could read it may already have copied it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import ssl
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dwcp.consensus.crypto.signatures import SEED_SIZE, SigningKey
from dwcp.runtime.config import TlsFiles
from dwcp.runtime.errors import KeyUnusable
from dwcp.runtime.layout import ensure

VALIDITY_DAYS = 3650  # renewal comes with membership; until then an installation must not expire by surprise
_BACKDATE = timedelta(days=1)  # so that a machine whose clock is behind accepts it


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """The certificate authority of one installation."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey


def create_authority(folder: Path, *, name: str, now_ms: int) -> Authority:
    """Makes `ca.crt` and `ca.key` in `folder`; refuses to replace them."""
    key = Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
    certificate = (
        _certificate(subject, subject, key, now_ms=now_ms)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    ensure(folder)
    write_private(folder / "ca.key", _private_pem(key))
    write_public(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(certificate, key)


def load_authority(folder: Path) -> Authority:
    """Raises `KeyUnusable`."""
    certificate = load_certificate(folder / "ca.crt")
    try:
        key = serialization.load_pem_private_key(read_private(folder / "ca.key"), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise KeyUnusable(f"{folder / 'ca.key'}: not a private key in PEM; restore it from a backup") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"{folder / 'ca.key'}: not an Ed25519 key; restore it from a backup")
    return Authority(certificate, key)


def issue(authority: Authority, folder: Path, *, name: str, hosts: tuple[str, ...], now_ms: int) -> None:
    """Makes `tls.key` and `tls.crt` for the process `name`; `hosts` are addresses or names it answers on."""
    key = Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    certificate = (
        _certificate(subject, authority.certificate.subject, key, now_ms=now_ms)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_alternative_names((name, *hosts)), critical=False)
        .add_extension(_issuer_identifier(authority), critical=False)
        .sign(authority.key, None)
    )
    ensure(folder)
    write_private(folder / "tls.key", _private_pem(key))
    write_public(folder / "tls.crt", certificate.public_bytes(serialization.Encoding.PEM))


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


def load_certificate(path: Path) -> x509.Certificate:
    """Raises `KeyUnusable`."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as exc:
        raise KeyUnusable(f"{path}: cannot be read ({exc.strerror}); restore it from a backup") from exc
    except ValueError as exc:
        raise KeyUnusable(f"{path}: not a certificate in PEM; restore it from a backup") from exc


def fingerprint(path: Path) -> bytes:
    """SHA-256 of the certificate's DER form: what genesis pins."""
    der = load_certificate(path).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).digest()


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
    load_certificate(files.certificate)
    load_certificate(files.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.authority)
    except (ssl.SSLError, OSError) as exc:
        raise KeyUnusable(
            f"{files.certificate} and {files.key} do not belong together: restore both"
        ) from exc
    return context


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PrivateKey, *, now_ms: int
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(now_ms // 1000, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=VALIDITY_DAYS))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(hosts: tuple[str, ...]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _issuer_identifier(authority: Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
