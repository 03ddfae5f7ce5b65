"""Engines that walk a garbled circuit. They compute the same bytes and differ in speed, so either party uses any.

An engine knows neither sessions nor parties: it gets keys, labels and tables as arrays, whose shapes its callers have
checked. What may be garbled or evaluated, and how often, is the affair of ``garble.py``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Protocol

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.crypto.backend.numpy import Keys, Reference
from deepreshape.private.crypto.circuit import Circuit
from deepreshape.private.processes import available_cores

ENGINE, THREADS = "DEEPRESHAPE_ENGINE", "DEEPRESHAPE_THREADS"
"""Environment variables: the engine's name, else the fastest here is taken; its threads, else one a processor."""

MOST_THREADS = 8


class Engine(Protocol):
    """Labels are uint64, contiguous, (n, 2) of each wire; tables (AND gates, 2, n, 2); keys (2 AND gates, 16)."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str:
        """What it runs on, for a reader."""
        ...

    def prepare(self) -> None:
        """Do now what is done at first use otherwise, so that processes forked later have it."""
        ...

    def garble(self, circuit: Circuit, delta: Words, labels: list[Words], keys: Keys, tables: Words) -> Words:
        """Write ``tables``; from the labels of zero of the inputs, those of the output slots. ``delta`` (2,)."""
        ...

    def evaluate(self, circuit: Circuit, tables: Words, labels: list[Words], keys: Keys) -> Words:
        """From one label of every input, those of the output slots."""
        ...

    def hash(self, labels: Words, key: Keys) -> Words:
        """H_key of every label (n, 2), as in ``garble.py``; ``key`` (16,)."""
        ...

    def pick(self, labels: Words, delta: Words, bits: Bits, out: Words) -> None:
        """Write the labels (n, 2), each moved by ``delta`` where ``bits`` (n,) are one; ``out`` may be ``labels``."""
        ...

    def transpose(self, columns: Bits) -> Words:
        """128 packed columns, uint8 (128, m) with contiguous rows, to the 8 m rows they make, uint64 (8 m, 2)."""
        ...

    def grow(self, roots: Words, delta: Words, depth: int, key: Keys) -> tuple[Words, Words]:
        """Correlated trees (half-tree: Guo et al., EUROCRYPT 2023) of 2^``depth`` leaves, depth at least 2.

        Below a root s are s and s ^ delta, below any other node p are H_key(p) on the left and p ^ H_key(p) on the
        right, so every level sums to ``delta``; a leaf's permute bit is cleared. A leaf's number has its top level
        first.

        Args:
            roots: (trees, 2).
            delta: (2,), of permute bit one.
            depth: levels.
            key: (16,).

        Returns:
            The leaves (trees << depth, 2); and the sum of the left nodes of each level, (trees, depth, 2).
        """
        ...

    def regrow(self, sums: Words, sides: Bits, key: Keys) -> Words:
        """All leaves of such trees but one each, from the sum of one side of every level.

        ``sums`` (trees, depth, 2), those of the last level of permute bit zero; ``sides`` (trees, depth), one for the
        right. The leaf on the other sides is what it is at the peer plus delta, and of permute bit one.
        """
        ...

    def gather(self, out: Words, table: Words, key: Keys, first: int) -> None:
        """Add to each of ``out`` (n, 2) ten entries of ``table`` (2^k, 2), picked by AES_key in counter mode.

        Output number i of the stream, of which ``out[0]`` is number ``first``, takes words 10 i to 10 i + 9 of 32 bits
        each. n and first are multiples of 16.
        """
        ...

    def hash_columns(self, labels: Words, keys: Keys, delta: Words) -> Words:
        """H of every label (columns, n, 2), moved by ``delta`` (2,), under its column's key (columns, 16)."""
        ...

    def fold(self, seeds: Words, keys: Keys) -> tuple[Words, Words]:
        """For each key, sums of the hashes of 256 seeds, for each of 16 groups.

        Args:
            seeds: (16, 256, 2), contiguous.
            keys: (blocks, 16).

        Returns:
            The sums over the seeds with bit j of their number, (16, 8, blocks, 2); and over all, (16, blocks, 2).
        """
        ...

    def pack(self, values: Words, bits: int) -> Bits:
        """The ``bits`` low bits, 1 to 64, of each value (n,) as one stream of ceil(n bits / 8) bytes, lowest first."""
        ...

    def unpack(self, data: Bits, bits: int, count: int) -> Words:
        """The inverse of :meth:`pack`: (count,); ``data`` has the length that it gives."""
        ...


class UnavailableError(ValueError):
    """An engine does not run on this machine."""


_chosen: ContextVar[Engine | None] = ContextVar("engine", default=None)


def engine() -> Engine:
    """The engine in use here."""
    return _chosen.get() or _default()


def engine_name() -> str:
    """Which engine is in use here, on what, and what would make it faster."""
    return f"{engine().name} ({engine().about})"


def prepare_aside() -> None:
    """Prepare the engine in a thread, beside what comes before circuits; who needs it sooner waits for what is left."""
    # no daemon: the interpreter would take down LLVM under it, and crash, where a command ends early
    threading.Thread(target=engine().prepare, name="engine").start()


@contextmanager
def using(chosen: Engine) -> Generator[None]:
    """Take this engine inside, in this thread only."""
    token = _chosen.set(chosen)
    try:
        yield
    finally:
        _chosen.reset(token)


def named(name: str, threads: int | None = None) -> Engine:
    """The engine ``"numpy"``, or ``"fused"`` with so many threads.

    Raises:
        UnavailableError: if it does not run here.
        ValueError: if there is no such engine, or no such number of threads.
    """
    if name == "numpy":
        return Reference()
    if name != "fused":
        raise ValueError(f"there is no engine {name!r}; take 'fused' or 'numpy'")
    try:
        from deepreshape.private.crypto.backend.fused import Fused, widths
    except (ImportError, OSError):  # not there, too old, or its library does not load
        raise UnavailableError("pip install llvmlite for an engine several times as fast") from None
    if not widths():
        raise UnavailableError("the faster engine needs an x86-64 processor with AES instructions")
    return Fused(widths()[0], _threads() if threads is None else threads)


@cache
def _default() -> Engine:
    if wanted := os.environ.get(ENGINE):
        return named(wanted)
    try:
        return named("fused")
    except UnavailableError as error:
        return Reference(str(error))


def _threads() -> int:
    text = os.environ.get(THREADS)
    if text is None:
        return min(available_cores(), MOST_THREADS)
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{THREADS} is {text!r}; it must be a whole number, at least 1")
    return int(text)
