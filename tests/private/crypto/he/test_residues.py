"""Residues: exact distributions, and packing that loses what it says and no more."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.he.residues import (
    centred_binomial,
    dropped_bits,
    flood,
    largest_error,
    pack_residues,
    residue_bytes,
    restore,
    ternary,
    uniform,
    unpack_residues,
)

PRIMES = (1152921504606830593, 1152921504606748673, 1152921504606683137)
"""Of 60 bits."""


def test_dropped_bits_stay_in_range():
    prime = PRIMES[0]
    values = np.array([0, 1, prime // 2, prime - 1], np.uint64)
    for bits in range(4, 61, 4):
        for sent in (values, values[:3]):  # an even and an odd count
            sent = sent >> dropped_bits(prime, bits)
            packed = pack_residues(sent, bits)
            assert len(packed) == residue_bytes(len(sent), bits) == -(-len(sent) * bits // 8)
            assert (unpack_residues(packed, len(sent), bits) == sent).all()
        back = restore(values >> dropped_bits(prime, bits), prime, bits)
        assert int(back.max()) < prime
        assert max(abs(int(a) - int(b)) for a, b in zip(back, values, strict=True)) <= largest_error(prime, bits)


def test_samplers():
    rng = Randomness(bytes(32))
    draw = uniform(rng, 4000, 1000)
    assert draw.max() < 1000
    assert np.abs(np.bincount(draw.astype(np.int64), minlength=1000) - 4).max() < 16
    assert np.bincount(ternary(rng, 30_000) + 1).min() > 9_500
    errors = centred_binomial(rng, 40_000)
    assert np.abs(errors).max() <= 21
    assert abs(errors.mean()) < 0.1
    assert abs(errors.var() - 10.5) < 0.4


@pytest.mark.parametrize("bits", [3, 55, 58, 76, 91])
def test_flood_is_uniform_and_consistent(bits):
    """The residues of all primes belong to one integer in [-2^bits, 2^bits), and it fills that range."""
    residues = flood(Randomness(bytes(32)), 2000, bits, PRIMES)
    product = math.prod(PRIMES)
    lifts = [product // p * pow(product // p, -1, p) for p in PRIMES]
    whole = [sum(int(r) * c for r, c in zip(column, lifts, strict=True)) % product for column in residues.T]
    values = [v - product if v > product // 2 else v for v in whole]
    assert -(2**bits) <= min(values) < -0.8 * 2**bits
    assert 0.7 * 2**bits < max(values) < 2**bits
    assert abs(sum(v < 0 for v in values) - 1000) < 150
    assert abs(sum(v & 1 for v in values) - 1000) < 150
