"""A service with many visitors: several sessions at once, caps, crowds, signals, and two servers on one store."""

from __future__ import annotations

import json
import os
import resource
import select
import selectors
import signal
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from support.key_updates import library, send_key_updates
from support.programs import ONE_RELU, every_kind, random_inputs
from support.relay import PATIENT
from support.service import Served, served

from deepreshape.private.errors import ConnectionLostError, PeerAbortedError, ProtocolError, StoreError
from deepreshape.private.parties import manifest as manifest_file
from deepreshape.private.parties import store as store_file
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.sessions import InferenceClient
from deepreshape.private.parties.store import Store
from deepreshape.private.program import interpret as plain
from deepreshape.private.service.quotas import SHOWN, Caps
from deepreshape.private.service.service import SPARE_DESCRIPTORS, STATUS_S, Service, _allow_descriptors, _Session
from deepreshape.private.service.status import check_loopback
from deepreshape.private.transport.certificates import Credentials, create_authority, issue
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.handshake import HELLO_BYTES
from deepreshape.private.transport.tls import Endpoint, Limits, TlsChannel, listen

Open = Callable[[InferenceClient], TlsChannel]
X = random_inputs(ONE_RELU, 1, 1)
EXPECTED = plain.run(ONE_RELU, X)[0]
TURNED_AWAY = (PeerAbortedError, ConnectionLostError)
"""What a client sees that reached a cap; the second, if it was writing when the server hung up."""


