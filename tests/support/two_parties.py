"""Two parties side by side, and random streams that repeat."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from deepreshape.private.arith.rng import Randomness

A = TypeVar("A")
B = TypeVar("B")


def fixed(number: int) -> Randomness:
    """A stream that is the same each time."""
    return Randomness(bytes([number]) * 32)


def in_parallel(left: Callable[[], A], right: Callable[[], B]) -> tuple[A, B]:
    """What two parties return that run at the same time, each in a thread."""
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(left), pool.submit(right)
        return one.result(), two.result()
