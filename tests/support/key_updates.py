"""A TLS client that sends key updates without end, which Python's ``ssl`` cannot: the same library, called directly."""

from __future__ import annotations

import ctypes
import select
import socket
import ssl
from contextlib import suppress
from pathlib import Path

from deepreshape.private.transport.certificates import Credentials

PEM, NOT_REQUESTED, VERIFY_NONE, WANT_READ = 1, 0, 0, 2
MOST_BYTES = 40
"""Of a key update's record."""
POINTERS = {
    "TLS_client_method": [],
    "SSL_CTX_new": [ctypes.c_void_p],
    "SSL_new": [ctypes.c_void_p],
    "BIO_s_mem": [],
    "BIO_new": [ctypes.c_void_p],
}
"""Functions that return a pointer, and what they take."""


def library() -> ctypes.CDLL | None:
    """The TLS library that Python itself uses, or None if it is not a file of its own."""
    assert ssl.OPENSSL_VERSION  # it is in this process once ``ssl`` is imported
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    path = next((line.split()[-1] for line in lines if "libssl" in line), None)
    if path is None:
        return None
    loaded = ctypes.CDLL(path)
    for name, arguments in POINTERS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = ctypes.c_void_p, arguments
    return loaded


def send_key_updates(tls: ctypes.CDLL, credentials: Credentials, port: int, count: int) -> None:
    """Connect with a certificate, and send so many key updates in one piece with the last message of the handshake.

    So the peer's library finds the next one whenever it has handled one, from the session's first moment.
    """
    context = ctypes.c_void_p(tls.SSL_CTX_new(tls.TLS_client_method()))
    for use, path in (
        (tls.SSL_CTX_use_certificate_file, credentials.certificate),
        (tls.SSL_CTX_use_PrivateKey_file, credentials.key),
    ):
        assert use(context, str(path).encode(), PEM) == 1
    tls.SSL_CTX_set_verify(context, VERIFY_NONE, None)
    connection = ctypes.c_void_p(tls.SSL_new(context))
    outgoing = ctypes.c_void_p(tls.BIO_new(tls.BIO_s_mem()))
    records = ctypes.create_string_buffer(MOST_BYTES * count + (1 << 16))

    def written() -> memoryview:
        return memoryview(records)[: max(0, tls.BIO_read(outgoing, records, len(records)))]

    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setblocking(False)
        assert tls.SSL_set_fd(connection, sock.fileno()) == 1
        tls.SSL_set0_wbio(connection, outgoing)
        while (done := tls.SSL_connect(connection)) != 1:
            assert tls.SSL_get_error(connection, done) == WANT_READ
            sock.sendall(written())
            select.select([sock], [], [], 30)
        for _ in range(count):
            assert tls.SSL_key_update(connection, NOT_REQUESTED) == 1
            assert tls.SSL_do_handshake(connection) == 1
        sock.setblocking(True)
        with suppress(OSError):  # the server hangs up
            sock.sendall(written())
            sock.recv(1)
    tls.SSL_free(connection)
    tls.SSL_CTX_free(context)
