"""One run between two parties: a handshake that binds everything public, and keys that belong to that run alone.

Before any cryptography starts both sides compare protocol version, both certificates, the digest of the program, the
parameters and the offline batch, and mix all of it with a nonce of each into the session id (SHA-256, assumed
collision resistant). Both then prove to hold the same id. It runs inside TLS 1.3 with mutual certificates, which keeps
the network out; Python's ``ssl`` offers no channel exporter, so the certificates that each side sees are bound instead.
The peer is semi-honest: a mismatch is called a configuration mismatch, and says which public field differs.

The session id is public. So are the keys of :meth:`Session.key`: they separate the domains of hashes and tweaks of the
protocol's steps (HKDF, RFC 5869), so that none repeats in another step or session, and never hide anything.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol, cast, get_args

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from deepreshape.private.errors import ConfigurationMismatchError, LostBatchError, ProtocolError
from deepreshape.private.transport.certificates import Identity, Role
from deepreshape.private.transport.channel import Channel, Frame
from deepreshape.private.transport.ledger import Phase

VERSION = 4
"""2 since the server claims and the client confirms first, so that no half is left at the server alone; 3 since
responses are packed, under keys that the client sends beside its public one."""
HELLO_BYTES = 4096
"""Every greeting has this length: the receiver knows it, and it tells nothing."""
CONFIRMATION_BYTES = 32

Parameters = Mapping[str, int | str]
DIGEST = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
BATCH = "offline batch"
"""Label of the field that names the batch."""


@dataclass(frozen=True)
class Agreement:
    """What both parties must bring along alike.

    Attributes:
        program: SHA-256 of the program that is to run, 64 hexadecimal digits.
        parameters: public settings by name: integers, booleans and short strings.
        batch: the offline batch to use up, named by the id of the session that made it; empty if none is used.
    """

    program: str
    parameters: Parameters
    batch: str = ""

    def __post_init__(self) -> None:
        if not DIGEST.fullmatch(self.program):
            raise ValueError(f"program {self.program!r}: needs a SHA-256 as 64 hexadecimal digits")
        if self.batch and not DIGEST.fullmatch(self.batch):
            raise ValueError(f"batch {self.batch!r}: needs a session id as 64 hexadecimal digits, or nothing")
        for name, value in self.parameters.items():
            if not NAME.fullmatch(name) or not isinstance(cast(object, value), int | str):
                raise ValueError(f"parameter {name!r}={value!r}: needs a plain name, and an integer or string as value")


@dataclass(frozen=True)
class Session:
    """An agreed run. Protocol steps talk through ``channel`` and take their domain keys from :meth:`key`."""

    channel: Channel
    role: Role
    peer: Identity
    id: bytes
    agreement: Agreement

    def key(self, purpose: str, layer: str, phase: Phase, direction: Role, counter: int, nbytes: int = 16) -> bytes:
        """A public key for one use: equal on both sides, and different whenever any argument or the session is.

        Args:
            purpose: the step that uses it, such as ``"half-gates"``.
            layer: name of the layer in the program.
            phase: the phase the key is used in.
            direction: who sends what the key is used for.
            counter: which batch or chunk of that layer.
            nbytes: its length; keys of different lengths have nothing in common.

        Raises:
            ValueError: if a label is not one of those above.
        """
        if phase not in get_args(Phase) or direction not in get_args(Role) or counter < 0:
            raise ValueError(f"no key for phase {phase!r}, direction {direction!r}, counter {counter}")
        label = _canonical(["deepreshape key", purpose, layer, phase, direction, counter, nbytes])
        return HKDF(SHA256(), nbytes, salt=self.id, info=label).derive(self.id)


class Connection(Channel, Protocol):
    """A channel whose two ends are known by certificate; ``TlsChannel`` is one."""

    identity: Identity
    peer: Identity

    def renumber(self, outgoing: int, incoming: int) -> None:
        """Continue both directions at these sequence numbers."""
        ...

    def abort(self, reason: str, *, batch_lost: bool = False) -> None:
        """End the session; the peer is told that it is over, and of the reason only whether a batch is lost."""
        ...

    def finish(self) -> None:
        """End the session in good order."""
        ...


class State(Enum):
    """Where a handshake stands."""

    START = "start"
    PROPOSED = "proposed"
    GREETED = "greeted"
    CONFIRMED = "confirmed"
    OPEN = "open"


class Transition(NamedTuple):
    """The one frame that may pass in a state, who sends it, and the state after it."""

    sender: Role
    frame: Frame
    then: State


MACHINE: dict[State, Transition] = {
    State.START: Transition("client", Frame.HELLO, State.PROPOSED),
    State.PROPOSED: Transition("server", Frame.HELLO, State.GREETED),
    State.GREETED: Transition("client", Frame.READY, State.CONFIRMED),
    State.CONFIRMED: Transition("server", Frame.READY, State.OPEN),
}
"""An open session goes on by its program, in which every receive names the one frame and length that may come."""


@contextmanager
def client_session(connection: Connection, agreement: Agreement) -> Generator[Session]:
    """Greet the server; inside is the session. Left normally it is finished, left by an error it is aborted.

    Raises:
        ConfigurationMismatchError: naming every public field in which the server differs.
        ProtocolError: if the handshake breaks off, or the session does not end cleanly.
    """
    with _ended(connection):
        yield _handshake(_Talk(connection, "client", agreement))
        connection.finish()


@contextmanager
def server_session(connection: Connection, choose: Callable[[Agreement], Agreement]) -> Generator[Session]:
    """Answer a client; inside is the session. Left normally it is finished, left by an error it is aborted.

    Args:
        connection: from :meth:`~deepreshape.private.transport.tls.Endpoint.accept`; ``connection.peer`` is the client.
        choose: is given what the client proposes and returns what this server agrees to: its own program and
            parameters, and the proposed batch if its store holds that batch for this client.

    Raises:
        ConfigurationMismatchError: naming every public field in which the client differs.
        ProtocolError: if the handshake breaks off, or the session does not end cleanly.
    """
    with _ended(connection):
        yield _handshake(_Talk(connection, "server", choose))
        connection.finish()


@contextmanager
def _ended(connection: Connection) -> Generator[None]:
    try:
        yield
    except BaseException as error:
        # later callers of the channel are told the reason; the text of an unforeseen error might hold a secret
        reason = str(error) if isinstance(error, ProtocolError) else type(error).__name__
        connection.abort(reason, batch_lost=isinstance(error, LostBatchError))
        raise


@dataclass(frozen=True)
class Greeting:
    """What each side tells the other first: all that must be equal, as that side sees it, and its nonce."""

    client: str
    server: str
    agreement: Agreement
    nonce: str

    def encode(self) -> bytes:
        """Canonical JSON, filled up with spaces to ``HELLO_BYTES``.

        Raises:
            ValueError: if the parameters do not fit.
        """
        text = _canonical(
            {
                "version": VERSION,
                "client": self.client,
                "server": self.server,
                "program": self.agreement.program,
                "parameters": dict(self.agreement.parameters),
                "batch": self.agreement.batch,
                "nonce": self.nonce,
            }
        )
        if len(text) > HELLO_BYTES:
            raise ValueError(f"the greeting takes {len(text)} bytes of {HELLO_BYTES}: use fewer or shorter parameters")
        return text.ljust(HELLO_BYTES)

    @staticmethod
    def decode(data: bytes) -> Greeting:
        """The greeting in ``data``.

        Raises:
            ConfigurationMismatchError: if the peer speaks another version.
            ProtocolError: if ``data`` is anything but the canonical JSON of just these fields.
        """
        text = data.rstrip(b" ")
        try:
            value: object = json.loads(text)
            canonical = _canonical(value) == text
        except (ValueError, RecursionError):
            canonical, value = False, None
        if not canonical or not isinstance(value, dict):
            raise ProtocolError("the peer's greeting is not canonical JSON")
        fields = cast(dict[str, object], value)
        version = fields.pop("version", None)
        if type(version) is not int or version != VERSION:
            raise ConfigurationMismatchError(
                {"version": f"version {VERSION} here, {_shown(version)} there; install the same deepreshape"}
            )
        if set(fields) != {"client", "server", "program", "parameters", "batch", "nonce"}:
            raise ProtocolError(f"the peer's greeting has the fields {_shown(sorted(fields))}")
        try:
            program, batch = cast(str, fields["program"]), cast(str, fields["batch"])
            agreement = Agreement(program, cast(Parameters, fields["parameters"]), batch)
            return Greeting(_digest(fields["client"]), _digest(fields["server"]), agreement, _digest(fields["nonce"]))
        except (ValueError, TypeError, AttributeError):
            raise ProtocolError("the peer's greeting has a field of the wrong form") from None

    def differences(self, theirs: Greeting) -> dict[str, str]:
        """Each public field in which ``theirs`` differs from this one, with both values."""
        here, there = self._labelled(), theirs._labelled()
        return {
            label: f"{label} {_shown(here.get(label))} here, {_shown(there.get(label))} there"
            for label in {**here, **there}
            if _canonical(here.get(label)) != _canonical(there.get(label))  # as JSON, where true is not 1
        }

    def _labelled(self) -> dict[str, object]:
        return {
            "client certificate": self.client,
            "server certificate": self.server,
            "program digest": self.agreement.program,
            BATCH: self.agreement.batch,
            **{f"parameter {name}": value for name, value in self.agreement.parameters.items()},
        }


@dataclass
class _Talk:
    """One party's side of a handshake under way."""

    connection: Connection
    role: Role
    agreement: Agreement | Callable[[Agreement], Agreement]
    """Ours; a server chooses it when it has heard what the client proposes."""
    greetings: dict[Role, bytes] = field(default_factory=dict[Role, bytes])

    def __post_init__(self) -> None:
        local, peer = self.connection.identity.role, self.connection.peer.role
        if local != self.role or peer == self.role:
            raise ProtocolError(
                f"certificates say {local} here and {peer} there, but this side acts as the {self.role}"
            )

    def agreed(self) -> Agreement:
        return cast(Agreement, self.agreement)  # a server has chosen by the time it answers

    def greeting(self) -> bytes:
        ends: dict[Role, Identity] = {
            self.role: self.connection.identity,
            self.connection.peer.role: self.connection.peer,
        }
        client, server = ends["client"].fingerprint, ends["server"].fingerprint
        ours = Greeting(client, server, self.agreed(), secrets.token_hex(32))
        self.greetings[self.role] = ours.encode()
        return self.greetings[self.role]

    def greeted(self, data: bytes) -> None:
        theirs = Greeting.decode(data)
        self.greetings[self.connection.peer.role] = data
        if not isinstance(self.agreement, Agreement):
            self.agreement = self.agreement(theirs.agreement)

    def compare(self) -> None:
        """Say what differs. A server gets here after it has answered, so that both sides can say it."""
        ours, theirs = (Greeting.decode(self.greetings[role]) for role in (self.role, self.connection.peer.role))
        if differences := ours.differences(theirs):
            raise ConfigurationMismatchError(differences)
        if ours.nonce == theirs.nonce:
            raise ProtocolError("the peer sent our own nonce back")

    def session_id(self) -> bytes:
        """Both greetings have one fixed length and name all that is bound, as each side sees it."""
        return hashlib.sha256(b"deepreshape session" + self.greetings["client"] + self.greetings["server"]).digest()

    def confirmation(self) -> bytes:
        return _confirmation(self.role, self.session_id())

    def confirmed(self, data: bytes) -> None:
        if not hmac.compare_digest(data, _confirmation(self.connection.peer.role, self.session_id())):
            raise ProtocolError("the peer confirmed another session id than ours")


