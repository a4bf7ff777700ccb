"""The installation's own authority, and the certificates that it gives to processes; all carry Ed25519 keys.

Kept apart from `keys`, which every process needs: the library for certificates is 8 MB of a process's memory.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dwcp.runtime.errors import KeyUnusable
from dwcp.runtime.keys import certificate_pem, read_private, write_private, write_public
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


def load_certificate(path: Path) -> x509.Certificate:
    """Raises `KeyUnusable`."""
    pem = certificate_pem(path).encode()
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as exc:
        raise KeyUnusable(f"{path}: not a certificate that can be read; restore it from a backup") from exc


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
