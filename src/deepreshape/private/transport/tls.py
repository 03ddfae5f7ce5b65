"""Frames between two processes: TLS 1.3 with both certificates verified, raw payloads of lengths both sides know.

A frame is a header of 17 bytes (kind, payload length, sequence number; little-endian) and the payload as it lies in
memory. The receiver says which kind and length must come next, and anything else ends the session before a byte is
allocated. Nothing is ever parsed out of a payload here.

Secrecy, integrity and replay protection against an active network attacker are those of TLS 1.3 (RFC 8446), by the
standard library's OpenSSL, without resumption, early data or the system's trust store. Sequence numbers start where
the session says (:meth:`TlsChannel.renumber`), so a frame kept from another session does not fit either. What a frame
holds is the peer's word: whoever reads it checks ranges, points and ciphertexts.

**The rule of turns.** In each step of a protocol exactly one party sends while the other receives; both know who from
the program. Nothing here reads while it writes, so two parties that both send more than the sockets buffer would wait
for each other; the write time-out ends such a session on both sides.
"""

from __future__ import annotations

import math
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import NoReturn

import numpy as np

from deepreshape.private.errors import (
    CertificateError,
    ConnectionLostError,
    LostBatchError,
    PeerAbortedError,
    ProtocolError,
    RefusedError,
    TimeLimitError,
)
from deepreshape.private.transport.certificates import Credentials, Identity, describe
from deepreshape.private.transport.channel import Frame, Payload, as_bytes, as_writable
from deepreshape.private.transport.ledger import Ledger

HEADER = struct.Struct("<BQQ")
SLICE = 1 << 18
"""Bytes handed to OpenSSL at a time: the write time-out is for one slice."""
SMALL = 1 << 14
"""Up to this many bytes (one TLS record) a header and its payload are joined by a copy and written together."""
ABORTED = b"\x01"
BATCH_LOST = b"\x02"
"""The code of an abort since this party's half of the offline batch is damaged; all other reasons have one code."""
ABORT_S = 1.0
"""Longest that telling the peer of an abort may take."""
MODULUS = 1 << 64
UNKNOWN = "a connecting party"
"""Who is at the other end, before its certificate has said so."""


@dataclass(frozen=True)
class Limits:
    """Time-outs in seconds and the largest frame. None may be infinite.

    Attributes:
        connect_s: for TCP and for the TLS handshake, each.
        read_s: longest silence while a frame is awaited; must cover the peer's longest computation between frames.
        write_s: longest that one slice of 256 KiB may wait for the peer to read.
        session_s: whole session, from connection to last frame.
        frame_bytes: largest payload that is sent or accepted, whatever the program says.
    """

    connect_s: float = 10.0
    read_s: float = 120.0
    write_s: float = 120.0
    session_s: float = 3600.0
    frame_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{limit.name}={value}: must be positive and finite")


@dataclass(frozen=True)
class EmulatedLink:
    """A slower link than the one there is, emulated by the sender: it waits before it sends.

    Attributes:
        delay_s: one way, in seconds; paid by the first frame of each turn, later frames follow in the pipe.
        bytes_per_s: payload bytes a second; infinite unless given.
    """

    delay_s: float = 0.0
    bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        if not (0 <= self.delay_s < math.inf and self.bytes_per_s > 0):
            raise ValueError(f"{self}: needs a finite delay_s >= 0 and bytes_per_s > 0")


