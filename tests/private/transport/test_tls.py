"""The transport under every fault of a relay, and its own limits."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.relay import (
    INSIDE_TLS,
    PATIENT,
    SCRIPT,
    Attack,
    Fault,
    Judge,
    Keys,
    Outcome,
    Relay,
    brief,
    converse,
    expected_result,
    judge_by,
    tls,
)

from deepreshape.private.errors import (
    ConnectionLostError,
    LostBatchError,
    PeerAbortedError,
    ProtocolError,
    RefusedError,
    TimeLimitError,
)
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.tls import HEADER, SLICE, EmulatedLink, Endpoint, Limits, TlsChannel, listen


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys"))


def pair(keys: Keys, limits: Limits = PATIENT, link: EmulatedLink | None = None) -> tuple[TlsChannel, TlsChannel]:
    """Client and server end of one connection."""
    with listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(1) as pool:
        served = pool.submit(lambda: Endpoint(keys.server, limits).accept(listening.accept()[0]))
        client = Endpoint(keys.client, limits, link).connect("127.0.0.1", listening.getsockname()[1])
        return client, served.result()


class Raw:
    """A client end with the right key that writes whatever bytes it likes inside TLS."""

    def __init__(self, keys: Keys, limits: Limits = PATIENT) -> None:
        with listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(1) as pool:
            served = pool.submit(lambda: Endpoint(keys.server, limits).accept(listening.accept()[0]))
            self.sock = tls(keys.client, socket.create_connection(listening.getsockname()), server=False)
            self.server = served.result()
        self.sock.settimeout(30)

    def close(self) -> None:
        self.sock.close()
        self.server.abort("the test is over")


@pytest.fixture
def raw(keys: Keys):
    end = Raw(keys)
    yield end
    end.close()


def attack_all(keys: Keys, attacks: list[Attack], judge: Judge, *, frames: bool) -> None:
    """Carry out every attack and judge how client and server end. Never may either have a wrong result.

    Most of a run is waiting for a time-out, so they run side by side. On a busy machine a short time-out may also run
    out where none should; the attack is then tried again with longer ones, and judged by the last try.
    """

    def one(attack: Attack) -> None:
        for limits in attack.fault.limits:
            relay = Relay(attack)
            client, server = converse(keys, limits, relay, frames=frames)
            assert all(isinstance(end, ProtocolError) or end == expected_result() for end in (client, server))
            if relay.hit and judge(attack, relay, client, server):
                return
        raise AssertionError(f"{attack.fault.value} {attack.way} unit {attack.k}: {client!r} / {server!r}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, attacks))


def units(keys: Keys, *, frames: bool) -> Relay:
    """What passes in a conversation that nobody disturbs."""
    relay = Relay()
    assert converse(keys, PATIENT, relay, frames=frames) == (expected_result(), expected_result())
    return relay


# What the party at the receiving end of the broken unit may end with, below TLS. The other party learns it by an abort,
# by the lost connection or by its own time-out. TLS refuses a handshake with RefusedError.
LOST = (ConnectionLostError, RefusedError)
BELOW_TLS: dict[Fault, tuple[type[ProtocolError], ...]] = {
    Fault.DROP: (*LOST, TimeLimitError),
    Fault.CUT: LOST,
    Fault.REPEAT: LOST,
    Fault.SWAP: (*LOST, TimeLimitError),
    Fault.FLIP: LOST,
    Fault.STALL: (TimeLimitError,),
}


@pytest.mark.parametrize("fault", BELOW_TLS)
def test_network_attacker_breaks_any_record(keys: Keys, fault: Fault) -> None:
    seen = units(keys, frames=False).seen
    attacks = [Attack(fault, way, k) for way in seen for k in range(len(seen[way]))]
    attack_all(keys, attacks, judge_by(BELOW_TLS, seen), frames=False)


@pytest.mark.parametrize("fault", INSIDE_TLS)
def test_attacker_with_both_keys_breaks_any_frame(keys: Keys, fault: Fault) -> None:
    seen = units(keys, frames=True).seen
    scripted = [sum(turn.sender == who for turn in SCRIPT) for who in ("client", "server")]
    assert [len(seen[way]) for way in seen] == [3 + frames for frames in scripted]
    flips = [0, 1, 8, 9, 16] if fault is Fault.FLIP else [-1]  # first and last byte of kind, length and number
    attacks = [Attack(fault, way, k, at) for way in seen for k in range(len(seen[way])) for at in flips]
    attack_all(keys, attacks, judge_by(INSIDE_TLS, seen), frames=True)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("at", [HEADER.size, HEADER.size + 20, -1])
def test_changed_handshake_payload_is_refused(keys: Keys, way: str, k: int, at: int) -> None:
    client, server = converse(keys, PATIENT, Relay(Attack(Fault.FLIP, way, k, at)), frames=True)
    assert isinstance(client, ProtocolError)
    assert isinstance(server, ProtocolError)


def test_frames_of_an_earlier_session_do_not_fit(keys: Keys) -> None:
    tape = units(keys, frames=True).seen
    attacks = [Attack(Fault.REPLACE, way, k, replacement=frame) for way in tape for k, frame in enumerate(tape[way])]

    def judge(attack: Attack, relay: Relay, client: Outcome, server: Outcome) -> bool:
        victim, other = (server, client) if attack.way == "up" else (client, server)
        farewell = attack.way == "down" and attack.k == len(tape["down"]) - 1
        noticed = "expected frame" in str(victim) or "another session id" in str(victim)
        told = isinstance(victim, PeerAbortedError) and attack.k < 2  # the other side found the greeting stale first
        return (noticed or told) and (isinstance(other, ProtocolError) or farewell)

    attack_all(keys, attacks, judge, frames=True)


def test_every_session_numbers_its_frames_differently(keys: Keys) -> None:
    numbers = set()
    for _ in range(3):
        seen = units(keys, frames=True).seen
        numbers |= {HEADER.unpack(seen[way][2][: HEADER.size])[2] for way in seen}
    assert len(numbers) == 6


def test_bytes_are_booked_and_nothing_is_copied(keys: Keys) -> None:
    client, server = pair(keys)
    sent = np.arange(1 << 20, dtype=np.uint32).reshape(1024, 1024)
    out = np.zeros_like(sent)
    tracemalloc.start()
    at_layer = client.ledger.at("layer1", "offline"), server.ledger.at("layer1", "offline")
    with ThreadPoolExecutor(1) as pool, at_layer[0], at_layer[1]:
        done = pool.submit(client.send, Frame.TABLES, sent)
        server.receive_into(Frame.TABLES, out)
        done.result()
        server.send(Frame.READY, b"")
        client.receive(Frame.READY, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(out, sent)
    assert peak < sent.nbytes // 4
    row, other = client.ledger.traffic["layer1", "offline"], server.ledger.traffic["layer1", "offline"]
    assert (row.sent, row.received, row.frames_sent, row.rounds) == (sent.nbytes, 0, 1, 1)
    assert (other.sent, other.received, other.frames_received, other.rounds) == (0, sent.nbytes, 1, 0)
    with ThreadPoolExecutor(1) as pool:
        finished = pool.submit(client.finish)
        server.finish()
        finished.result()


def test_received_payload_is_writable_and_exact(keys: Keys) -> None:
    client, server = pair(keys)
    client.send(Frame.SHARES, np.arange(5, dtype=np.int64))
    view = server.receive(Frame.SHARES, 40)
    view[:8] = bytes(8)
    np.testing.assert_array_equal(np.frombuffer(view, np.int64), [0, 1, 2, 3, 4])
    with pytest.raises(TypeError, match="read-only"):
        server.receive_into(Frame.SHARES, b"12345678")
    with pytest.raises((TypeError, ValueError), match="contiguous"):
        client.send(Frame.SHARES, np.zeros((4, 4))[:, :2])
    client.abort("over")
    server.abort("over")


@pytest.mark.parametrize("announced", [0, 39, 41, 1 << 32, (1 << 64) - 1])
def test_wrong_length_is_refused_before_it_is_allocated(raw: Raw, announced: int) -> None:
    raw.sock.sendall(HEADER.pack(Frame.SHARES, announced, 0))
    tracemalloc.start()
    with pytest.raises(ProtocolError, match=f"sent SHARES of {announced} bytes, expected SHARES of 40"):
        raw.server.receive(Frame.SHARES, 40)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert raw.sock.recv(100) == HEADER.pack(Frame.ABORT, 1, 0) + b"\x01"
    with pytest.raises(ProtocolError, match="is over: client 'alice' sent SHARES"):
        raw.server.receive(Frame.SHARES, 40)


def test_every_refusal_tells_the_peer_the_same(keys: Keys) -> None:
    wrong = [
        HEADER.pack(Frame.SHARES, 1, 0),
        HEADER.pack(Frame.SHARES, 8, 7),
        HEADER.pack(Frame.LABELS, 8, 0),
        HEADER.pack(0, 8, 0),
        HEADER.pack(255, 8, 0),
    ]
    answers = set()
    for header in wrong:
        raw = Raw(keys)
        raw.sock.sendall(header)
        with pytest.raises(ProtocolError):
            raw.server.receive(Frame.SHARES, 8)
        answers.add(raw.sock.recv(100))
        raw.close()
    assert answers == {HEADER.pack(Frame.ABORT, 1, 0) + b"\x01"}


def test_peer_that_aborts_is_named_and_says_no_more(keys: Keys) -> None:
    client, server = pair(keys)
    server.abort("a reason that stays here")
    with pytest.raises(PeerAbortedError, match="server 'bob' aborted the session instead of sending LABELS"):
        client.receive(Frame.LABELS, 16)
    for end, why in ((client, "'bob' aborted it"), (server, "a reason that stays here")):
        with pytest.raises(ProtocolError, match=f"is over: .*{why}"):
            end.send(Frame.LABELS, b"")


def test_a_peer_that_is_sending_learns_that_its_batch_is_lost(keys: Keys) -> None:
    """The abort crosses a frame that fits no socket's buffer; closed at once, the socket would reset the connection."""
    client, server = pair(keys)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(server.abort, "a damaged half", batch_lost=True)
        client.send(Frame.TABLES, bytes(100 * SLICE))
        with pytest.raises(LostBatchError, match="server 'bob' has a damaged half of this batch"):
            client.receive(Frame.LABELS, 16)
        ended.result()


