"""The plain interpreter against element-by-element loops over Python integers, and what it reports."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import random_inputs, random_program, slow

from deepreshape.private.arith.ring import DELPHI_PRIME, Field, Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.integer_linear import on_shares, products
from deepreshape.private.program.ops import Add, Conv2d, Flatten, Linear, Relu, SumPool, Truncate, Weights
from deepreshape.private.program.program import Program


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 3))
def test_equals_loops(seed: int, count: int) -> None:
    program = random_program(seed, linear=3)
    inputs = random_inputs(program, count, seed)
    seen: dict[str, np.ndarray] = {}
    output = plain.run(program, inputs, observe=seen.__setitem__)
    assert list(seen) == list(program.values)
    bounds = program.bounds()
    for i, x in enumerate(inputs):
        expected = slow(program, x)
        for name, values in seen.items():
            assert np.array_equal(values[i], expected[name])
            assert np.abs(values).max() <= bounds[name]
    assert np.array_equal(output, seen[program.outputs[0]])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), bits=st.integers(1, 62), weight_bits=st.integers(1, 30))
def test_products_of_any_width_are_exact(seed: int, bits: int, weight_bits: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-(1 << weight_bits), (1 << weight_bits) + 1, (3, 5))
    weights = Weights(weight, np.zeros(3, np.int64))
    x = rng.integers(-(1 << bits), (1 << bits) + 1, (2, 5))
    op = Linear("l", ("input",), 3, weight_bits, 0)
    total = sum(part.astype(object) << shift for shift, part in products(op, weights, x))
    assert np.array_equal(total, x.astype(object) @ weight.T.astype(object))


@pytest.mark.parametrize("modulus", [Ring(12), Ring(63), Field(DELPHI_PRIME), Field(2**61 - 1)])
def test_a_linear_operation_on_shares_is_one_modulo_the_order(modulus: Ring | Field) -> None:
    rng = np.random.default_rng(1)
    op = Conv2d("c", ("input",), 4, 3, 8, 0, stride=2, padding=1, groups=2)
    weights = Weights(rng.integers(-256, 257, (4, 1, 3, 3)), np.zeros(4, np.int64))
    share = modulus.random((2, 5, 5), Randomness())
    share[0, 0, 0] = modulus.order - 1
    expected = sum(part.astype(object) << s for s, part in products(op, weights, share.view(np.int64)[None]))
    assert np.array_equal(on_shares(op, weights, share, modulus), expected[0] % modulus.order)


def linear(weight: int, bias: int = 0, modulus: Ring | None = None, bound: int = 1 << 40) -> Program:
    weights = Weights(np.array([[weight]], np.int64), np.array([bias], np.int64))
    return Program(modulus or Ring(16), (1,), 0, bound, (Linear("fc", ("input",), 1, 30, 0),), {"fc": weights})


def test_overflow_is_reported_with_its_layer_and_never_wraps() -> None:
    at = np.array([[32767]])
    assert plain.run(linear(1), at).item() == 32767
    with pytest.raises(OverflowError, match=r"^fc: values from 32768 to 32768 exceed Ring\(bits=16\): 32767"):
        plain.run(linear(1, 1), at)
    with pytest.raises(OverflowError, match=f"^fc: .*{(1 << 69) + 5}"):  # past 64 bits as well
        plain.run(linear(1 << 30, 5), np.array([[1 << 39]]))
    # sums that would come back to zero in 64 bits
    many = Program(Ring(63), (1,), 0, 1 << 62, (Add("sum", ("input",) * 8),))
    with pytest.raises(OverflowError, match=f"^sum: values from {1 << 64}"):
        plain.run(many, np.array([[1 << 61]]))
    pool = Program(Ring(63), (1, 2, 4), 0, 1 << 62, (SumPool("pool", ("input",), (2, 4), (1, 1)),))
    with pytest.raises(OverflowError, match=f"^pool: values from -{1 << 64}"):
        plain.run(pool, np.full((1, 1, 2, 4), -(1 << 61)))


def test_what_truncation_without_a_relu_cannot_take_is_reported() -> None:
    cut = Truncate("cut", ("input",), 2)
    program = Program(Ring(16), (1,), 4, 1 << 14, (cut,))
    assert plain.run(program, np.array([[-5]])).item() == -1
    with pytest.raises(OverflowError, match=r"^input: .*what cut can truncate without a ReLU: 16380"):
        plain.run(program, np.array([[16381]]))


def test_inputs_that_do_not_fit_are_refused() -> None:
    program = Program(Ring(16), (2, 2, 1), 0, 3, (Flatten("f", ("input",)), Relu("r", ("f",))))
    for wrong in (np.zeros((1, 2, 2, 1), np.int32), np.zeros((2, 2, 1), np.int64), np.zeros((0, 2, 2, 1), np.int64)):
        with pytest.raises(ValueError, match="must be int64"):
            plain.run(program, wrong)
    with pytest.raises(OverflowError, match=r"^input: .*input bound: 3"):
        plain.run(program, np.full((1, 2, 2, 1), -4))
