"""Who is let in: authority, role, age and TLS version of the other side."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.relay import PATIENT, Keys

from deepreshape.private.errors import CertificateError, ConnectionLostError, ProtocolError, RefusedError
from deepreshape.private.transport.certificates import Credentials, create_authority, describe, fingerprint, issue
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.tls import Endpoint, listen


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys"))


def meet(server: Endpoint, client: Endpoint, pinned: str | None = None) -> tuple[object, object]:
    """Connect, and let the client ask for one frame. Returns the error on each side, or None: server, client."""

    def serve() -> None:
        channel = server.accept(listening.accept()[0])
        channel.send(Frame.READY, b"")
        channel.abort("the test is over")

    def visit() -> None:
        channel = client.connect("127.0.0.1", listening.getsockname()[1], pinned)
        try:
            channel.receive(Frame.READY, 0)
        finally:
            channel.abort("the test is over")

    with listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(2) as pool:
        served, visited = pool.submit(serve), pool.submit(visit)
        return served.exception(60), visited.exception(60)


def forge(
    keys: Keys,
    folder: Path,
    *,
    uris: list[str],
    purpose: x509.ObjectIdentifier,
    days: tuple[int, int] = (-1, 1),
) -> Credentials:
    """A certificate that the authority has signed, but that ``issue`` would not make."""
    issuer = x509.load_pem_x509_certificate((keys.folder / "authority.pem").read_bytes())
    signer = load_pem_private_key((keys.folder / "authority.key").read_bytes(), None)
    assert isinstance(signer, Ed25519PrivateKey)
    key = Ed25519PrivateKey.generate()
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mallory")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if uris:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(san, critical=False)
    credentials = Credentials(folder / "mallory.pem", folder / "mallory.key", keys.client.authority)
    credentials.certificate.write_bytes(builder.sign(signer, None).public_bytes(Encoding.PEM))
    credentials.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    credentials.key.chmod(0o600)
    return credentials


def test_both_sides_know_each_other(keys: Keys) -> None:
    client, server = Endpoint(keys.client, PATIENT), Endpoint(keys.server, PATIENT)
    assert (client.identity.role, client.identity.name) == ("client", "alice")
    assert (server.identity.role, server.identity.name) == ("server", "bob")
    assert meet(server, client) == (None, None)
    assert meet(server, client, pinned=server.identity.fingerprint) == (None, None)


def test_fingerprint_is_of_the_certificate(keys: Keys) -> None:
    der = ssl.PEM_cert_to_DER_cert(keys.client.certificate.read_text())
    certificate = x509.load_der_x509_certificate(der)
    assert fingerprint(der) == describe(der).fingerprint == keys.client.identity().fingerprint
    assert len({keys.client.identity().fingerprint, keys.server.identity().fingerprint}) == 2
    assert certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=366)


def test_another_authority_is_refused_on_both_sides(keys: Keys, tmp_path: Path) -> None:
    other = Keys.make(tmp_path)
    served, visited = meet(Endpoint(keys.server, PATIENT), Endpoint(other.client, PATIENT))
    assert isinstance(served, ConnectionLostError | RefusedError)
    assert isinstance(visited, RefusedError)
    # a client that trusts our server, but whom our server does not know
    stranger = Credentials(other.client.certificate, other.client.key, keys.client.authority)
    served, visited = meet(Endpoint(keys.server, PATIENT), Endpoint(stranger, PATIENT))
    assert isinstance(served, RefusedError)
    assert "TLS 1.3 with mutual certificates failed" in str(served)
    assert isinstance(visited, ConnectionLostError)


def test_client_without_certificate_is_refused(keys: Keys) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(keys.client.authority)
    with listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(1) as pool:
        served = pool.submit(lambda: Endpoint(keys.server, PATIENT).accept(listening.accept()[0]))
        with context.wrap_socket(socket.create_connection(listening.getsockname())) as sock:
            sock.settimeout(30)
            with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
                sock.recv(1)
        error = served.exception(60)
    assert isinstance(error, RefusedError)
    assert "peer did not return a certificate" in str(error)


def test_tls_1_2_is_refused_by_server_and_client(keys: Keys) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_verify_locations(keys.client.authority)
    old.load_cert_chain(keys.client.certificate, keys.client.key)
    with listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(1) as pool:
        served = pool.submit(lambda: Endpoint(keys.server, PATIENT).accept(listening.accept()[0]))
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            old.wrap_socket(socket.create_connection(listening.getsockname()))
        assert isinstance(served.exception(60), RefusedError)

    older = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    older.load_cert_chain(keys.server.certificate, keys.server.key)

    def serve() -> None:
        older.wrap_socket(listening.accept()[0], server_side=True)

    with listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(1) as pool:
        visited = pool.submit(serve)
        with pytest.raises(RefusedError, match=r"TLS 1\.3"):
            Endpoint(keys.client, PATIENT).connect("127.0.0.1", listening.getsockname()[1])
        assert isinstance(visited.exception(60), ssl.SSLError)


CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def test_a_client_whose_certificate_has_expired_says_so_before_it_connects(keys: Keys, tmp_path: Path) -> None:
    credentials = forge(keys, tmp_path, uris=["deepreshape:client"], purpose=CLIENT, days=(-10, -1))
    day = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    with listen("127.0.0.1", 0) as listening:
        line = f"^{credentials.certificate}: this certificate expired on {day:%Y-%m-%d}; make a new one with keygen$"
        with pytest.raises(CertificateError, match=line):
            Endpoint(credentials, PATIENT).connect("127.0.0.1", listening.getsockname()[1])
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has come
            listening.accept()


def test_expired_and_not_yet_valid_certificates_are_refused(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Credentials, "require_unexpired", lambda _: None)  # a client that comes all the same
    for days, why in (((-10, -1), "certificate has expired"), ((1, 10), "not yet valid")):
        credentials = forge(keys, tmp_path, uris=["deepreshape:client"], purpose=CLIENT, days=days)
        served, visited = meet(Endpoint(keys.server, PATIENT), Endpoint(credentials, PATIENT))
        assert isinstance(served, RefusedError)
        assert isinstance(visited, ProtocolError)
        credentials = forge(keys, tmp_path, uris=["deepreshape:server"], purpose=SERVER, days=days)
        served, visited = meet(Endpoint(credentials, PATIENT), Endpoint(keys.client, PATIENT))
        assert isinstance(visited, RefusedError)
        assert why in str(visited)


def test_a_client_cannot_act_as_server(keys: Keys, tmp_path: Path) -> None:
    """By TLS if its purpose says client, by us if only its role does."""
    for purpose, says in (
        (CLIENT, "unsuitable certificate purpose|unsupported"),
        (SERVER, "is for a client, and so is"),
    ):
        credentials = forge(keys, tmp_path, uris=["deepreshape:client"], purpose=purpose)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(credentials.certificate, credentials.key)

        def serve(context: ssl.SSLContext = context) -> None:
            with context.wrap_socket(listening.accept()[0], server_side=True) as sock:
                sock.recv(1)

        with listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(1) as pool:
            pool.submit(serve)
            with pytest.raises(RefusedError, match=says):
                Endpoint(keys.client, PATIENT).connect("127.0.0.1", listening.getsockname()[1])


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["deepreshape:server"],
        ["deepreshape:admin"],
        ["deepreshape:client", "deepreshape:server"],
        ["deepreshape:client", "https://example.org"],
    ],
)
def test_a_certificate_of_no_one_client_role_is_refused_by_the_server(
    keys: Keys, tmp_path: Path, uris: list[str]
) -> None:
    credentials = forge(keys, tmp_path, uris=uris, purpose=CLIENT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(keys.client.authority)
    context.load_cert_chain(credentials.certificate, credentials.key)
    with listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(1) as pool:
        served = pool.submit(lambda: Endpoint(keys.server, PATIENT).accept(listening.accept()[0]))
        with context.wrap_socket(socket.create_connection(listening.getsockname())):
            error = served.exception(60)
    assert isinstance(error, RefusedError)


def test_pinned_server_must_be_that_one(keys: Keys) -> None:
    served, visited = meet(Endpoint(keys.server, PATIENT), Endpoint(keys.client, PATIENT), pinned="00" * 32)
    assert isinstance(visited, RefusedError)
    assert "pinned is 0000" in str(visited)
    assert served is None or isinstance(served, ProtocolError)


def test_keys_are_private_and_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    create_authority(folder)
    credentials = issue(folder, "client", "alice")
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CertificateError, match=r"authority\.key: exists and is not overwritten"):
        create_authority(folder)
    with pytest.raises(CertificateError, match=r"client-alice\.key: exists"):
        issue(folder, "client", "alice")
    credentials.key.unlink()
    with pytest.raises(CertificateError, match=r"client-alice\.pem: exists"):
        issue(folder, "client", "alice")
    del before[credentials.key]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    credentials = Keys.make(tmp_path).client
    credentials.key.chmod(0o644)
    with pytest.raises(CertificateError, match=r"others can read this key \(mode 644\); run: chmod 600"):
        Endpoint(credentials)


def test_certificate_ends_with_its_authority_and_not_at_once(tmp_path: Path) -> None:
    authority = x509.load_pem_x509_certificate(create_authority(tmp_path, days=1).read_bytes())
    certificate = x509.load_pem_x509_certificate(issue(tmp_path, "client", "alice").certificate.read_bytes())
    assert certificate.not_valid_after_utc == authority.not_valid_after_utc
    assert certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC) > datetime.timedelta(hours=23)


def test_key_with_a_passphrase_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    credentials = Keys.make(tmp_path).client
    for path in (credentials.key, tmp_path / "authority.key"):
        key = load_pem_private_key(path.read_bytes(), None)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(CertificateError, match="unusable with its key"):
        Endpoint(credentials)
    with pytest.raises(CertificateError, match="no PEM file without passphrase"):
        issue(tmp_path, "client", "carol")


def test_bad_input_gets_one_clear_line(tmp_path: Path, keys: Keys) -> None:
    with pytest.raises(CertificateError, match=r"authority\.pem: no such file; make an authority"):
        issue(tmp_path, "client", "alice")
    with pytest.raises(CertificateError, match="role 'admin': must be 'client' or 'server'"):
        issue(keys.folder, "admin", "alice")  # type: ignore[arg-type]
    for name in ("", "a/b", "../x", "a" * 65, "naïve"):
        with pytest.raises(CertificateError, match="use 1 to 64 letters"):
            issue(keys.folder, "client", name)
    with pytest.raises(CertificateError, match="days 0"):
        issue(keys.folder, "client", "carol", days=0)
    with pytest.raises(CertificateError, match="no such file"):
        Endpoint(Credentials(tmp_path / "none.pem", keys.client.key, keys.client.authority))
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    with pytest.raises(CertificateError, match="not a certificate in PEM form"):
        Endpoint(Credentials(junk, keys.client.key, keys.client.authority))
    with pytest.raises(CertificateError, match="unusable with its key"):
        Endpoint(Credentials(keys.server.certificate, keys.client.key, keys.client.authority))
    with pytest.raises(CertificateError, match=r"junk\.pem: not an authority's certificate"):
        Endpoint(Credentials(keys.client.certificate, keys.client.key, junk))
    with pytest.raises(CertificateError, match="carries no role"):
        describe(ssl.PEM_cert_to_DER_cert((keys.folder / "authority.pem").read_text()))


def test_a_revoked_certificate_is_refused_without_a_restart(keys: Keys) -> None:
    server, client = Endpoint(keys.server, PATIENT), Endpoint(keys.client, PATIENT)
    path = keys.folder / "revoked"
    assert meet(server, client) == (None, None)
    try:
        path.write_text(f"# left in May\n\n{client.identity.fingerprint.upper()}  # alice\n")
        assert "certificate 'alice'" in str(meet(server, client)[0])
        path.write_text("")
        assert meet(server, client) == (None, None)
        path.write_text("alice\n")  # whom it means is not known, so nobody comes in
        assert "'alice' is not a fingerprint of 64 hexadecimal digits" in str(meet(server, client))
    finally:
        path.unlink()


def test_a_client_refuses_a_revoked_server_too(keys: Keys) -> None:
    server, client = Endpoint(keys.server, PATIENT), Endpoint(keys.client, PATIENT)
    path = keys.folder / "revoked"
    try:
        path.write_text(server.identity.fingerprint)
        assert "certificate 'bob'" in str(meet(server, client))
    finally:
        path.unlink()


def test_the_end_of_a_certificate_is_warned_of_two_weeks_ahead(tmp_path: Path) -> None:
    create_authority(tmp_path, days=400)
    credentials = issue(tmp_path, "client", "alice", days=100)
    now = datetime.datetime.now(datetime.UTC)
    assert credentials.warnings(now + datetime.timedelta(days=85)) == []
    (line,) = credentials.warnings(now + datetime.timedelta(days=87))
    assert line.startswith(f"{credentials.certificate}: this certificate expires on ")
    late = credentials.warnings(now + datetime.timedelta(days=401))
    assert [line.split(": ")[1][:24] for line in late] == ["this certificate expired"] * 2