def test_abort_inside_a_frame_is_not_read_as_its_rest(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = pair(keys, link=EmulatedLink(delay_s=0.0))
    pauses = iter([None] * 3)  # before the turn, the header and the first slice; interrupted before the second

    def interrupted(_: float) -> None:
        if next(pauses, "over"):
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(server.receive, Frame.TABLES, SLICE + 10)
        with pytest.raises(KeyboardInterrupt):
            client.send(Frame.TABLES, bytes(SLICE + 10))
        with pytest.raises(ProtocolError, match="was interrupted and cannot be continued"):
            client.send(Frame.LABELS, b"")
        assert isinstance(received.exception(60), ConnectionLostError)


def test_session_that_took_too_long_sends_nothing_more(keys: Keys) -> None:
    client, server = pair(keys, Limits(session_s=0.1))
    time.sleep(0.15)
    with pytest.raises(TimeLimitError, match=r"took over 0\.1 s \(session_s\)"):
        client.send(Frame.LABELS, b"")
    server.abort("the test is over")


def test_bytes_after_the_last_frame_are_refused(raw: Raw) -> None:
    raw.sock.sendall(HEADER.pack(Frame.READY, 0, 0) + b"x")
    with pytest.raises(ProtocolError, match="sent bytes after the last frame"):
        raw.server.finish()


def test_secrets_are_in_no_text_and_no_key_log(
    keys: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keylog"))
    caplog.set_level(0)
    planted = b"PLANTED-SECRET"
    client, server = pair(keys)
    client.send(Frame.LABELS, planted)
    with pytest.raises(ProtocolError) as refused:
        server.receive(Frame.LABELS, len(planted) + 1)
    with pytest.raises(ProtocolError) as told:
        client.receive(Frame.READY, 0)
    texts = [*map(repr, (client, server, refused.value, told.value, Endpoint(keys.client))), caplog.text]
    secret = [line for line in keys.client.key.read_text().splitlines() if "PRIVATE" not in line]
    for text in texts:
        assert not any(word in text for word in ("PLANTED", *secret)), text
    assert not (tmp_path / "keylog").exists()


def test_cap_holds_for_both_directions(keys: Keys) -> None:
    client, server = pair(keys, Limits(frame_bytes=1000))
    with pytest.raises(ValueError, match="TABLES frame of 1001 bytes: at most 1000"):
        client.send(Frame.TABLES, bytes(1001))
    with pytest.raises(ValueError, match="at most 1000"):
        server.receive(Frame.TABLES, 1001)
    client.send(Frame.TABLES, bytes(1000))
    assert server.receive(Frame.TABLES, 1000).nbytes == 1000
    client.abort("over")
    server.abort("over")


def test_two_senders_at_once_time_out_instead_of_waiting_for_ever(keys: Keys) -> None:
    ends = pair(keys, Limits(write_s=0.3))
    big = np.zeros(1 << 26, np.uint8)
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(end.send, Frame.TABLES, big) for end in ends]
        errors = [each.exception() for each in sent]
    assert any(isinstance(error, TimeLimitError) for error in errors)
    assert all(isinstance(error, TimeLimitError | ConnectionLostError) for error in errors)
    assert any("or sending itself" in str(error) for error in errors)


def test_a_drip_of_bytes_ends_with_the_session(keys: Keys) -> None:
    raw = Raw(keys, Limits(read_s=5, session_s=0.5))
    stop = threading.Event()

    def drip() -> None:
        try:
            for byte in itertools.cycle(HEADER.pack(Frame.TABLES, 1 << 20, 0)):
                raw.sock.sendall(bytes([byte]))
                if stop.wait(0.05):
                    return
        except OSError:
            return

    with ThreadPoolExecutor(1) as pool:
        dripped = pool.submit(drip)
        with pytest.raises(TimeLimitError, match="session_s"):
            raw.server.receive(Frame.TABLES, 1 << 20)
        stop.set()
        dripped.result()
    raw.close()


def test_silent_connection_does_not_hold_a_server(keys: Keys) -> None:
    silent = pytest.raises(TimeLimitError, match="connect_s")
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()), silent:
        Endpoint(keys.server, brief()).accept(listening.accept()[0])


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(100)])
@pytest.mark.parametrize("reset", [False, True])
def test_visitors_without_tls_are_only_refused(keys: Keys, first: bytes, reset: bool) -> None:
    with listen("127.0.0.1", 0) as listening:
        with socket.create_connection(listening.getsockname()) as visitor:
            if reset:
                visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            visitor.sendall(first)
        sock, _ = listening.accept()
        with pytest.raises((RefusedError, ConnectionLostError), match="a connecting party: "):
            Endpoint(keys.server, PATIENT).accept(sock)


