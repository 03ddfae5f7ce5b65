"""What a party keeps from its offline to its online phase: streams of ``Prepared``.

A stream holds what one step of the program needs, in the order in which it is needed, and is read once. It lies in
memory (:class:`InMemory`), or in the store (:class:`Writing` and :class:`Reading`), where it is encrypted and durable.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.parties.batch import Batch, Writer
from deepreshape.private.parties.streams import CHUNK_BYTES
from deepreshape.private.protocols.base import Prepared

AHEAD = 2
"""How many puts may wait for the disk: about two batches of circuits, 25 MB with their default size."""


class Sink(Protocol):
    """Where the offline phase puts what it makes."""

    def put(self, stream: str, prepared: Prepared) -> None:
        """Append to a stream; uses ``prepared`` up."""
        ...


class Source(Protocol):
    """Where the online phase gets it from."""

    def get(self, stream: str) -> Iterator[Prepared]:
        """The stream, in the order in which it was put.

        Raises:
            Exception: if it was read before, or is not there.
        """
        ...


class InMemory:
    """A sink, and then a source."""

    def __init__(self) -> None:
        self._streams: dict[str, list[Prepared]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays that are held."""
        return sum(prepared.nbytes for stream in self._streams.values() for prepared in stream)

    def put(self, stream: str, prepared: Prepared) -> None:
        self._streams.setdefault(stream, []).append(prepared)

    def get(self, stream: str) -> Iterator[Prepared]:
        if stream not in self._streams:
            raise RuntimeError(
                f"stream {stream!r} was read before or never made; what is prepared serves one inference"
            )
        return iter(self._streams.pop(stream))


class Writing:
    """A sink into a batch of the store that is being written.

    A thread of its own encrypts and writes, so that disk and network work at the same time; :data:`AHEAD` puts at most
    wait for it. Leaving ``with`` waits for all of them.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, "store")
        self._waiting: deque[Future[None]] = deque()
        self.nbytes = 0
        """Bytes of all arrays so far."""

    def put(self, stream: str, prepared: Prepared) -> None:
        """As :class:`Sink` has it.

        Raises:
            StoreError: if this or an earlier put cannot be written.
        """
        self.nbytes += prepared.nbytes
        self._settle(AHEAD - 1)
        self._waiting.append(self._thread.submit(self._write, stream, prepared.take()))

    def _settle(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def _write(self, stream: str, arrays: dict[str, NDArray[Any]]) -> None:
        head = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
        self._writer.write(stream, json.dumps(head).encode("ascii"))
        for array in arrays.values():
            octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for start in range(0, octets.size, CHUNK_BYTES):
                self._writer.write(stream, octets[start : start + CHUNK_BYTES])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._settle(0)
        finally:
            self._thread.shutdown(cancel_futures=True)


class Reading:
    """A source out of a claimed batch of the store."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def get(self, stream: str) -> Iterator[Prepared]:
        chunks = self._batch.read(stream)
        for head in chunks:  # our own words: the store has authenticated them
            yield Prepared({name: _read(chunks, np.dtype(kind), shape) for name, kind, shape in json.loads(head)})


def _read(chunks: Iterator[bytes], dtype: np.dtype[Any], shape: list[int]) -> NDArray[Any]:
    array = np.empty(shape, dtype)
    octets = array.reshape(-1).view(np.uint8)
    at = 0
    while at < octets.size:
        chunk = np.frombuffer(next(chunks), np.uint8)
        octets[at : at + chunk.size] = chunk
        at += chunk.size
    return array