def until(holds: Callable[[], bool]) -> None:
    """Wait for what another process will do."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def open_session() -> Iterator[Callable[[InferenceClient], TlsChannel]]:
    """A client connects and says nothing; its session is running at the server."""
    opened: list[TlsChannel] = []

    def connect(client: InferenceClient) -> TlsChannel:
        opened.append(client.endpoint.connect("127.0.0.1", client.port))
        return opened[-1]

    yield connect
    for channel in opened:
        channel.abort("over")


def status(server: Served) -> dict:
    code, text = read(server, "/status")
    assert code == 200
    return json.loads(text)


def read(server: Served, path: str, host: str = "localhost") -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", server.page, timeout=30)) as page:
        page.request("GET", path, headers={"Host": host})
        answer = page.getresponse()
        return answer.status, answer.read().decode()


def test_several_clients_at_once_and_each_gets_its_own_answer(open_session: Open, tmp_path: Path) -> None:
    program = every_kind()
    inputs = random_inputs(program, 4, 1)
    with served(tmp_path, program=program) as server, ThreadPoolExecutor(4) as threads:
        clients = [server.client(f"c{number}") for number in range(4)]
        open_session(server.client("idle"))  # one that says nothing holds up nobody
        answers = threads.map(lambda client, x: client.infer(x).output, clients, inputs)
        for output, expected in zip(answers, plain.run(program, inputs), strict=True):
            assert abs(output - expected).max() <= 1  # a unit of rounding
        until(lambda: status(server)["served"] == 8)
        assert status(server)["running"] == 1
        told = server.stop()
    assert json.loads(told[-1])["served"] == 8
    assert sum("prepared batches: 1" in line for line in told) == sum("answered a query" in line for line in told) == 4


def test_caps_hold_for_each_client_and_say_precisely_which(open_session: Open, tmp_path: Path) -> None:
    with served(tmp_path, Caps(sessions=3, sessions_each=2, batches_each=2, queries_hour_each=1)) as server:
        ann, bob = server.client("ann"), server.client("bob")
        held = [open_session(ann), open_session(ann)]
        until(lambda: status(server)["running"] == 2)
        with pytest.raises(TURNED_AWAY):
            ann.prepare()
        assert "client 'ann'" in (line := server.line())
        assert line.endswith("it has reached the cap of 2 sessions at once (sessions_each)")
        held.append(open_session(bob))
        until(lambda: status(server)["running"] == 3)
        with pytest.raises(TURNED_AWAY):
            server.client("eve").prepare()
        assert server.line().endswith("3 sessions at once in all (sessions)")
        for channel in held:
            channel.abort("over")
        until(lambda: status(server)["running"] == 0)

        ann.prepare()
        with pytest.raises(PeerAbortedError):  # it was greeted: it is told the one code
            list(ann.prepare_several(2))
        ann.prepare()
        bob.prepare()  # is not held to what another has
        assert np.array_equal(ann.infer(X[0]).output, EXPECTED)
        left = ann.store.folder / "fresh"
        assert len(list(left.iterdir())) == 1
        with pytest.raises(PeerAbortedError):
            ann.infer(X[0])
        assert len(list(left.iterdir())) == 1  # what was not admitted uses nothing up
        until(lambda: status(server)["refused"] == 4)
        told = "\n".join(server.stop())
        assert "2 batches held (batches_each)" in told
        assert "1 queries in an hour (queries_hour_each)" in told
    with served(tmp_path, Caps(queries_hour_each=1)) as server, pytest.raises(PeerAbortedError):
        server.client("ann").infer(X[0])  # nor does a restart give it more


def test_a_batch_that_made_way_is_told_of_and_the_next_one_used(tmp_path: Path) -> None:
    with served(tmp_path, Caps(batches_each=1)) as server:
        ann = server.client("ann")
        first = ann.prepare().batch
        server.line()
        os.utime(tmp_path / "server" / "fresh" / first, (time.time() - 7200,) * 2)
        second = ann.prepare().batch
        assert server.line().endswith("its oldest batches made way for new ones: 1")
        server.line()
        answer = ann.infer(X[0])
        assert np.array_equal(answer.output, EXPECTED)
        assert [f"the server has no batch {first[:16]}" in why for why in answer.lost] == [True]
        assert not (ann.store.folder / "fresh" / second).exists()


@pytest.mark.parametrize("how", ["bare", "silent TLS", "half a handshake", "no certificate"])
def test_a_crowd_of_visitors_does_not_disturb_a_running_session(how: str, open_session: Open, tmp_path: Path) -> None:
    with served(tmp_path, Caps(pending=64)) as server, ExitStack() as stack:
        client = server.client()
        batch = client.prepare().batch
        channel = open_session(client)
        visitors: list[socket.socket] = []
        greeting = client_hello(tmp_path)

        def visit() -> None:
            visitor = socket.create_connection(("127.0.0.1", server.port), 30)
            visitors.append(stack.enter_context(visitor))
            if how == "silent TLS":
                visitor.sendall(greeting)
            elif how == "half a handshake":
                visitor.sendall(greeting[: len(greeting) // 2])
            elif how == "no certificate":
                visitor.sendall(b"GET / HTTP/1.1\r\n\r\n")

        for number in range(250):
            visit()
            if number == 125:  # in the midst of it
                assert np.array_equal(client.infer(X[0], batch).output, EXPECTED)
        until(lambda: status(server)["refused"] >= 250 - 64)
        counts = status(server)
        assert (counts["running"], counts["failed"], counts["arrivals"] <= 64) == (1, 0, True)
        assert len(server.children()) == 2  # the page and the one session: a visitor costs no process
        channel.send(Frame.HELLO, bytes(HELLO_BYTES))  # the session that was open all the time still answers
        with pytest.raises(PeerAbortedError):
            channel.receive(Frame.HELLO, HELLO_BYTES)


def client_hello(folder: Path) -> bytes:
    """What a client with a certificate sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "authority.pem")
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def test_slow_and_foreign_visitors_are_refused_with_the_reason(tmp_path: Path) -> None:
    with served(tmp_path, limits=Limits(connect_s=0.3)) as server, ExitStack() as stack:
        stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert server.line() == "refused 127.0.0.1: TLS handshake not done in time (connect_s)"
        stack.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert "TLS 1.3 with mutual certificates failed" in server.line()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_running_sessions_and_nothing_is_half_claimed(
    by: signal.Signals, open_session: Open, tmp_path: Path
) -> None:
    with served(tmp_path) as server:
        client = server.client()
        batch = client.prepare().batch
        talking = open_session(client)
        until(lambda: status(server)["running"] == 1)
        told = server.stop(by)
        assert server.process.returncode == 0
        assert any("ended, because the server is ending" in line for line in told)
        with pytest.raises(TURNED_AWAY):
            talking.receive(Frame.HELLO, HELLO_BYTES)
        with pytest.raises(ConnectionLostError):
            open_session(client)
        assert not (tmp_path / "server" / "status.json").exists()
    with served(tmp_path) as server:
        assert np.array_equal(server.client().infer(X[0], batch).output, EXPECTED)


