"""The handshake binds everything public, and keys belong to one session."""

from __future__ import annotations

import hmac
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreshape.private.errors import ConfigurationMismatchError, ProtocolError
from deepreshape.private.transport.certificates import Identity, Role
from deepreshape.private.transport.channel import Channel, Frame, Payload
from deepreshape.private.transport.handshake import (
    HELLO_BYTES,
    MACHINE,
    Agreement,
    Greeting,
    Session,
    State,
    client_session,
    server_session,
)
from deepreshape.private.transport.ledger import Ledger, Phase
from deepreshape.private.transport.memory import MemoryChannel, memory_pair

ALICE = Identity("client", "alice", "a1" * 32)
BOB = Identity("server", "bob", "b0" * 32)
AGREED = Agreement("cd" * 32, {"bits": 32, "garbler": "server", "packed": True}, "ef" * 32)


@dataclass
class Ends:
    """A memory channel that knows who is at its ends, and tells what was done to it."""

    channel: MemoryChannel
    identity: Identity
    peer: Identity
    log: list[object] = field(default_factory=list)
    edit: Callable[[Frame, bytes], bytes] = lambda kind, data: data

    @property
    def ledger(self) -> Ledger:
        return self.channel.ledger

    @ledger.setter
    def ledger(self, value: Ledger) -> None:
        self.channel.ledger = value

    def send(self, kind: Frame, payload: Payload) -> None:
        self.log.append(kind)
        self.channel.send(kind, self.edit(kind, bytes(payload)))

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        return self.channel.receive(kind, nbytes)

    def receive_into(self, kind: Frame, out: Payload) -> None:
        self.channel.receive_into(kind, out)

    def renumber(self, outgoing: int, incoming: int) -> None:
        self.log.append((outgoing, incoming))

    def abort(self, reason: str, *, batch_lost: bool = False) -> None:
        self.log.append(reason)
        self.channel.send(Frame.ABORT, b"\x01")

    def finish(self) -> None:
        self.log.append("finished")


def shake(
    client: Agreement = AGREED,
    server: Agreement = AGREED,
    *,
    edit: Callable[[Frame, bytes], bytes] | None = None,
    seen_by_server: Identity = ALICE,
) -> tuple[Session | Exception, Session | Exception, Ends, Ends]:
    """One handshake in two threads. Returns what each side ends with, and its end of the channel."""
    left, right = memory_pair()
    ours, theirs = Ends(left, ALICE, BOB), Ends(right, BOB, seen_by_server)
    if edit:
        ours.edit = edit

    def visit() -> Session:
        with client_session(ours, client) as session:
            return session

    def serve() -> Session:
        with server_session(theirs, lambda _: server) as session:
            return session

    with ThreadPoolExecutor(2) as pool:
        visited, served = pool.submit(visit), pool.submit(serve)
        sides = [done.exception(60) or done.result() for done in (visited, served)]
    return sides[0], sides[1], ours, theirs  # type: ignore[return-value]


def test_both_sides_agree_on_an_id_and_on_their_numbers() -> None:
    client, server, ours, theirs = shake()
    assert isinstance(client, Session)
    assert isinstance(server, Session)
    assert client.id == server.id
    assert len(client.id) == 32
    assert (client.role, client.peer, server.role, server.peer) == ("client", BOB, "server", ALICE)
    assert client.agreement == server.agreement == AGREED
    assert ours.log[:2] == theirs.log[:2] == [Frame.HELLO, Frame.READY]
    outgoing, incoming = ours.log[2]  # type: ignore[misc]
    assert theirs.log[2] == (incoming, outgoing)
    assert outgoing != incoming
    assert ours.log[3:] == theirs.log[3:] == ["finished"]


def test_no_two_sessions_have_one_id() -> None:
    ids = set()
    for _ in range(20):
        client = shake()[0]
        assert isinstance(client, Session)
        ids.add(client.id)
    assert len(ids) == 20


MISMATCHES = [
    (replace(AGREED, program="ce" * 32), f"program digest {'cd' * 32} here, {'ce' * 32} there"),
    (replace(AGREED, batch="00" * 32), f"offline batch {'ef' * 32} here, {'00' * 32} there"),
    (replace(AGREED, batch=""), f"offline batch {'ef' * 32} here, none there"),
    (replace(AGREED, parameters={**AGREED.parameters, "bits": 37}), "parameter bits 32 here, 37 there"),
    (replace(AGREED, parameters={**AGREED.parameters, "garbler": "client"}), 'garbler "server" here, "client" there'),
    (replace(AGREED, parameters={**AGREED.parameters, "packed": 1}), "parameter packed true here, 1 there"),
    (replace(AGREED, parameters={**AGREED.parameters, "k": 12}), "parameter k none here, 12 there"),
    (replace(AGREED, parameters={"bits": 32, "packed": True}), 'parameter garbler "server" here, none there'),
]