def _handshake(talk: _Talk) -> Session:
    connection, role = talk.connection, talk.role
    turns = {
        Frame.HELLO: (talk.greeting, talk.greeted, HELLO_BYTES),
        Frame.READY: (talk.confirmation, talk.confirmed, CONFIRMATION_BYTES),
    }
    state = State.START
    while state is not State.OPEN:
        sender, frame, after = MACHINE[state]
        compose, check, nbytes = turns[frame]
        if sender == role:
            connection.send(frame, compose())
        else:
            check(bytes(connection.receive(frame, nbytes)))
        if after is State.GREETED:
            talk.compare()
        state = after
    session = Session(connection, role, connection.peer, talk.session_id(), talk.agreed())
    outgoing, incoming = (
        int.from_bytes(session.key("sequence numbers", "", "setup", sender, 0, 8), "little")
        for sender in (role, connection.peer.role)
    )
    connection.renumber(outgoing, incoming)
    return session


def _confirmation(role: Role, session_id: bytes) -> bytes:
    return hashlib.sha256(b"deepreshape confirm " + role.encode() + session_id).digest()


def _digest(value: object) -> str:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise ValueError("not 64 hexadecimal digits")
    return value


def _shown(value: object) -> str:
    """A value in a message: printable ASCII of bounded length, whatever the peer sent."""
    if value is None or value == "":
        return "none"
    text = value if isinstance(value, str) and DIGEST.fullmatch(value) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
