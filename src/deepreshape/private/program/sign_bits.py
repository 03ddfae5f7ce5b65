"""Which bits each ReLU's sign test may ignore, by a search over validation data with the plain interpreter.

The idea is HummingBird's (Maeng and Suh, 2023). High bits follow from the ranges seen in calibration, and lowering has
put them into the program: leaving them out is exact while values keep to their limits, as everything else is. A value
past its limit may then be read with the wrong sign; with all bits it would be right until it leaves the ring.

Low bits cost accuracy. A ReLU that drops ``shift`` bits behind it has outputs that are multiples of 2^shift, so faults
below 2^shift are of the size of its rounding. The search finds how far above the shifts all layers together can go, and
then goes on layer by layer, the largest first.
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
from deepreshape.private.program.ops import Integers, Relu
from deepreshape.private.program.program import Program

BATCH = 64
"""Inputs that go through the interpreter together: memory for one layer's patches."""


@dataclass(frozen=True)
class Calibrated:
    """A program whose ReLUs have low bits to ignore.

    Attributes:
        program: with its windows, for ``gc-stochastic:window``.
        exact: accuracy on the validation data with exact signs, in percent.
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
    """Let every ReLU ignore as many low bits as ``max_loss`` allows.

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
    relus = [op for op in program.ops if isinstance(op, Relu)]
    exact, tried = program_accuracy(program, inputs, labels), 0

    def afford(lows: Mapping[str, int]) -> float | None:
        """The accuracy, if it is not too low."""
        nonlocal tried
        tried += 1
        reached = program_accuracy(windowed(program, lows), inputs, labels, protocols=protocols, seed=seed)
        return reached if exact - reached <= max_loss else None

    def changes(trial: Mapping[str, int]) -> bool:
        """Whether these low bits are not what a window's bounds make of those there are."""
        return digest(windowed(program, trial)) != digest(windowed(program, lows))

    lows, reached = {op.name: 0 for op in relus}, exact
    lowest, highest = -max((op.shift for op in relus), default=0), program.modulus.bits
    while lowest < highest:  # the largest step above the shifts that can be afforded
        above = (lowest + highest + 1) // 2
        trial = {op.name: max(op.shift + above, 0) for op in relus}
        affordable = afford(trial)
        if affordable is None:
            highest = above - 1
        else:
            lowest, lows, reached = above, trial, affordable
    for op in sorted(relus, key=lambda op: -len(op.positions(program.values[op.name])[0])):
        trial = lows | {op.name: lows[op.name] + 1}
        while changes(trial) and (affordable := afford(trial)) is not None:
            lows, reached, trial = trial, affordable, trial | {op.name: trial[op.name] + 1}
    return Calibrated(windowed(program, lows), exact, reached, tried)


def windowed(program: Program, lows: Mapping[str, int]) -> Program:
    """The program with these low bits ignored, by ReLU; fewer where the rest would be too few for its values."""
    bounds = program.bounds()

    def window(op: Relu) -> Relu:
        bits = program.modulus.bits
        high = op.high or bits
        low = min(lows[op.name], high - 2)
        if isinstance(program.modulus, Ring):  # the highest bit serves all values up to 2^(high-1) - 2^low only
            bound = bounds[op.inputs[0]]
            while low and (1 << (high - 1)) - (1 << low) < bound:
                low, high = (low, high + 1) if high < bits else (low - 1, high)
        return replace(op, low=low, high=high)

    return replace(program, ops=tuple(window(op) if isinstance(op, Relu) else op for op in program.ops))


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
