"""Which bits each sign test may ignore, of a ReLU or a sign: a search over validation data by the plain interpreter.

The idea is HummingBird's (Maeng and Suh, 2023). High bits follow from the ranges seen in calibration, and lowering has
put them into the program: leaving them out is exact while values keep to their limits, as everything else is. A value
past its limit may then be read with the wrong sign; with all bits it would be right until it leaves the ring.

Low bits cost accuracy. A ReLU that drops ``shift`` bits behind it has outputs that are multiples of 2^shift, so faults
below 2^shift are of the size of its rounding. The search finds how far above the shifts all layers together can go, and
then goes on layer by layer, the largest first.

A sign's output is +1 or -1, and no fault of it is small; but few values lie near a threshold. Of the signs of real
numbers as many bits are tried as a ReLU behind that value would shift away, more or fewer. Whole numbers, such as sums
of signs under one-bit weights, keep all the bits that they are proven to need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.encoding import digest
from deepreshape.private.program.interpret import Replays
from deepreshape.private.program.ops import Integers, Op, Relu, Sign
from deepreshape.private.program.program import Program

BATCH = 64
"""Inputs that go through the interpreter together: memory for one layer's patches."""


@dataclass(frozen=True)
class Calibrated:
    """A program whose sign tests have low bits to ignore.

    Attributes:
        program: with its windows, for ``gc-stochastic:window``.
        exact: accuracy on the validation data with all low bits, in percent, rounding as two parties do.
        reached: accuracy with the windows.
        tried: how many settings were evaluated.
    """

    program: Program
    exact: float
    reached: float
    tried: int


def calibrate(
    program: Program,
    inputs: Integers,
    labels: NDArray[np.int64],
    *,
    protocols: Replays,
    max_loss: float,
    seed: bytes = bytes(32),
) -> Calibrated:
    """Let every ReLU, and every sign of a real number, ignore as many low bits as ``max_loss`` allows.

    Args:
        program: with its weights, from ``lower``; over a ring its high bits are left out too.
        inputs: validation data, int64 (N, *input_shape); a few hundred or more, none of the test split.
        labels: their classes, int64 (N,), or of each place of a map of logits, (N, h, w).
        protocols: gc-stochastic:window, of either mode.
        max_loss: points of accuracy that may be lost on them; over N inputs it is counted in steps of 100 / N.
        seed: of the shares that are drawn, so that a search can be repeated; 32 bytes.

    Raises:
        ValueError: if inputs and labels do not belong together, or ``max_loss`` is negative.
    """
    if len(inputs) != len(labels) or not len(inputs) or max_loss < 0:
        raise ValueError(f"{len(inputs)} inputs with {len(labels)} labels and {max_loss:g} points to lose: no search")
    shifts = {op.name: _shift(op, program) for op in program.ops if _has_window(op)}
    lows = dict.fromkeys(shifts, 0)
    # the loss of windows, and not of rounding: signs between truncations are sensitive to that alone
    exact = program_accuracy(windowed(program, lows), inputs, labels, protocols=protocols, seed=seed)
    reached, tried = exact, 0

    def afford(lows: Mapping[str, int]) -> float | None:
        """The accuracy, if it is not too low."""
        nonlocal tried
        tried += 1
        reached = program_accuracy(windowed(program, lows), inputs, labels, protocols=protocols, seed=seed)
        return reached if exact - reached <= max_loss else None

    def changes(trial: Mapping[str, int]) -> bool:
        """Whether these low bits are not what a window's bounds make of those there are."""
        return digest(windowed(program, trial)) != digest(windowed(program, lows))

    lowest, highest = -max(shifts.values(), default=0), program.modulus.bits
    while lowest < highest:  # the largest step above the shifts that can be afforded
        above = (lowest + highest + 1) // 2
        trial = {name: max(shift + above, 0) for name, shift in shifts.items()}
        affordable = afford(trial)
        if affordable is None:
            highest = above - 1
        else:
            lowest, lows, reached = above, trial, affordable
    for op in sorted((op for op in program.ops if op.name in shifts), key=lambda op: -_count(op, program)):
        trial = lows | {op.name: lows[op.name] + 1}
        while changes(trial) and (affordable := afford(trial)) is not None:
            lows, reached, trial = trial, affordable, trial | {op.name: trial[op.name] + 1}
    return Calibrated(windowed(program, lows), exact, reached, tried)


def windowed(program: Program, lows: Mapping[str, int]) -> Program:
    """The program with these low bits ignored, by operation; fewer where the rest would be too few for its values."""
    bounds = program.bounds()

    def window(op: Op) -> Op:
        if isinstance(op, Sign) and op.calibrated:
            reach = op.reach(bounds[op.inputs[0]], program.weights.get(op.name))
            low, high = _room(lows[op.name], op.calibrated, op.high or program.modulus.bits, reach)
            return replace(op, low=low, calibrated=high)
        if not isinstance(op, Relu):
            return op
        bits = program.modulus.bits
        if isinstance(program.modulus, Ring):
            low, high = _room(lows[op.name], op.high or bits, bits, bounds[op.inputs[0]])
        else:
            low, high = min(lows[op.name], (op.high or bits) - 2), op.high or bits
        return replace(op, low=low, high=high)

    return replace(program, ops=tuple(map(window, program.ops)))


def _room(low: int, high: int, most: int, bound: int) -> tuple[int, int]:
    """The window from ``low`` to ``high`` over a ring, with room for ``bound``: one bit more above, or fewer ignored.

    The highest bit serves all values up to 2^(high-1) - 2^low only.
    """
    low = min(low, high - 2)
    while low and (1 << (high - 1)) - (1 << low) < bound:
        low, high = (low, high + 1) if high < most else (low - 1, high)
    return low, high


def _has_window(op: Op) -> bool:
    return isinstance(op, Relu) or (isinstance(op, Sign) and op.calibrated > 0)


def _shift(op: Op, program: Program) -> int:
    """Bits by which a value is finer than one at rest, which a ReLU behind it shifts away."""
    return op.shift if isinstance(op, Relu) else max(program.values[op.inputs[0]].fraction - program.input_fraction, 0)


def _count(op: Op, program: Program) -> int:
    value = program.values[op.name]
    return op.count(value) if isinstance(op, Relu) else value.size


def program_accuracy(
    program: Program,
    inputs: Integers,
    labels: NDArray[np.int64],
    *,
    protocols: Replays | None = None,
    seed: bytes = bytes(32),
) -> float:
    """Top-1 of the plain interpreter in percent; ``seed`` draws the shares that ``protocols`` depend on."""
    rng, right = Randomness(seed), 0
    for start in range(0, len(inputs), BATCH):
        outputs = plain.run(program, inputs[start : start + BATCH], protocols=protocols, rng=rng)
        classes = outputs.argmax(1) if labels.ndim > 1 else outputs.reshape(len(outputs), -1).argmax(1)
        right += int((classes == labels[start : start + BATCH]).sum())
    return 100 * right / labels.size