class TlsChannel:
    """One end of an authenticated connection; made by :class:`Endpoint` only.

    Implements ``Channel``. One thread uses it. The first error ends it: the peer is
    told by a code that says no more than that, the socket closes, and every later call raises :class:`ProtocolError`.
    """

    def __init__(
        self, sock: ssl.SSLSocket, identity: Identity, peer: Identity, limits: Limits, link: EmulatedLink | None = None
    ) -> None:
        self.ledger = Ledger()
        self.identity = identity
        self.peer = peer
        self._sock = sock
        self._limits = limits
        self._link = link
        self._deadline = time.monotonic() + limits.session_s
        self._outgoing = 0
        self._incoming = 0
        self._over = ""
        self._inside_frame = False
        self._turn_began: float | None = None
        self._turn_bytes = 0

    def renumber(self, outgoing: int, incoming: int) -> None:
        """Continue both directions at the sequence numbers (64 bits) that belong to the session alone."""
        self._outgoing, self._incoming = outgoing % MODULUS, incoming % MODULUS

    def send(self, kind: Frame, payload: Payload) -> None:
        """Send one frame. Large payloads go out in slices of the caller's own buffer, never copied.

        Raises:
            ValueError: if the payload is larger than ``limits.frame_bytes``.
            ProtocolError: if the connection is lost, the peer does not read in time, or the session is over.
        """
        view = as_bytes(payload)
        self._check_open()
        self._check_cap(kind, view.nbytes)
        header = HEADER.pack(kind, view.nbytes, self._outgoing)
        self._emulate(0)
        self._inside_frame = True
        if view.nbytes <= SMALL:
            self._emulate(view.nbytes)
            self._write(memoryview(b"".join((header, view))))
        else:
            self._write(memoryview(header))
            for start in range(0, view.nbytes, SLICE):
                part = view[start : start + SLICE]
                self._emulate(part.nbytes)
                self._write(part)
        self._inside_frame = False
        self._outgoing = (self._outgoing + 1) % MODULUS
        self.ledger.sent(view.nbytes)

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        """The next frame's payload: writable, of exactly ``nbytes`` bytes, in a buffer of its own.

        Raises:
            ValueError: if ``nbytes`` is more than ``limits.frame_bytes``.
            ProtocolError: if the next frame has another kind, length or sequence number (checked before anything is
                allocated), the peer aborted or is silent, the connection is lost, or the session is over.
        """
        self._expect(kind, nbytes)
        view = as_bytes(np.empty(nbytes, np.uint8))
        self._finish_frame(view)
        return view

    def receive_into(self, kind: Frame, out: Payload) -> None:
        """The next frame's payload, written over ``out``, a writable contiguous buffer of exactly its length.

        Raises:
            TypeError: if ``out`` is read-only or not contiguous.
            ValueError, ProtocolError: as :meth:`receive`; ``out`` may then be partly overwritten.
        """
        view = as_writable(out)
        self._expect(kind, view.nbytes)
        self._finish_frame(view)

    def abort(self, reason: str, *, batch_lost: bool = False) -> None:
        """End the session: tell the peer by a code if a frame can still be sent, and close. Idempotent.

        Args:
            reason: for later callers on this side; the peer is not told.
            batch_lost: whether it is since this party's half of the batch is damaged, which the peer is told. What the
                peer is still sending is then read, since a socket that is closed before would take the code with it.
        """
        if self._over:
            return
        self._over = reason or "it was aborted"
        with suppress(OSError):
            if not self._inside_frame:
                self._sock.settimeout(ABORT_S)
                code = BATCH_LOST if batch_lost else ABORTED
                self._sock.sendall(HEADER.pack(Frame.ABORT, len(code), self._outgoing) + code)
                while batch_lost and time.monotonic() < self._deadline and self._sock.recv(SLICE):
                    pass
        with suppress(OSError):
            self._sock.close()

    def release(self) -> None:
        """Close this process's end only: the process that was forked with it has the session now."""
        self._over = "another process has it"
        self._sock.close()

    def finish(self) -> None:
        """End the session in good order: the client says that it has everything, the server answers, both close.

        A server that returns knows that the client has received all frames. (An alert or a closed line would not tell:
        OpenSSL takes a fatal alert for the end of a good connection.)

        Raises:
            ProtocolError: if the peer sends anything else, is silent, or is gone.
        """
        if self.identity.role == "client":
            self.send(Frame.READY, b"")
            self.receive(Frame.READY, 0)
        else:
            self.receive(Frame.READY, 0)
            self.send(Frame.READY, b"")
        if self._sock.pending():
            self._fail(ProtocolError(f"{self._them} sent bytes after the last frame"))
        self._over = "it was finished"
        self._sock.close()

    @property
    def _them(self) -> str:
        return f"{self.peer.role} {self.peer.name!r}"

    def _expect(self, kind: Frame, nbytes: int) -> None:
        """Read a header and hold it against what must come next."""
        self._check_open()
        self._check_cap(kind, nbytes)
        self._turn_began = None
        header = bytearray(HEADER.size)
        self._read(memoryview(header), kind)
        got, length, sequence = HEADER.unpack(header)
        if got == Frame.ABORT and kind is not Frame.ABORT:
            self._aborted(kind, length)
        if sequence != self._incoming:
            self._fail(ProtocolError(f"frame {sequence} from {self._them}, expected frame {self._incoming}"))
        if got != kind or length != nbytes:
            name = Frame(got).name if got in set(Frame) else f"unknown kind {got}"
            self._fail(ProtocolError(f"{self._them} sent {name} of {length} bytes, expected {kind.name} of {nbytes}"))

    def _aborted(self, kind: Frame, nbytes: int) -> NoReturn:
        """Say what the peer's abort says, which came with a code of so many bytes in place of a frame."""
        code = bytearray(len(ABORTED))
        if nbytes == len(code):
            self._read(memoryview(code))
        self._over = f"{self._them} aborted it"
        self._sock.close()
        if bytes(code) == BATCH_LOST:
            raise LostBatchError(f"{self._them} has a damaged half of this batch; destroyed here too, ask again")
        raise PeerAbortedError(f"{self._them} aborted the session instead of sending {kind.name}; its log says why")

    def _finish_frame(self, view: memoryview) -> None:
        self._read(view)
        self._incoming = (self._incoming + 1) % MODULUS
        self.ledger.received(view.nbytes)

    def _read(self, view: memoryview, kind: Frame | None = None) -> None:
        done = 0
        awaited = f"{kind.name} frame" if kind else "rest of a frame"
        try:
            while done < view.nbytes:
                self._sock.settimeout(self._allow(self._limits.read_s))
                got = self._sock.recv_into(view[done:])
                if not got:
                    self._fail(ConnectionLostError(f"{self._them} closed the connection before a {awaited} was there"))
                done += got
        except TimeoutError:
            self._time_out(f"waited {self._limits.read_s:g} s (read_s) for the {awaited} of {self._them}")
        except OSError as error:
            self._fail(ConnectionLostError(f"lost {self._them} while waiting for a {awaited}: {_reason(error)}"))

    def _write(self, view: memoryview) -> None:
        try:
            self._sock.settimeout(self._allow(self._limits.write_s))
            self._sock.sendall(view)
        except TimeoutError:
            limit = f"{self._limits.write_s:g} s (write_s)"
            self._time_out(f"{self._them} did not read for {limit}; is it stuck, or sending itself?")
        except OSError as error:
            self._fail(ConnectionLostError(f"lost {self._them} while sending: {_reason(error)}"))

    def _emulate(self, nbytes: int) -> None:
        """Wait as long as the emulated link would need to take ``nbytes`` more."""
        if self._link is None:
            return
        if self._turn_began is None:
            time.sleep(self._link.delay_s)
            self._turn_began, self._turn_bytes = time.monotonic(), 0
        self._turn_bytes += nbytes
        due = self._turn_began + self._turn_bytes / self._link.bytes_per_s
        time.sleep(max(0.0, due - time.monotonic()))

    def _allow(self, limit_s: float) -> float:
        """The time-out of the next operation: ``limit_s``, or what is left of the session."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            self._time_out("")
        return min(limit_s, left)

    def _time_out(self, message: str) -> NoReturn:
        """Fail for the time-out that was hit: the operation's, or the whole session's."""
        if time.monotonic() >= self._deadline:
            message = f"the session with {self._them} took over {self._limits.session_s:g} s (session_s)"
        self._fail(TimeLimitError(message))

    def _check_open(self) -> None:
        if self._over:
            raise ProtocolError(f"the session with {self._them} is over: {self._over}")
        if self._inside_frame:
            self._fail(ProtocolError(f"a frame to {self._them} was interrupted and cannot be continued"))

    def _check_cap(self, kind: Frame, nbytes: int) -> None:
        cap = self._limits.frame_bytes
        if nbytes > cap:
            raise ValueError(f"{kind.name} frame of {nbytes} bytes: at most {cap}; split it, or raise frame_bytes")

    def _fail(self, error: ProtocolError) -> NoReturn:
        self.abort(str(error))
        raise error


class Endpoint:
    """One party's certificate and key, loaded: it makes connections (a client) or takes them (a server).

    Raises:
        CertificateError: if a file is missing or unusable, or others can read the key.
    """

    def __init__(
        self, credentials: Credentials, limits: Limits | None = None, link: EmulatedLink | None = None
    ) -> None:
        self.credentials = credentials
        self.identity = credentials.identity()
        self.limits = limits or Limits()
        self._link = link
        serving = self.identity.role == "server"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serving else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # a party is who its certificate says, wherever it runs
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if serving:
            context.num_tickets = 0  # no resumption: every session verifies both certificates
        try:
            # a key with a passphrase is refused: OpenSSL would ask for it on the terminal and wait
            context.load_cert_chain(credentials.certificate, credentials.key, password="")
        except OSError as error:
            raise CertificateError(f"{credentials.certificate}: unusable with its key: {_reason(error)}") from None
        try:
            context.load_verify_locations(credentials.authority)
        except OSError as error:
            raise CertificateError(
                f"{credentials.authority}: not an authority's certificate: {_reason(error)}"
            ) from None
        self._context = context

    def connect(self, host: str, port: int, pinned: str | None = None) -> TlsChannel:
        """Connect to a server and verify its certificate.

        With TLS 1.3 a client is done before the server has looked at its certificate; a server that refuses it is seen
        by the first frame that does not come.

        Args:
            host: name or address.
            port: TCP port.
            pinned: fingerprint of the one server certificate to accept; any server of the authority unless given.

        Raises:
            CertificateError: if the own certificate has expired.
            RefusedError: if the other side is no such server.
            ConnectionLostError, TimeLimitError: if it cannot be reached.
        """
        self.credentials.require_unexpired()
        try:
            sock = socket.create_connection((host, port), self.limits.connect_s)
        except TimeoutError:
            raise TimeLimitError(f"{host}:{port} did not answer in {self.limits.connect_s:g} s (connect_s)") from None
        except (OSError, UnicodeError) as error:  # the latter of a name that is no host's
            raise ConnectionLostError(f"cannot connect to {host}:{port}: {_reason(error)}") from None
        return self._secure(sock, f"{host}:{port}", pinned)

    def accept(self, sock: socket.socket) -> TlsChannel:
        """Run the server's side of TLS on a connection that a listening socket has accepted.

        Takes as long as the peer likes, up to ``connect_s``: call it in the thread of the session.

        Raises:
            RefusedError: if the other side is no client of the authority; ``sock`` is closed.
            ConnectionLostError, TimeLimitError: if it goes away or stalls; ``sock`` is closed.
        """
        return self._secure(sock, UNKNOWN, None)

    def start(self, sock: socket.socket) -> PendingConnection:
        """The same, one step at a time, for a server that waits for many at once.

        Raises:
            ConnectionLostError: if the other side is gone already; ``sock`` is closed.
        """
        secure = self._wrap(sock, UNKNOWN)
        secure.setblocking(False)
        return PendingConnection(
            secure, lambda: self._greet(secure, UNKNOWN, None), time.monotonic() + self.limits.connect_s
        )

    def _secure(self, sock: socket.socket, where: str, pinned: str | None) -> TlsChannel:
        secure = self._wrap(sock, where)
        try:
            return self._greet(secure, where, pinned)
        except BaseException:
            secure.close()
            raise

    def _wrap(self, sock: socket.socket, where: str) -> ssl.SSLSocket:
        serving = self.identity.role == "server"
        try:
            sock.settimeout(self.limits.connect_s)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.getpeername()  # raises if the peer is gone already; wrap_socket would then leave a socket open
            return self._context.wrap_socket(sock, server_side=serving, do_handshake_on_connect=False)
        except OSError as error:
            sock.close()
            raise ConnectionLostError(f"{where}: gone before the TLS handshake: {_reason(error)}") from None

    def _greet(self, secure: ssl.SSLSocket, where: str, pinned: str | None) -> TlsChannel:
        """The handshake, and what follows from the peer's certificate; the caller closes ``secure`` on any error."""
        try:
            secure.do_handshake()
            peer = describe(secure.getpeercert(binary_form=True) or b"")
            if peer.role == self.identity.role:
                raise RefusedError(f"{where}: certificate {peer.name!r} is for a {peer.role}, and so is ours")
            if peer.fingerprint in self.credentials.revoked():
                raise RefusedError(f"{where}: certificate {peer.name!r} ({peer.fingerprint[:16]}) is revoked")
            if pinned is not None and peer.fingerprint != pinned:
                raise RefusedError(f"{where}: server certificate is {peer.fingerprint}, pinned is {pinned}")
            return TlsChannel(secure, self.identity, peer, self.limits, self._link)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise  # nothing is wrong: there is more to come
        except Exception as error:
            match error:
                case CertificateError():
                    raise RefusedError(f"{where}: {error}") from None
                case TimeoutError():
                    limit = f"{self.limits.connect_s:g} s (connect_s)"
                    raise TimeLimitError(f"{where}: TLS handshake not done in {limit}") from None
                case ssl.SSLError() if not isinstance(error, ssl.SSLEOFError):
                    raise RefusedError(f"{where}: TLS 1.3 with mutual certificates failed: {_reason(error)}") from None
                case OSError():
                    raise ConnectionLostError(f"{where}: gone during the TLS handshake: {_reason(error)}") from None
                case _:
                    raise


