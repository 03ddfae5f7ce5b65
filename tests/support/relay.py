"""A hostile network for tests: a relay between two real processes' ends that breaks one unit of what passes.

It works at two depths. Below TLS it sees records, as any attacker on the network does. Inside TLS it sees frames; for
that it is given both parties' keys, so nothing but the frame layer and the handshake stands in its way.
"""

from __future__ import annotations

import hashlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from deepreshape.private.errors import (
    ConnectionLostError,
    PeerAbortedError,
    PrivateError,
    ProtocolError,
    TimeLimitError,
)
from deepreshape.private.transport.certificates import Credentials, create_authority, issue
from deepreshape.private.transport.channel import Channel, Frame
from deepreshape.private.transport.handshake import Agreement, client_session, server_session
from deepreshape.private.transport.tls import HEADER, Endpoint, Limits, TlsChannel, listen

RECORD = struct.Struct("!BHH")
CHANGE_CIPHER_SPEC = 20

PATIENT = Limits(connect_s=30, read_s=30, write_s=30, session_s=120)


def brief(seconds: float = 0.3) -> Limits:
    """Time-outs that are meant to run out."""
    return Limits(connect_s=seconds, read_s=seconds, write_s=seconds, session_s=120)


class Fault(Enum):
    """What happens to unit k."""

    DROP = "drop"
    CUT = "cut"
    REPEAT = "repeat"
    SWAP = "swap"
    FLIP = "flip"
    STALL = "stall"
    REPLACE = "replace"

    @property
    def limits(self) -> tuple[Limits, ...]:
        """Time-outs to try, until they are long enough for the attack to happen on a busy machine.

        They are short where one is expected to run out, and long where none may.
        """
        if self in (Fault.DROP, Fault.SWAP, Fault.STALL):
            return brief(), brief(1.5), brief(10)
        return (PATIENT,)


@dataclass
class Attack:
    """Break unit ``k`` (from 0) that travels in a direction: ``"up"`` is to the server, ``"down"`` to the client."""

    fault: Fault
    way: str
    k: int
    flip_at: int = -1
    """The byte to flip, as an index into the unit; -1 is its last."""
    replacement: bytes = b""


