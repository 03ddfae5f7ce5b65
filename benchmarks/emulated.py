"""A slower link between processes that speak plain TCP on this machine, for what has no emulation of its own."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from deepreshape.private.transport.tls import EmulatedLink

CHUNK = 1 << 16


class Direction:
    """Bytes one way: they leave one after the other at the link's rate, and arrive one delay later."""

    def __init__(self, link: EmulatedLink) -> None:
        self._link, self._lock, self._free = link, threading.Lock(), 0.0

    def arrival(self, count: int) -> float:
        """When ``count`` bytes that are sent now arrive, on :func:`time.monotonic`'s clock."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self._link.bytes_per_s
            return self._free + self._link.delay_s


class Relays:
    """For two parties that listen on ports of this machine: ports at which each other reaches them through the link.

    Connections to the first party carry the second's bytes, and answers the first's; all of one direction share a rate.
    """

    def __init__(self, link: EmulatedLink) -> None:
        self._directions = Direction(link), Direction(link)
        self._listeners: list[socket.socket] = []

    def reach(self, port: int) -> int:
        """The port of a relay to ``port``; call it once for each party."""
        listener = socket.create_server(("127.0.0.1", 0))
        there, back = self._directions[::-1] if self._listeners else self._directions
        self._listeners.append(listener)
        threading.Thread(target=_accept, args=(listener, port, there, back), daemon=True).start()
        return listener.getsockname()[1]

    def close(self) -> None:
        """Take no more connections."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, port: int, there: Direction, back: Direction) -> None:
    with listener, suppress(OSError):  # of a listener that was closed
        while True:
            near, _ = listener.accept()
            threading.Thread(target=_join, args=(near, port, there, back), daemon=True).start()


def _join(near: socket.socket, port: int, there: Direction, back: Direction) -> None:
    # a party that is not up yet refuses, and the peer, whose connection ends, tries again
    with near, suppress(OSError), socket.create_connection(("127.0.0.1", port)) as far:
        threads: list[threading.Thread] = []
        for source, sink, direction in ((near, far, there), (far, near, back)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threads.append(threading.Thread(target=_take, args=(source, waiting, direction), daemon=True))
            threads.append(threading.Thread(target=_give, args=(sink, waiting), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _received(source: socket.socket) -> Iterator[bytes]:
    with suppress(OSError):
        while data := source.recv(CHUNK):
            yield data


def _take(source: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]], direction: Direction) -> None:
    for data in _received(source):
        waiting.put((direction.arrival(len(data)), data))
    waiting.put((direction.arrival(0), b""))


def _give(sink: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    with suppress(OSError):
        while True:
            arrival, data = waiting.get()
            time.sleep(max(0.0, arrival - time.monotonic()))
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
