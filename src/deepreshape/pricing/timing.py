"""Timing of steps: of one party, or of two in two threads, of which only one works at a time.

So each party's seconds are its own, whatever threads an engine below may use, and neither is slowed by the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from deepreshape.private.transport.channel import Channel, Frame, Payload
from deepreshape.private.transport.memory import MemoryChannel, memory_pair

Step = Callable[[Channel], Any]


class _Baton:
    """Lets one of two threads work at a time, and counts how long each one did."""

    def __init__(self) -> None:
        self._free = threading.Lock()

    def take(self) -> float:
        self._free.acquire()
        return time.perf_counter()

    def pass_on(self, since: float) -> float:
        spent = time.perf_counter() - since
        self._free.release()
        return spent


class _Timed:
    """A channel whose user holds the baton except while it waits for a message."""

    def __init__(self, inner: MemoryChannel, baton: _Baton) -> None:
        self.ledger = inner.ledger
        self.spent = 0.0
        self._inner = inner
        self._baton = baton
        self._since = 0.0

    def run(self, step: Step) -> float:
        self._since = self._baton.take()
        try:
            step(self)
        finally:
            self.spent += self._baton.pass_on(self._since)
        return self.spent

    def send(self, kind: Frame, payload: Payload) -> None:
        self._inner.send(kind, payload)

    def receive(self, kind: Frame, nbytes: int) -> memoryview:
        with self._waiting():
            return self._inner.receive(kind, nbytes)

    def receive_into(self, kind: Frame, out: Payload) -> None:
        with self._waiting():
            self._inner.receive_into(kind, out)

    @contextmanager
    def _waiting(self) -> Generator[None]:
        self.spent += self._baton.pass_on(self._since)
        try:
            yield
        finally:
            self._since = self._baton.take()


def run_parties(client: Step, server: Step) -> tuple[float, float]:
    """Seconds that (client, server) worked, in one run of a step that both take part in."""
    baton = _Baton()
    ends = [_Timed(end, baton) for end in memory_pair()]
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(end.run, step) for end, step in zip(ends, (client, server), strict=True)]
        first, second = (run.result() for run in running)
    return first, second


def fastest(work: Callable[[], Any], rounds: int) -> float:
    """Least seconds over the rounds, after one that does not count: other load can only lengthen a round."""
    work()
    seconds: list[float] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def minima(rows: Sequence[Sequence[float]]) -> list[float]:
    """Of each column."""
    return [min(values) for values in zip(*rows, strict=True)]