@pytest.mark.parametrize(("there", "says"), MISMATCHES)
def test_mismatch_names_the_field_on_both_sides(there: Agreement, says: str) -> None:
    client, server, ours, theirs = shake(server=there)
    assert type(client) is type(server) is ConfigurationMismatchError
    assert str(client).startswith("configuration mismatch: ")
    assert says in str(client)
    assert "attack" not in str(client)
    assert " here, " in str(server)
    assert Frame.READY not in ours.log + theirs.log  # nothing is confirmed, and no cryptography starts


def test_every_difference_is_named() -> None:
    client, *_ = shake(server=Agreement("00" * 32, {"bits": 1}, ""))
    for word in ("program digest", "offline batch", "parameter bits", "parameter garbler", "parameter packed"):
        assert word in str(client)


def test_other_certificate_is_a_mismatch() -> None:
    client, server, *_ = shake(seen_by_server=replace(ALICE, fingerprint="a2" * 32))
    assert f"client certificate {'a1' * 32} here, {'a2' * 32} there" in str(client)
    assert f"client certificate {'a2' * 32} here, {'a1' * 32} there" in str(server)


def greeting_with(**changes: object) -> Callable[[Frame, bytes], bytes]:
    """Change fields of the client's greeting; ``None`` takes a field away."""

    def edit(kind: Frame, data: bytes) -> bytes:
        if kind is not Frame.HELLO:
            return data
        fields = {**json.loads(data), **changes}
        fields = {name: value for name, value in fields.items() if value is not None}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode().ljust(HELLO_BYTES)

    return edit


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 5}, "version 4 here, 5 there"),
        ({"version": True}, "version 4 here, true there"),
        ({"version": None}, "version 4 here, none there"),
        ({"role": "server"}, "has the fields"),
        ({"nonce": None}, "has the fields"),
        ({"nonce": "11" * 31}, "field of the wrong form"),
        ({"nonce": 7}, "field of the wrong form"),
        ({"program": "CD" * 32}, "field of the wrong form"),
        ({"program": ["cd" * 32]}, "field of the wrong form"),
        ({"batch": 0.5}, "field of the wrong form"),
        ({"parameters": []}, "field of the wrong form"),
        ({"parameters": {"bits": 1.5}}, "field of the wrong form"),
        ({"parameters": {"bits": [32]}}, "field of the wrong form"),
        ({"parameters": {"a\nFORGED LOG LINE": 1}}, "field of the wrong form"),
    ],
)
def test_malformed_greeting_is_refused(changes: dict[str, object], says: str) -> None:
    client, server, *_ = shake(edit=greeting_with(**changes))
    assert isinstance(server, ProtocolError)
    assert says in str(server)
    assert "\n" not in str(server)
    assert isinstance(client, ProtocolError)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"[" * HELLO_BYTES,
        b'{"a":1,"a":1}',
        b'{"a":NaN}',
        b'{ "version":1}',
        b"\xff",
        b"9" * 4090,
    ],
)
def test_anything_but_canonical_json_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        Greeting.decode(text.ljust(HELLO_BYTES))


@pytest.mark.parametrize(
    ("old", "new"), [(b'"batch":', b'"batch": '), (b'{"batch":', b'{"batch":"","batch":'), (b'"cdcd', b'"\\u0063dcd')]
)
def test_a_greeting_can_be_written_in_one_way_only(old: bytes, new: bytes) -> None:
    data = Greeting("a1" * 32, "b0" * 32, AGREED, "99" * 32).encode().rstrip()
    assert old in data
    with pytest.raises(ProtocolError, match="not canonical JSON"):
        Greeting.decode(data.replace(old, new).ljust(HELLO_BYTES))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(at=st.integers(0, HELLO_BYTES - 1), bit=st.integers(0, 7))
def test_a_changed_greeting_is_refused_or_read_as_different(at: int, bit: int) -> None:
    greeting = Greeting("a1" * 32, "b0" * 32, AGREED, "99" * 32)
    data = bytearray(greeting.encode())
    assert Greeting.decode(bytes(data)) == greeting
    data[at] ^= 1 << bit
    with suppress(ProtocolError):
        assert Greeting.decode(bytes(data)).encode() == data != greeting.encode()


def test_our_own_nonce_is_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda n: "77" * n)
    client, server, *_ = shake()
    assert "our own nonce" in str(client)
    assert "our own nonce" in str(server)


@pytest.mark.parametrize("kind", [Frame.READY, Frame.HELLO])
def test_changed_confirmation_or_greeting_ends_both(kind: Frame) -> None:
    def edit(got: Frame, data: bytes) -> bytes:
        # a digit of the nonce in a greeting, any bit in a confirmation
        if got is not kind:
            return data
        at = data.index(b'"nonce":"') + 9 if kind is Frame.HELLO else 0
        return data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :]

    client, server, *_ = shake(edit=edit)
    assert "confirmed another session id" in str(server)
    assert isinstance(client, ProtocolError)