class PendingConnection:
    """A connection whose TLS handshake is under way; made by :meth:`Endpoint.start`, and watched by a selector.

    Attributes:
        events: what its socket must be ready for before :meth:`advance` is called again.
        deadline: when its time (``connect_s``) is over, by ``time.monotonic``.
    """

    def __init__(self, secure: ssl.SSLSocket, greet: Callable[[], TlsChannel], deadline: float) -> None:
        self.events = selectors.EVENT_READ
        self.deadline = deadline
        self._secure = secure
        self._greet = greet

    def fileno(self) -> int:
        """For the selector."""
        return self._secure.fileno()

    def advance(self) -> TlsChannel | None:
        """Go on as far as what has come allows; the channel, once both certificates are verified.

        Raises:
            RefusedError, ConnectionLostError: as :meth:`Endpoint.accept`, but the socket stays open: a selector has to
                forget it before its number can be given to another.
        """
        try:
            return self._greet()
        except ssl.SSLWantReadError:
            self.events = selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            self.events = selectors.EVENT_WRITE
        return None

    def close(self) -> None:
        """Turn it away."""
        self._secure.close()


def listen(host: str, port: int, backlog: int = 64) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Connections taken from it go to :meth:`Endpoint.accept`.

    Raises:
        ConnectionLostError: if the address cannot be bound.
    """
    try:
        return socket.create_server((host, port), backlog=backlog)
    except OSError as error:
        raise ConnectionLostError(f"cannot listen on {host}:{port}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What the operating system or TLS says, in one line without file names of the library."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLEOFError):
        return "it hung up, or was killed"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
