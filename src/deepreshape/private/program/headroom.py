"""How near the inputs of squares come to the largest that two parties square rightly, on inputs that are known.

Beyond it nobody sees an error: the parties hold shares. Only whoever has inputs can look, before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deepreshape.private.program.interpret import run
from deepreshape.private.program.ops import Integers, Square
from deepreshape.private.program.program import Program

CHUNK = 32
"""Inputs that are looked at as one."""


@dataclass(frozen=True)
class Headroom:
    """Of one layer of squares.

    Attributes:
        limit: the largest absolute value, real, whose square comes out right.
        largest: the largest that was seen; infinite if an input went beyond what the parties compute.
        share: of the inputs, how many came above half of the limit, from 0 to 1.
    """

    limit: float
    largest: float
    share: float


def square_headroom(program: Program, inputs: Integers) -> dict[str, Headroom]:
    """By operation, how near ``inputs`` (N, *input shape) come to the limits of its squares; empty without any.

    Raises:
        ValueError: if the inputs do not fit the program.
    """
    squares = [op for op in program.ops if isinstance(op, Square)]
    if not squares:
        return {}
    seen = {op.name: list[float]() for op in squares}
    for start in range(0, len(inputs), CHUNK):
        some = inputs[start : start + CHUNK]
        try:
            _look(program, squares, some, seen)
        except OverflowError:
            for one in some[:, None]:
                _look_at_one(program, squares, one, seen)
    headrooms: dict[str, Headroom] = {}
    for op in squares:
        value = program.values[op.inputs[0]]
        limit, largest = op.squaring(program.modulus).limit, np.array(seen[op.name])
        unit = 2.0**-value.fraction
        headrooms[op.name] = Headroom(limit * unit, float(largest.max()) * unit, float((2 * largest > limit).mean()))
    return headrooms


def _look(program: Program, squares: list[Square], inputs: Integers, seen: dict[str, list[float]]) -> None:
    """Append the largest absolute value of each input to what was seen, or nothing at all.

    Raises:
        OverflowError: if a value cannot be computed.
    """
    readers: dict[str, list[Square]] = {}
    for op in squares:
        readers.setdefault(op.inputs[0], []).append(op)
    fresh: dict[str, list[float]] = {}

    def observe(name: str, values: Integers) -> None:
        for op in readers.get(name, ()):
            flat = np.abs(values.reshape(len(values), -1)[:, op.positions(program.values[name])])
            fresh[op.name] = [float(most) for most in flat.max(axis=1, initial=0)]

    run(program, inputs, observe=observe)
    for name, largest in fresh.items():
        seen[name] += largest


def _look_at_one(program: Program, squares: list[Square], one: Integers, seen: dict[str, list[float]]) -> None:
    try:
        _look(program, squares, one, seen)
    except OverflowError:  # beyond somewhere, so whatever lies behind is not known
        for op in squares:
            seen[op.name].append(float("inf"))