def test_a_visitor_that_is_gone_in_the_handshake_hung_up(keys: Keys) -> None:
    with listen("127.0.0.1", 0) as listening:
        with socket.create_connection(listening.getsockname()) as visitor:
            visitor.sendall(b"\x16\x03\x01")
        with pytest.raises(ConnectionLostError, match=r"gone during the TLS handshake: it hung up, or was killed$"):
            Endpoint(keys.server, PATIENT).accept(listening.accept()[0])


def test_nobody_listens(keys: Keys) -> None:
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ConnectionLostError, match=f"cannot connect to 127.0.0.1:{port}: Connection refused"):
        Endpoint(keys.client).connect("127.0.0.1", port)


def test_what_is_no_name_of_a_host_is_one_line(keys: Keys) -> None:
    with pytest.raises(ConnectionLostError, match=r"cannot connect to a{70}:7: .*label"):
        Endpoint(keys.client).connect("a" * 70, 7)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_no_limit_is_infinite(value: float) -> None:
    with pytest.raises(ValueError, match="read_s="):
        Limits(read_s=value)


def test_link_delays_turns_not_frames(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    client, server = pair(keys, link=EmulatedLink(delay_s=50.0, bytes_per_s=1.0))
    for _ in range(2):
        client.send(Frame.TABLES, bytes(3000))
        client.send(Frame.LABELS, bytes(1000))
        server.receive(Frame.TABLES, 3000)
        server.receive(Frame.LABELS, 1000)
        server.send(Frame.READY, b"")
        client.receive(Frame.READY, 0)
    assert slept.count(50.0) == 2
    assert max(s for s in slept if s != 50.0) == pytest.approx(4000, abs=40)
    client.abort("over")
    server.abort("over")


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([*Frame, 0, 255]),
    length=st.sampled_from([32, 0, 31, 33]),
    number=st.sampled_from([0, 1]),
    extra=st.binary(min_size=30, max_size=40),
)
@example(kind=Frame.LABELS, length=32, number=0, extra=bytes(32))
def test_only_the_expected_frame_gets_through(keys: Keys, kind: int, length: int, number: int, extra: bytes) -> None:
    raw = Raw(keys)
    raw.sock.sendall(HEADER.pack(kind, length, number) + extra[:length])
    raw.sock.close()
    fits = (kind, length, number) == (Frame.LABELS, 32, 0) and len(extra) >= 32
    try:
        assert bytes(raw.server.receive(Frame.LABELS, 32)) == extra[:32]
        assert fits
    except ProtocolError:
        assert not fits
    raw.close()