def test_the_front_killed_ends_its_sessions(open_session: Open, tmp_path: Path) -> None:
    with served(tmp_path) as server:
        client = server.client()
        batch = client.prepare().batch
        talking = open_session(client)
        until(lambda: len(server.children()) == 2)
        children = server.children()
        os.kill(server.process.pid, signal.SIGKILL)
        with pytest.raises(TURNED_AWAY):
            talking.receive(Frame.HELLO, HELLO_BYTES)
        until(lambda: not any(Path(f"/proc/{child}/fd").exists() and alive(child) for child in children))
    with served(tmp_path) as server:  # the store is free again
        assert np.array_equal(server.client().infer(X[0], batch).output, EXPECTED)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_session_takes_no_other_with_it(open_session: Open, tmp_path: Path) -> None:
    with served(tmp_path) as server:
        status(server)  # now the page is there
        before = server.children()
        talking = open_session(server.client("ann"))
        until(lambda: len(server.children() - before) == 1)
        (victim,) = server.children() - before
        other = open_session(server.client("bob"))
        until(lambda: status(server)["running"] == 2)
        os.kill(victim, signal.SIGKILL)
        assert server.line().endswith("its process ended with status -9")
        with pytest.raises(ProtocolError):
            talking.receive(Frame.HELLO, HELLO_BYTES)
        until(lambda: (status(server)["running"], status(server)["failed"]) == (1, 1))
        other.send(Frame.HELLO, bytes(HELLO_BYTES))  # is answered: this is no greeting
        with pytest.raises(PeerAbortedError):
            other.receive(Frame.HELLO, HELLO_BYTES)


def test_two_servers_on_one_store_are_refused(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        with served(tmp_path) as second:
            assert second.process.wait(30) == 1
            assert second.process.stderr
            assert "another server is serving from it" in second.process.stderr.read()
        assert np.array_equal(server.client().infer(X[0]).output, EXPECTED)


def test_nobody_is_told_that_it_serves_before_the_store_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "RESERVE_S", 0.1)
    create_authority(tmp_path)
    issue(tmp_path, "server", "s")
    endpoint, store = Endpoint(Credentials.within(tmp_path, "server", "s")), Store(tmp_path / "store")
    with listen("127.0.0.1", 0) as listener, store.reserved():
        service = Service(listener, endpoint, Model(ONE_RELU, Plan(ONE_RELU)), Store(tmp_path / "store"))
        with pytest.raises(StoreError, match="another server is serving from it"):
            service.run(begun=pytest.fail)
    told: list[str] = []
    with listen("127.0.0.1", 0) as listener:
        service = Service(listener, endpoint, Model(ONE_RELU, Plan(ONE_RELU)), store, notify=told.append)
        service.run(begun=lambda: (told.append("serving"), signal.raise_signal(signal.SIGTERM)))
    assert told == ["serving"]


def test_a_reader_of_the_status_that_resets_its_connection_prints_nothing(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.page)) as reader:
                reader.sendall(b"GET /sta")
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert status(server)["running"] == 0
        time.sleep(0.1)
        server.process.terminate()
        assert server.process.communicate(timeout=60)[1] == ""


