"""Convolutions of signs by one-bit weights that feed signs alone: what is left of them is exact, in few bits.

Between signs the size of weights says nothing: s d + b > t if and only if d + (b - t) / s > 0, for sums d of signs,
weights of size s > 0 and a threshold t. d is a whole number, so that (b - t) / s may be rounded up. Then every value is
a whole number of at most the fan-in and that constant, for every input, and a sign test of it needs no more bits than
that: the fusion of ReActNet's thresholds and batch norms (Liu et al., ECCV 2020). Where a kernel reaches over the edge
of a map, d has fewer terms, and the same holds.

Weights of an output must be of exactly one size, or 0: a sum of others may be on the other side of the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np

from deepreshape.private.program.graph import Conv, Dense, Graph, Real, Signed

__all__ = ["make_exact"]

ROUNDED = 2.0**-48
"""What the folding of real numbers may be wrong by, as a part of the larger of bias and threshold."""


def make_exact(graph: Graph) -> bool:
    """Write such layers of a graph as whole numbers: weights of -1, 0 and 1, biases rounded up, thresholds of 0.

    Returns:
        Whether there were any.
    """
    pairs = [*_between_signs(graph)]
    for layer, sign in pairs:
        weight, bias = _whole(layer.weight, layer.bias, sign.threshold)
        graph.layers[graph.place(layer.name)] = replace(layer, weight=weight, bias=bias)
        graph.layers[graph.place(sign.name)] = replace(sign, threshold=np.zeros_like(sign.threshold))
    return bool(pairs)


def _between_signs(graph: Graph) -> Iterator[tuple[Conv | Dense, Signed]]:
    uses = graph.uses()
    for layer in graph.layers:
        if not isinstance(layer, Conv | Dense) or not isinstance(graph.named(layer.inputs[0]), Signed):
            continue
        readers = [graph.layers[place] for place in graph.readers(layer.name)]
        if uses[layer.name] == 1 and len(readers) == 1 and isinstance(readers[0], Signed) and _one_bit(layer.weight):
            yield layer, readers[0]


def _one_bit(weight: Real) -> bool:
    """Whether the weights of each output are of one size, or 0."""
    rows = np.abs(weight.reshape(len(weight), -1))
    return bool(((rows == 0) | (rows == rows.max(1, keepdims=True))).all())


def _whole(weight: Real, bias: Real, threshold: Real) -> tuple[Real, Real]:
    """Weights and biases of -1, 0, 1 and whole numbers for which sums are above 0 where the given ones are."""
    rows = np.abs(weight.reshape(len(weight), -1))
    size, limit, above = rows.max(1), np.count_nonzero(rows, axis=1) + 1, bias - threshold
    # without weights the sum is 0, and the constant alone is the sign
    constant = np.where(size > 0, above / np.where(size > 0, size, 1.0), np.where(above > 0, 1.0, 0.0))
    constant = np.clip(constant, -limit, limit)
    near, slack = np.rint(constant), ROUNDED * np.maximum(np.abs(bias), np.abs(threshold))
    # a constant that is whole but for the rounding of real numbers is not rounded up past it
    return np.sign(weight), cast(Real, np.where(np.abs(constant - near) * size <= slack, near, np.ceil(constant)))
