"""A service with many visitors: several sessions at once, caps, crowds, signals, and two servers on one store."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from programs import ONE_RELU, every_kind, random_inputs
from support.service import Served, served

from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.sessions import Client
from deepreshape.private.parties.store import Store
from deepreshape.private.program import interpret as plain
from deepreshape.private.service.quotas import SHOWN, Caps
from deepreshape.private.service.service import Service
from deepreshape.private.service.status import check_loopback
from deepreshape.private.transport.certificates import Credentials
from deepreshape.private.transport.channel import Frame, ProtocolError
from deepreshape.private.transport.handshake import HELLO_BYTES
from deepreshape.private.transport.tls import (
    ConnectionLostError,
    Endpoint,
    Limits,
    PeerAbortedError,
    TlsChannel,
    listen,
)

Open = Callable[[Client], TlsChannel]
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
def open_session() -> Iterator[Callable[[Client], TlsChannel]]:
    """A client connects and says nothing; its session is running at the server."""
    opened: list[TlsChannel] = []

    def connect(client: Client) -> TlsChannel:
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


@pytest.mark.parametrize("how", ["bare", "silent TLS", "half a handshake", "no certificate"])
def test_a_thousand_visitors_do_not_disturb_a_running_session(how: str, open_session: Open, tmp_path: Path) -> None:
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
        found = status(server)
        assert (found["running"], found["failed"], found["arrivals"] <= 64) == (1, 0, True)
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
        found = status(server)
        assert (found["running"], found["failed"]) == (1, 1)
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


def test_status_tells_counts_and_no_more(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        client = server.client("ann")
        client.prepare()
        client.infer(X[0])
        client.prepare()
        until(lambda: status(server)["served"] == 3)
        found = status(server)
        (row,) = found["clients"]
        assert row["client"] == client.endpoint.identity.fingerprint[:SHOWN]
        assert (row["prepared"], row["answered"], row["queries"], row["batches_held"]) == (2, 1, 1, 1)
        assert row["bytes_received"] > 0 < row["bytes_sent"]
        text = read(server, "/metrics")[1]
        assert 'deepreshape_sessions_total{outcome="served"} 3\n' in text
        assert f'deepreshape_client_batches_held{{client="{row["client"]}"}} 1\n' in text
        families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(families) == len(set(families))
        assert "ann" not in text + json.dumps(found)
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
