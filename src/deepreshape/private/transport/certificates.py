"""Who may take part: an own certificate authority, and certificates that carry the role of their holder.

A role is read from the peer's verified certificate and from nowhere else. It is written twice: as a URI in the subject
alternative name (``deepreshape:client``), which we check, and as the extended key usage, which TLS itself checks. Keys
are Ed25519 (RFC 8032; in X.509 by RFC 8410), assumed unforgeable. A network attacker is active; a holder of a valid
certificate is semi-honest.

Private keys lie unencrypted in files only their owner can read, so whoever reads the folder of the authority can make
certificates: keep ``authority.key`` off the machines that serve and query. Certificates expire after a year. To shut
one out before, write its fingerprint into ``revoked`` beside ``authority.pem``, one a line: the file is read again for
every connection.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deepreshape.private.errors import CertificateError
from deepreshape.private.files import printable, read_at_most

Role = Literal["client", "server"]
ROLES: tuple[Role, ...] = get_args(Role)

URI = "deepreshape:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
NOTICE = datetime.timedelta(days=14)
"""How long before its end a certificate is warned of."""
REVOKED_BYTES = 1 << 20
UNREADABLE = (
    ValueError,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for a certificate that is not of the form that :func:`issue` makes."""
SKEW = datetime.timedelta(minutes=5)
USAGE = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


@dataclass(frozen=True)
class Identity:
    """What a certificate says about its holder."""

    role: Role
    name: str
    fingerprint: str
    """SHA-256 of the certificate in DER, 64 hexadecimal digits."""


@dataclass(frozen=True)
class Credentials:
    """Where one party's own certificate and key lie, and the authority that it trusts to name the other party."""

    certificate: Path
    key: Path
    authority: Path

    def revoked(self) -> frozenset[str]:
        """Fingerprints in the file ``revoked`` beside the authority; none if there is no such file.

        Raises:
            CertificateError: if it cannot be read or a line is neither a fingerprint nor a comment; then nobody is to
                be let in, as one who is meant to be shut out might be.
        """
        path = self.authority.with_name("revoked")
        try:
            lines = read_at_most(path, REVOKED_BYTES).decode("ascii", "replace").splitlines()
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError) as error:
            raise CertificateError(f"{path}: cannot be read: {error}") from None
        entries = {line.partition("#")[0].strip().lower() for line in lines} - {""}
        for entry in entries:
            if not FINGERPRINT.fullmatch(entry):
                raise CertificateError(
                    f"{path}: {printable(entry[:80])!r} is not a fingerprint of 64 hexadecimal digits"
                )
        return frozenset(entries)

    def warnings(self, now: datetime.datetime | None = None) -> list[str]:
        """A line for each own certificate, the authority's included, that expires within :data:`NOTICE`."""
        now = now or datetime.datetime.now(datetime.UTC)
        lines: list[str] = []
        for path, until in self._ends():
            if until <= now:
                lines.append(_expired(path, until))
            elif until - now <= NOTICE:
                lines.append(f"{path}: this certificate expires on {until:%Y-%m-%d}; make a new one with keygen")
        return lines

    def require_unexpired(self) -> None:
        """See that no certificate of our own has expired: the other side would hang up, and not say why.

        Raises:
            CertificateError: if one has, or the authority's.
        """
        for path, until in self._ends():
            if until <= datetime.datetime.now(datetime.UTC):
                raise CertificateError(_expired(path, until))

    def _ends(self) -> Iterator[tuple[Path, datetime.datetime]]:
        """When the own certificate ends, and the authority's; one that cannot be read is told of where it is used."""
        for path in (self.certificate, self.authority):
            with suppress(OSError, ValueError):
                yield path, x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc

    @staticmethod
    def within(folder: Path, role: Role, name: str) -> Credentials:
        """The files of ``name`` acting as ``role`` in a folder that :func:`issue` writes, or is a copy of."""
        stem = f"{role}-{name}"
        return Credentials(folder / f"{stem}.pem", folder / f"{stem}.key", folder / "authority.pem")

    def identity(self) -> Identity:
        """What our own certificate says.

        Raises:
            CertificateError: if a file is missing, or if others can read the key.
        """
        for path in (self.certificate, self.key, self.authority):
            if not path.is_file():
                raise CertificateError(
                    f"{path}: no such file; `deepreshape private keygen` makes keys and certificates"
                )
        mode = self.key.stat().st_mode & 0o777
        if mode & 0o077:
            raise CertificateError(f"{self.key}: others can read this key (mode {mode:o}); run: chmod 600 {self.key}")
        try:
            der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text("ascii").strip())
        except ValueError:
            raise CertificateError(f"{self.certificate}: not a certificate in PEM form") from None
        except OSError as error:
            raise CertificateError(f"{self.certificate}: cannot read: {error.strerror}") from None
        return describe(der)


