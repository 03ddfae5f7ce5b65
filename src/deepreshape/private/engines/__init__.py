"""Engines that walk a garbled circuit. They compute the same bytes and differ in speed, so either party uses any.

An engine knows neither sessions nor parties: it gets keys, labels and tables as arrays. What may be garbled or
evaluated, and how often, is the affair of ``garble.py``.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.circuit import Circuit
from deepreshape.private.engines.reference import Reference
from deepreshape.private.shares import Bits, Words


class Engine(Protocol):
    """Labels are uint64 of shape (wires, n, 2), tables (AND gates, 2, n, 2), keys uint8 (2 AND gates, 16)."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str:
        """What it runs on, for a reader."""
        ...

    def garble(self, circuit: Circuit, delta: Words, labels: Words, keys: NDArray[np.uint8], tables: Words) -> Words:
        """Write ``tables``; from the labels of zero of the inputs, those of the output slots."""
        ...

    def evaluate(self, circuit: Circuit, tables: Words, labels: Words, keys: NDArray[np.uint8]) -> Words:
        """From one label for every input wire, those of the output slots."""
        ...

    def transpose(self, columns: Bits) -> Words:
        """128 packed columns, uint8 (128, m), to the 8 m rows that they make, uint64 (8 m, 2)."""
        ...


_chosen: ContextVar[Engine | None] = ContextVar("engine", default=None)


def engine() -> Engine:
    """The engine in use here."""
    return _chosen.get() or Reference()


@contextmanager
def using(chosen: Engine) -> Generator[None]:
    """Take this engine inside, in this thread."""
    token = _chosen.set(chosen)
    try:
        yield
    finally:
        _chosen.reset(token)