def test_status_tells_counts_and_no_more(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        client = server.client("ann")
        client.prepare()
        client.infer(X[0])
        client.prepare()
        until(lambda: status(server)["served"] == 3)
        until(lambda: status(server)["clients"][0]["batches_held"] == 1)
        counts = status(server)
        (row,) = counts["clients"]
        assert row["client"] == client.endpoint.identity.fingerprint[:SHOWN]
        assert (row["prepared"], row["answered"], row["queries"], row["batches_held"]) == (2, 1, 1, 1)
        assert row["bytes_received"] > 0 < row["bytes_sent"]
        text = read(server, "/metrics")[1]
        assert 'deepreshape_sessions_total{outcome="served"} 3\n' in text
        assert f'deepreshape_client_batches_held{{client="{row["client"]}"}} 1\n' in text
        families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(families) == len(set(families))
        assert "ann" not in text + json.dumps(counts)
        assert read(server, "/secrets")[0] == 404
        assert read(server, "/status", "evil.example")[0] == 403


def test_a_process_with_other_threads_is_refused(tmp_path: Path) -> None:
    with served(tmp_path), listen("127.0.0.1", 0) as door, ThreadPoolExecutor(1) as threads:
        threads.submit(int).result()
        endpoint = Endpoint(Credentials.within(tmp_path, "server", "s"))
        service = Service(door, endpoint, Model(ONE_RELU, Plan(ONE_RELU)), Store(tmp_path / "other"))
        with pytest.raises(RuntimeError, match="without other threads"):
            service.run()


def test_a_status_page_that_other_machines_could_read_is_refused() -> None:
    with listen("0.0.0.0", 0) as door, pytest.raises(ValueError, match=r"listens on 0\.0\.0\.0; only loopback"):  # noqa: S104
        check_loopback(door)


def test_running_out_of_descriptors_ends_no_session(open_session: Open, tmp_path: Path) -> None:
    with served(tmp_path, Caps(pending=64, sessions=64, sessions_each=64)) as server, ExitStack() as stack:
        talking, client = open_session(server.client()), server.client("other")
        until(lambda: status(server)["running"] == 1)
        for free in range(6):  # a session needs one for its connection, and three while its process starts
            numbers = map(int, os.listdir(f"/proc/{server.process.pid}/fd"))
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (max(numbers) + 1 + free, 4096))
            with suppress(ProtocolError):
                open_session(client)
            for _ in range(8):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            time.sleep(0.2)
            assert server.process.poll() is None
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        talking.send(Frame.HELLO, bytes(HELLO_BYTES))  # is answered: this is no greeting
        with pytest.raises(PeerAbortedError):
            talking.receive(Frame.HELLO, HELLO_BYTES)
        stack.close()
        assert np.array_equal(server.client("ann").infer(X[0]).output, EXPECTED)


def test_caps_that_need_more_descriptors_than_the_system_allows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 256))
    _allow_descriptors(Caps(pending=64))
    assert raised == [(64 + 16 + SPARE_DESCRIPTORS, 256)]
    with pytest.raises(ValueError, match=r"need 312 open files; the limit is 256: raise it \(ulimit -Hn 312\)"):
        _allow_descriptors(Caps())


def test_a_refused_connection_that_a_child_still_holds_wakes_nobody(tmp_path: Path) -> None:
    """Its number goes to the next socket, and the system would go on to watch the old one under it."""
    with served(tmp_path) as server:
        ends = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
        for end in ends:
            end.sendall(b"GET / HTTP/1.1\r\n\r\n" * 50)
        client = server.client()
        for _ in range(3):  # each is a fork in the midst of connections that are refused
            for end in ends:
                with suppress(OSError):
                    end.sendall(b"more")
            client.prepare()
            ends += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
            for end in ends[-20:]:
                end.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for end in ends:
            end.close()
        assert np.array_equal(client.infer(X[0]).output, EXPECTED)
        assert server.process.poll() is None


def test_a_socket_is_unregistered_before_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deterministic half of the test above: the selector forgets a socket whose number is still its own."""
    create_authority(tmp_path)
    issue(tmp_path, "server", "s")
    endpoint = Endpoint(Credentials.within(tmp_path, "server", "s"))
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as stranger:
        service = Service(listener, endpoint, Model(ONE_RELU, Plan(ONE_RELU)), Store(tmp_path / "store"))
        service._accept()
        (pending,) = service._pending
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        select.select([pending], [], [], 30)
        order: list[str] = []
        for what, owner, name in (("forgotten", service._selector, "unregister"), ("closed", pending, "close")):
            act = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *given, act=act, what=what: (order.append(what), act(*given)))
        service._advance(pending)
        assert order == ["forgotten", "closed"]
        assert not service._pending
        service._selector.close()


def test_nothing_that_one_event_brings_ends_the_front(tmp_path: Path) -> None:
    create_authority(tmp_path)
    issue(tmp_path, "server", "s")
    told: list[str] = []
    endpoint = Endpoint(Credentials.within(tmp_path, "server", "s"))
    near, far = socket.socketpair()
    with listen("127.0.0.1", 0) as listener, near, far:
        service = Service(
            listener, endpoint, Model(ONE_RELU, Plan(ONE_RELU)), Store(tmp_path / "store"), notify=told.append
        )
        near.setblocking(False)
        service._read(_Session(0, near, endpoint.identity, 0.0))  # a wake without a byte

        def fail() -> None:
            raise OSError("secret")

        with listen("127.0.0.1", 0) as other, socket.create_connection(other.getsockname()):
            service._selector.register(other, selectors.EVENT_READ, fail)
            service._dispatch(30.0)
        assert told == ["unforeseen OSError in the front"]
        service._close()


def test_a_session_that_does_not_come_back_is_killed_at_its_limit(open_session: Open, tmp_path: Path) -> None:
    """As one inside a library's read, which handles key updates for as long as they come."""
    with served(tmp_path, limits=replace(PATIENT, session_s=1.0)) as server:
        status(server)
        before = server.children()
        open_session(server.client())
        until(lambda: len(server.children() - before) == 1)
        (process,) = server.children() - before
        os.kill(process, signal.SIGSTOP)  # it answers to nothing
        assert server.line().endswith("it took over 1 s (session_s), and was killed")
        assert not alive(process)


