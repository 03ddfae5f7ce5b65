"""What a party keeps from its offline to its online phase: streams of :class:`~deepreshape.private.relu.Prepared`.

A stream holds what one step of the program needs, in the order in which it is needed, and is read once. It lies in
memory (:class:`InMemory`), or in the store (:class:`Writing` and :class:`Reading`), where it is encrypted and durable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.relu import Prepared
from deepreshape.private.store import CHUNK_BYTES, Batch, Writer


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
                f"stream {stream!r} was read before or never made; offline material is for one inference"
            )
        return iter(self._streams.pop(stream))


class Writing:
    """A sink into a batch of the store that is being written."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.nbytes = 0
        """Bytes of all arrays so far."""

    def put(self, stream: str, prepared: Prepared) -> None:
        arrays = prepared.take()
        head = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
        self._writer.write(stream, json.dumps(head).encode("ascii"))
        for array in arrays.values():
            octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.nbytes += octets.size
            for start in range(0, octets.size, CHUNK_BYTES):
                self._writer.write(stream, octets[start : start + CHUNK_BYTES])


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