def test_roles_come_from_certificates() -> None:
    left, right = memory_pair()
    for identity, peer in ((BOB, ALICE), (ALICE, ALICE)):
        with (
            pytest.raises(ProtocolError, match="but this side acts as the client"),
            client_session(Ends(left, identity, peer), AGREED),
        ):
            pass
    with (
        pytest.raises(ProtocolError, match="acts as the server"),
        server_session(Ends(right, BOB, BOB), lambda proposal: proposal),
    ):
        pass


def test_server_chooses_by_what_the_client_proposes() -> None:
    left, right = memory_pair()
    heard: list[Agreement] = []

    def choose(proposal: Agreement) -> Agreement:
        heard.append(proposal)
        return AGREED

    def serve() -> None:
        with server_session(Ends(right, BOB, ALICE), choose):
            pass

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        with client_session(Ends(left, ALICE, BOB), AGREED):
            pass
        served.result(60)
    assert heard == [AGREED]


def test_machine_has_one_frame_in_each_state_and_ends_open() -> None:
    state, path = State.START, []
    while state is not State.OPEN:
        sender, frame, state = MACHINE[state]
        path.append((sender, frame))
    assert path == list(itertools.product(("client", "server"), (Frame.HELLO,))) + list(
        itertools.product(("client", "server"), (Frame.READY,))
    )
    assert set(MACHINE) == set(State) - {State.OPEN}


@pytest.mark.parametrize("kind", [kind for kind in Frame if kind is not Frame.HELLO])
def test_no_other_frame_comes_before_the_greeting(kind: Frame) -> None:
    left, right = memory_pair()
    left.send(kind, bytes(HELLO_BYTES))
    with pytest.raises(ProtocolError, match="expected HELLO"), server_session(Ends(right, BOB, ALICE), lambda got: got):
        pass


def test_error_inside_aborts_and_its_text_is_not_kept() -> None:
    left, right = memory_pair()
    ours = Ends(left, ALICE, BOB)

    def serve() -> None:
        with server_session(Ends(right, BOB, ALICE), lambda proposal: proposal):
            pass

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        with pytest.raises(KeyError), client_session(ours, AGREED):
            raise KeyError("a secret")
        served.result(60)
    assert ours.log[-1] == "KeyError"


def session(number: int) -> Session:
    channel: Channel = memory_pair()[0]
    return Session(channel, "client", BOB, number.to_bytes(32, "big"), AGREED)


def test_no_key_repeats() -> None:
    labels = itertools.product(
        ("half-gates", "rows"), ("a", "b", ""), get_args(Phase), get_args(Role), (0, 1, 1 << 40), (16, 32)
    )
    keys = [session(number).key(*label)[:16] for label in labels for number in range(3)]
    assert len(set(keys)) == len(keys) == 2 * 3 * 3 * 2 * 3 * 2 * 3


def test_keys_do_not_depend_on_the_side_and_labels_do_not_run_together() -> None:
    one = session(1)
    assert one.key("p", "l", "offline", "client", 0) == replace(one, role="server").key(
        "p", "l", "offline", "client", 0
    )
    assert one.key("pl", "", "offline", "client", 0) != one.key("p", "l", "offline", "client", 0)
    assert one.key('p","l', "", "offline", "client", 0) != one.key("p", 'l","', "offline", "client", 0)
    for phase, direction, counter in (("later", "client", 0), ("offline", "me", 0), ("offline", "client", -1)):
        with pytest.raises(ValueError, match="no key for phase"):
            one.key("p", "l", phase, direction, counter)  # type: ignore[arg-type]


def test_key_is_hkdf_by_its_definition() -> None:
    """RFC 5869 written out with HMAC: both sides must derive what any other implementation derives."""
    one = session(7)
    label = b'["deepreshape key","half-gates","layer1.0.relu1","offline","server",3,40]'
    pseudorandom = hmac.digest(one.id, one.id, "sha256")
    first = hmac.digest(pseudorandom, label + b"\x01", "sha256")
    second = hmac.digest(pseudorandom, first + label + b"\x02", "sha256")
    assert one.key("half-gates", "layer1.0.relu1", "offline", "server", 3, 40) == (first + second)[:40]


@pytest.mark.parametrize(
    ("program", "parameters", "batch", "says"),
    [
        ("cd" * 31, {}, "", "needs a SHA-256"),
        ("cd" * 32, {}, "short", "needs a session id"),
        ("cd" * 32, {"bits": 1.5}, "", "parameter 'bits'=1.5"),
        ("cd" * 32, {"b its": 1}, "", "needs a plain name"),
    ],
)
def test_bad_agreement_gets_one_clear_line(program: str, parameters: dict[str, int], batch: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Agreement(program, parameters, batch)


def test_too_many_parameters_for_the_greeting() -> None:
    many = Agreement("cd" * 32, {f"parameter{number}": number for number in range(400)})
    with pytest.raises(ValueError, match=f"of {HELLO_BYTES}: use fewer"):
        Greeting("a1" * 32, "b0" * 32, many, "99" * 32).encode()
