"""Convolutions of signs by one-bit weights that feed signs alone: what is left of them is exact, in few bits.

Between signs the size of weights says nothing: s d + b > t if and only if d + (b - t) / s > 0, for sums d of signs,
weights of size s > 0 and a threshold t. d is a whole number, so that (b - t) / s may be rounded up. Then every value is
a whole number of at most the fan-in and that constant, for every input, and a sign test of it needs no more bits than
that: the fusion of ReActNet's thresholds and batch norms (Liu et al., ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np

from deepreshape.private.program.graph import Conv, Dense, Graph, Real, Signed

__all__ = ["make_exact"]


def make_exact(graph: Graph) -> bool:
    """Write such layers of a graph as whole numbers: weights of -1, 0 and 1, biases rounded up, thresholds of 0.

    Returns:
        Whether there were any.
    """
    pairs = [*_between_signs(graph)]
    for layer, sign in pairs:
        weight, bias = _whole(layer.weight, layer.bias - sign.threshold)
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
    size = rows.max(1, keepdims=True)
    return bool(((rows == 0) | np.isclose(rows, size, rtol=1e-5, atol=0)).all())


def _whole(weight: Real, above: Real) -> tuple[Real, Real]:
    """Weights and biases of -1, 0, 1 and whole numbers for which sums are above 0 where the given ones are."""
    fan_in = np.count_nonzero(weight.reshape(len(weight), -1), axis=1)
    size = np.abs(weight.reshape(len(weight), -1)).max(1)
    constant = np.where(size > 0, above / np.where(size > 0, size, 1.0), np.where(above > 0, 1.0, 0.0))
    near = np.rint(constant)
    # a constant that is whole but for the rounding of real numbers is not rounded up past it
    constant = np.where(np.abs(constant - near) < 1e-6, near, np.ceil(constant))
    limit = fan_in + 1
    return np.sign(weight), cast(Real, np.clip(constant, -limit, limit))
