"""A slower link in front of plain TCP: when bytes arrive, and that they do unchanged."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from deepreshape.private.transport.tls import EmulatedLink

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import emulated
from emulated import Direction, Relays


def test_bytes_queue_at_the_rate_and_arrive_a_delay_later(monkeypatch: pytest.MonkeyPatch):
    clock = [10.0]
    monkeypatch.setattr(emulated.time, "monotonic", lambda: clock[0])
    direction = Direction(EmulatedLink(0.5, 100.0))
    assert [direction.arrival(200), direction.arrival(100)] == [12.5, 13.5]
    clock[0] = 20.0
    assert direction.arrival(100) == 21.5


def test_both_ways_pass_unchanged_and_an_end_is_passed_on():
    listener = socket.create_server(("127.0.0.1", 0))
    data = bytes(range(256)) * 2000

    def answer() -> None:
        end, _ = listener.accept()
        with end:
            received = b""
            while len(received) < len(data):
                received += end.recv(1 << 16)
            end.sendall(received[::-1])

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    relays = Relays(EmulatedLink(0.001, 1e9))
    port = relays.reach(listener.getsockname()[1])
    with listener, socket.create_connection(("127.0.0.1", port)) as near:
        near.sendall(data)
        back = b""
        while part := near.recv(1 << 16):
            back += part
    assert back == data[::-1]
    thread.join()
    relays.close()
