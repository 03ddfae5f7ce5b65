"""Convolutions in Python integers, and random ones."""

from __future__ import annotations

import numpy as np

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.he.packing import Convolution
from deepreshape.private.crypto.he.residues import uniform


def exact_product(layer: Convolution, weights, mask, modulus):
    """W r mod t in Python integers, tap by tap."""
    p, s, k = layer.padding, layer.stride, layer.kernel
    padded = np.pad(mask.astype(object), ((0, 0), (p, p), (p, p)))
    _, rows, columns = layer.output_shape
    total = np.zeros(layer.output_shape, object)
    for a in range(k):
        for b in range(k):
            seen = padded[:, a : a + (rows - 1) * s + 1 : s, b : b + (columns - 1) * s + 1 : s]
            total = total + np.tensordot(weights[:, :, a, b].astype(object), seen, axes=1)
    return total % modulus


def random_case(layer: Convolution, modulus: int, seed: int = 0):
    mask = uniform(Randomness(), int(np.prod(layer.input_shape)), modulus).reshape(layer.input_shape)
    top = 2**layer.weight_bits
    return np.random.default_rng(seed).integers(-top, top + 1, layer.weight_shape), mask