@dataclass
class Relay:
    """Passes units between two sockets in one thread, and keeps what it saw."""

    attack: Attack | None = None
    seen: dict[str, list[bytes]] = field(default_factory=lambda: {"up": [], "down": []})
    order: list[str] = field(default_factory=list)
    """Which way each unit went."""
    hit: bytes = b""
    over: threading.Event = field(default_factory=threading.Event)

    def run(self, client: socket.socket, server: socket.socket, read_unit: Callable[[socket.socket], bytes]) -> None:
        ways = {client: ("up", server), server: ("down", client)}
        held: dict[str, bytes] = {}
        try:
            while not self.over.is_set():
                for source in _ready(list(ways)):
                    way, target = ways[source]
                    unit = read_unit(source)
                    if not unit:
                        return
                    for part in self._apply(way, unit, held):
                        target.sendall(part)
        except (OSError, EOFError):
            pass
        finally:
            for end in ways:
                with suppress(OSError):
                    end.close()

    def _apply(self, way: str, unit: bytes, held: dict[str, bytes]) -> list[bytes]:
        k = len(self.seen[way])
        self.seen[way].append(unit)
        self.order.append(way)
        attack = self.attack
        if attack is None or attack.way != way or k < attack.k:
            return [unit]
        if k > attack.k:
            return [unit, held.pop(way)] if way in held else [unit]
        self.hit = unit
        if attack.fault is Fault.DROP:
            return []
        if attack.fault is Fault.REPEAT:
            return [unit, unit]
        if attack.fault is Fault.SWAP:
            held[way] = unit
            return []
        if attack.fault is Fault.FLIP:
            broken = bytearray(unit)
            broken[attack.flip_at] ^= 1
            return [bytes(broken)]
        if attack.fault is Fault.REPLACE:
            return [attack.replacement]
        if attack.fault is Fault.STALL:
            self.over.wait(60)
        # what is left is to cut, or to hang up after the stall: half a unit, then the line is dead
        half = [unit[: len(unit) // 2]] if attack.fault is Fault.CUT else []
        self.over.set()
        return half


def _ready(ends: list[socket.socket]) -> list[socket.socket]:
    waiting = [end for end in ends if isinstance(end, ssl.SSLSocket) and end.pending()]
    return waiting or select.select(ends, [], [], 0.05)[0]


def _exactly(sock: socket.socket, nbytes: int) -> bytes:
    parts = b""
    while len(parts) < nbytes:
        part = sock.recv(nbytes - len(parts))
        if not part:
            if parts:
                raise EOFError
            return b""
        parts += part
    return parts


def read_record(sock: socket.socket) -> bytes:
    """One TLS record."""
    header = _exactly(sock, RECORD.size)
    return header + _exactly(sock, RECORD.unpack(header)[2]) if header else b""


def read_frame(sock: socket.socket) -> bytes:
    """One frame, out of a connection whose TLS ends here."""
    header = _exactly(sock, HEADER.size)
    return header + _exactly(sock, HEADER.unpack(header)[1]) if header else b""


@dataclass(frozen=True)
class Keys:
    """One authority and one party of each role."""

    folder: Path
    client: Credentials
    server: Credentials

    @staticmethod
    def make(folder: Path) -> Keys:
        create_authority(folder)
        return Keys(folder, issue(folder, "client", "alice"), issue(folder, "server", "bob"))


def tls(credentials: Credentials, sock: socket.socket, *, server: bool) -> ssl.SSLSocket:
    """TLS as the attacker speaks it who has this party's key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(credentials.certificate, credentials.key)
    context.load_verify_locations(credentials.authority)
    if server:
        context.num_tickets = 0
    return context.wrap_socket(sock, server_side=server, suppress_ragged_eofs=False)


AGREEMENT = Agreement("ab" * 32, {"bits": 32, "garbler": "server"})


@dataclass
class Turn:
    """One frame of the scripted conversation."""

    sender: str
    kind: Frame
    nbytes: int


SCRIPT = (
    Turn("client", Frame.BASE_OT, 64),
    Turn("server", Frame.EXTENSION, 100),
    Turn("client", Frame.CIPHERTEXTS, 40_000),
    Turn("server", Frame.TABLES, 40_000),
    Turn("server", Frame.LABELS, 32),
    Turn("client", Frame.SHARES, 17),
    Turn("server", Frame.READY, 0),
)


def play(channel: Channel, role: str) -> bytes:
    """One side of the script; the result is a digest of all that was sent and received."""
    digest = hashlib.sha256()
    for number, turn in enumerate(SCRIPT):
        payload = hashlib.shake_128(bytes([number])).digest(turn.nbytes)
        if turn.sender == role:
            channel.send(turn.kind, payload)
        else:
            payload = bytes(channel.receive(turn.kind, turn.nbytes))
        digest.update(payload)
    return digest.digest()


def expected_result() -> bytes:
    digest = hashlib.sha256()
    for number, turn in enumerate(SCRIPT):
        digest.update(hashlib.shake_128(bytes([number])).digest(turn.nbytes))
    return digest.digest()


Outcome = bytes | PrivateError


@dataclass(frozen=True)
class Talk:
    """What the two parties do once they are connected."""

    visit: Callable[[Endpoint, int], bytes]
    """The client's side: with its endpoint, to a port."""
    attend: Callable[[TlsChannel], bytes]


def _visit(endpoint: Endpoint, port: int) -> bytes:
    with client_session(endpoint.connect("127.0.0.1", port), AGREEMENT) as session:
        return play(session.channel, "client")


def _attend(channel: TlsChannel) -> bytes:
    with server_session(channel, lambda _: AGREEMENT) as session:
        return play(session.channel, "server")


SCRIPTED = Talk(_visit, _attend)


def converse(
    keys: Keys, limits: Limits, relay: Relay | None = None, *, frames: bool = False, talk: Talk = SCRIPTED
) -> tuple[Outcome, Outcome]:
    """Talk over TLS on loopback, through ``relay`` if given. Returns what client and server end with."""
    outcomes: dict[str, Outcome] = {}
    listening = listen("127.0.0.1", 0)
    listening.settimeout(30)
    port = listening.getsockname()[1]
    threads: list[threading.Thread] = []

    def serve() -> None:
        try:
            sock, _ = listening.accept()
            outcomes["server"] = talk.attend(Endpoint(keys.server, limits).accept(sock))
        except TimeoutError:
            outcomes["server"] = ConnectionLostError("nobody came")
        except PrivateError as error:
            outcomes["server"] = error

    threads.append(threading.Thread(target=serve))
    entrance = None
    if relay is not None:
        entrance = listen("127.0.0.1", 0)
        entrance.settimeout(30)
        front, target = entrance, port
        port = entrance.getsockname()[1]

        def pass_on() -> None:
            with ExitStack() as ends, suppress(OSError):
                near = ends.enter_context(front.accept()[0])
                far = ends.enter_context(socket.create_connection(("127.0.0.1", target), 30))
                for end in (near, far):
                    end.settimeout(30)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if frames:
                    near = ends.enter_context(tls(keys.server, near, server=True))
                    far = ends.enter_context(tls(keys.client, far, server=False))
                relay.run(near, far, read_frame if frames else read_record)

        threads.append(threading.Thread(target=pass_on))
    for thread in threads:
        thread.start()
    try:
        outcomes["client"] = talk.visit(Endpoint(keys.client, limits), port)
    except PrivateError as error:
        outcomes["client"] = error
    threads[0].join(60)
    if relay is not None:
        relay.over.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    listening.close()
    if entrance is not None:
        entrance.close()
    return outcomes["client"], outcomes["server"]


# What the party at the receiving end of the broken frame may end with. The other party learns it by an abort, by the
# lost connection or by its own time-out.
INSIDE_TLS: dict[Fault, tuple[type[ProtocolError], ...]] = {
    Fault.DROP: (ProtocolError, TimeLimitError, PeerAbortedError),  # whose time-out runs out first
    Fault.CUT: (ConnectionLostError,),
    Fault.REPEAT: (ProtocolError,),
    Fault.SWAP: (ProtocolError, TimeLimitError, PeerAbortedError),
    Fault.FLIP: (ProtocolError,),
    Fault.STALL: (TimeLimitError,),
}

Judge = Callable[[Attack, Relay, Outcome, Outcome], bool]


def judge_by(table: dict[Fault, tuple[type[ProtocolError], ...]], seen: dict[str, list[bytes]]) -> Judge:
    """The victim's error must be of the class in the table, and the other party must end with an error too.

    Exempt is the end: nobody listens after the last unit of a direction, and a server that has heard the client's
    farewell has rightly finished, whatever becomes of its answer.
    """

    def judge(attack: Attack, relay: Relay, client: Outcome, server: Outcome) -> bool:
        victim, other = (server, client) if attack.way == "up" else (client, server)
        last = len(seen[attack.way]) - 1
        broken = attack.k + (attack.fault is Fault.REPEAT)
        if broken > last:
            return True
        if relay.hit[0] == CHANGE_CIPHER_SPEC and isinstance(victim, bytes) and isinstance(other, bytes):
            return True  # below TLS: 1.3 sends this record for old middleboxes only and gives it no meaning
        lost = (ConnectionLostError,) if broken == last else ()
        excused = attack.way == "down" and broken == last
        return type(victim) in table[attack.fault] + lost and (isinstance(other, ProtocolError) or excused)

    return judge
