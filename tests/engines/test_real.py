"""The program in real numbers is the plain integer program where no bits are dropped, else within the bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import random_inputs, random_program

from deepreshape.engines.real import LinearParameters, bound, evaluate_program, expected, parameters
from deepreshape.private.arith.ring import Ring
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.ops import Conv2d, Flatten, Linear, ProgramError, Relu, Weights
from deepreshape.private.program.program import Program, from_fixed

EXACT_FRACTION = 60
"""More bits than any value of the programs has: an engine that loses nothing."""


@dataclass
class Numpy:
    """NumPy as an engine; with ``fraction`` it truncates every product to that many bits, towards minus infinity."""

    fraction: int | None = None
    arrays: Any = np

    def convolve(self, x: Any, weight: Any, stride: int, padding: int) -> Any:
        padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        views = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
        return self.truncated(np.einsum("nchwij,kcij->nkhw", views, weight))

    def multiply(self, x: Any, weight: Any) -> Any:
        return self.truncated(x @ weight.T)

    def truncated(self, x: Any) -> Any:
        return x if self.fraction is None else self.held(x)

    def held(self, x: Any) -> Any:
        assert self.fraction is not None
        return np.ldexp(np.floor(np.ldexp(x, self.fraction)), -self.fraction)


def run(program: Program, x: Any, engine: Numpy) -> Any:
    weights = parameters(program)
    if engine.fraction is not None:
        weights = {name: LinearParameters(*map(engine.held, layer_weights)) for name, layer_weights in weights.items()}
        x = engine.held(x)
    return evaluate_program(program.public(), x, weights, engine)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), fraction=st.sampled_from([None, 1, 3, 6]))
def test_real_and_integer_outputs_are_within_the_bound(seed: int, fraction: int | None) -> None:
    program = random_program(seed)
    inputs = random_inputs(program, 3, seed)
    expected = from_fixed(plain.run(program, inputs), program.values[program.outputs[0]].fraction)
    outputs = run(program, from_fixed(inputs, program.input_fraction), Numpy(fraction))
    assert outputs.shape == expected.shape
    assert (np.abs(outputs - expected) <= bound(program, EXACT_FRACTION if fraction is None else fraction)).all()


def test_a_mask_costs_only_the_relus_it_keeps() -> None:
    rectified: list[int] = []

    class Counting:
        concatenate = staticmethod(np.concatenate)

        @staticmethod
        def maximum(x: Any, least: float) -> Any:
            rectified.append(x.size)
            return np.maximum(x, least)

    mask = np.zeros((2, 3, 3), np.bool_)
    mask[0, 1, 1] = mask[1, 2, :] = True
    program = Program(Ring(16), mask.shape, 4, 100, (Relu("relu", ("input",), 0, mask),))
    x = np.arange(-9.0, 9.0).reshape(1, *mask.shape)
    assert np.array_equal(evaluate_program(program, x, {}, Numpy(arrays=Counting)), np.where(mask, np.maximum(x, 0), x))
    assert rectified == [program.relus] == [4]


def test_the_bound_is_met_where_all_errors_point_one_way() -> None:
    ops = (Linear("head", ("input",), 1, 2, 0), Relu("last", ("head",), 2))
    weights = {"head": Weights(np.array([[1]]), np.array([0]))}
    program = Program(Ring(16), (1,), 2, 7, ops, weights)
    inputs = np.array([[6]])  # 1.5, of which the integers make 2
    assert plain.run(program, inputs) == 2
    assert bound(program, 2) == [0.5 + 0.25]
    assert bound(program, EXACT_FRACTION) == [0.5 + 2.0**-60]
    assert bound(program, 1) == [0.5 + 0.5 + 0.5 + 0.5]  # input, product, bias


def test_the_bound_counts_weights_that_an_engine_cannot_hold() -> None:
    weights = {"head": Weights(np.array([[3]]), np.array([0]))}
    program = Program(Ring(16), (1,), 2, 7, (Linear("head", ("input",), 1, 2, 2),), weights)
    lost = 0.5  # in the input, the weight, the product and the bias
    assert bound(program, 1) == [(0.75 + lost) * lost + lost * 1.75 + lost + lost]


def test_what_is_expected_adds_squares() -> None:
    weights = {"head": Weights(np.array([[3, -4]]), np.array([0]))}
    ops = (Linear("head", ("input",), 1, 3, 0), Relu("last", ("head",), 1))
    program = Program(Ring(16), (2,), 2, 7, ops, weights)
    assert bound(program, 1) == [(3 + 4 + 1 + 1) * 0.5 + 0.25]
    assert expected(program, 1) == [0.5 * np.sqrt(3**2 + 4**2 + 1 + 1 + 0.5**2)]


def test_the_bound_follows_channels_through_flatten() -> None:
    ops = (Conv2d("conv", ("input",), 2, 1, 2, 0), Flatten("flat", ("conv",)), Linear("head", ("flat",), 1, 2, 0))
    weights = {
        "conv": Weights(np.array([1, 3]).reshape(2, 1, 1, 1), np.zeros(2, np.int64)),
        "head": Weights(np.array([[0, 1, 0, 0]]), np.array([0])),
    }
    program = Program(Ring(16), (1, 1, 2), 2, 7, ops, weights)
    assert bound(program, 1) == [(1 * 0.5 + 0.5 + 0.5) + 0.5 + 0.5]


def test_a_public_program_has_no_bound() -> None:
    with pytest.raises(ProgramError, match="public"):
        bound(random_program(13).public(), 18)
    assert parameters(random_program(13).public()) == {}