def _expired(path: Path, until: datetime.datetime) -> str:
    return f"{path}: this certificate expired on {until:%Y-%m-%d}; make a new one with keygen"


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate in DER, as 64 hexadecimal digits."""
    return hashlib.sha256(der).hexdigest()


def describe(der: bytes) -> Identity:
    """Role, name and fingerprint of a certificate in DER that has been verified, or is our own.

    Raises:
        CertificateError: if it does not carry exactly one role and one name.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    except UNREADABLE:
        raise CertificateError(
            f"certificate {fingerprint(der)[:16]}... carries no role; issue it with keygen"
        ) from None
    roles: list[Role] = [role for role in ROLES if f"{URI}{role}" in uris]
    name = str(names[0].value) if len(names) == 1 else ""
    if len(uris) != 1 or len(roles) != 1 or not NAME.fullmatch(name):
        raise CertificateError(f"certificate {fingerprint(der)[:16]}... carries {uris} as {name!r}, not one role")
    return Identity(roles[0], name, fingerprint(der))


def create_authority(folder: Path, days: int = 3650) -> Path:
    """Make an authority: ``authority.key`` (mode 0600) and ``authority.pem``, whose path is returned.

    Raises:
        CertificateError: if there is one already; nothing is overwritten.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    builder = (
        _builder("deepreshape authority", key.public_key(), until)
        .issuer_name(_subject("deepreshape authority"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
    )
    certificate = folder / "authority.pem"
    _save(folder / "authority.key", certificate, key, builder.sign(key, None))
    return certificate


def require_new(folder: Path, role: Role, name: str) -> None:
    """See that a certificate can be made for ``name`` acting as ``role``, and that none is there.

    Raises:
        CertificateError: if the role or name is unusable, or the files exist.
    """
    if role not in ROLES:
        raise CertificateError(f"role {role!r}: must be 'client' or 'server'")
    if not NAME.fullmatch(name):
        raise CertificateError(f"name {name!r}: use 1 to 64 letters, digits, dots, dashes or underscores")
    credentials = Credentials.within(folder, role, name)
    for path in (credentials.key, credentials.certificate):
        if path.exists() or path.is_symlink():
            raise CertificateError(f"{path}: exists and is not overwritten; move it away or choose another name")


def issue(folder: Path, role: Role, name: str, days: int = 365) -> Credentials:
    """Make a key and a certificate for ``name`` acting as ``role``, signed by the authority in the same folder.

    Raises:
        CertificateError: if the role or name is unusable, the authority is missing or expired, or the files exist.
    """
    require_new(folder, role, name)
    if days < 1:
        raise CertificateError(f"days {days}: a certificate must be valid for at least 1 day")
    authority = folder / "authority.pem"
    try:
        issuer = x509.load_pem_x509_certificate(authority.read_bytes())
        signer = load_pem_private_key((folder / "authority.key").read_bytes(), password=None)
    except FileNotFoundError as error:
        raise CertificateError(f"{error.filename}: no such file; make an authority in this folder first") from None
    except (ValueError, TypeError):  # a key with a passphrase is a TypeError
        raise CertificateError(f"{folder}: authority.pem or authority.key is no PEM file without passphrase") from None
    if not isinstance(signer, Ed25519PrivateKey) or signer.public_key() != issuer.public_key():
        raise CertificateError(f"{folder}: authority.key does not belong to authority.pem")
    now = datetime.datetime.now(datetime.UTC)
    if issuer.not_valid_after_utc <= now:
        raise CertificateError(f"{authority}: expired on {issuer.not_valid_after_utc:%Y-%m-%d}; make a new authority")
    key = Ed25519PrivateKey.generate()
    until = min(now + datetime.timedelta(days=days), issuer.not_valid_after_utc)
    builder = (
        _builder(name, key.public_key(), until)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([USAGE[role]]), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{URI}{role}")]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    credentials = Credentials.within(folder, role, name)
    _save(credentials.key, credentials.certificate, key, builder.sign(signer, None))
    return credentials


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(name: str, public: Ed25519PublicKey, until: datetime.datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.now(datetime.UTC) - SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _save(key_path: Path, certificate_path: Path, key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
    """Write the pair, the key first; leave neither behind if the second cannot be written."""
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _create(key_path, secret, 0o600)
    try:
        _create(certificate_path, certificate.public_bytes(Encoding.PEM), 0o644)
    except CertificateError:
        with suppress(OSError):
            key_path.unlink()
        raise


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    except FileExistsError:
        raise CertificateError(f"{path}: exists and is not overwritten; move it away or choose another name") from None
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise CertificateError(f"{path}: cannot write: {error.strerror}") from None