def test_key_updates_without_end_hold_no_session_past_its_limit(tmp_path: Path) -> None:
    tls = library()
    if tls is None:
        pytest.skip("the TLS library of this Python is not a file of its own")
    limits = replace(PATIENT, session_s=0.5)
    with served(tmp_path, limits=limits, grace_s=0.2) as server, ThreadPoolExecutor(1) as threads:
        client = server.client("eve")
        sending = threads.submit(send_key_updates, tls, client.endpoint.credentials, server.port, 200_000)
        assert server.line().endswith("it took over 0.5 s (session_s), and was killed")
        sending.result()
        until(lambda: status(server)["running"] == 0)


def test_what_a_killed_session_was_writing_is_swept(tmp_path: Path) -> None:
    program = every_kind()
    with served(tmp_path, program=program) as server, ThreadPoolExecutor(1) as threads:
        status(server)
        before = server.children()
        client = server.client()
        writing = tmp_path / "server" / "writing"
        for _ in range(3):
            preparing = threads.submit(client.prepare)
            until(lambda: any(writing.iterdir()))
            (process,) = server.children() - before
            os.kill(process, signal.SIGKILL)
            assert "status -9" in server.line()
            assert isinstance(preparing.exception(60), ProtocolError)
            assert [*writing.iterdir(), *(tmp_path / "server" / "keys").iterdir()] == []


def test_connections_make_the_front_read_no_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    for number in range(20):
        with store.create(Binding("cd" * 32, "a" * 64, {}), f"{number:064x}") as writer:
            writer.commit()
    read: list[Path] = []
    before = manifest_file.read_json
    monkeypatch.setattr(manifest_file, "read_json", lambda path, most: (read.append(path), before(path, most))[1])
    for _ in range(50):
        assert store.held() == {"a" * 64: 20}
    assert len(read) == 20


def test_the_status_is_written_at_most_once_a_second(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        path = tmp_path / "server" / "status.json"
        until(path.exists)
        written: set[int] = set()
        began = time.monotonic()
        for _ in range(100):
            socket.create_connection(("127.0.0.1", server.port)).close()
            time.sleep(0.01)  # or the front takes many at one wake
            with suppress(FileNotFoundError):
                written.add(path.stat().st_mtime_ns)
        assert len(written) <= 2 + (time.monotonic() - began) / STATUS_S
        until(lambda: status(server)["refused"] == 100)


def test_a_damaged_batch_is_set_aside_and_the_server_starts(tmp_path: Path) -> None:
    manifests = [
        b'{"program":"%s","peer":[1],"parameters":{},"streams":[]}' % (b"ab" * 32),
        b"[" * 100_000,
        b'{"program":"%s","peer":"%s","parameters":{"\x1b[2J":1},"streams":[]}' % (b"ab" * 32, b"cd" * 32),
        b"{" + b" " * (1 << 20) + b"}",
        b'{"peer":NaN}',
    ]
    Store(tmp_path / "server")
    for number, manifest in enumerate(manifests):
        folder = tmp_path / "server" / "fresh" / f"{number:064x}"
        folder.mkdir()
        (folder / "manifest.json").write_bytes(manifest)
        (tmp_path / "server" / "keys" / f"{folder.name}.key").write_bytes(bytes(32))
    with served(tmp_path) as server:
        for _ in manifests:
            assert "0" * 16 in server.line()  # the first digits of all
        assert np.array_equal(server.client().infer(X[0]).output, EXPECTED)
    assert len(list((tmp_path / "server" / "damaged").iterdir())) == len(manifests)
    assert list((tmp_path / "server" / "keys").iterdir()) == []
