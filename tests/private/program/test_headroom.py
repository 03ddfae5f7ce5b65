"""How near inputs come to the limits of squares."""

import numpy as np
import pytest
import torch
from torch import nn

from deepreshape.models import architecture, build
from deepreshape.private.program.headroom import square_headroom
from deepreshape.private.program.interpret import run
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Square
from deepreshape.private.program.program import Program

X = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def program() -> Program:
    model: nn.Module = build(architecture("stch-2x-m2-phi1.1-herpn", (1, 8, 8), 10), seed=0)
    for _ in range(20):
        model(torch.from_numpy(X))  # for its statistics
    return lower(model.eval(), X[:32]).program


def test_it_is_the_largest_input_of_each_square_beside_its_limit(program: Program):
    values: dict[str, np.ndarray] = {}
    inputs = program.encode(X)
    run(program, inputs, observe=lambda name, integers: values.setdefault(name, np.abs(integers)))
    headroom = square_headroom(program, inputs)
    squares = [op for op in program.ops if isinstance(op, Square)]
    assert list(headroom) == [op.name for op in squares]
    for op in squares:
        largest = values[op.inputs[0]].reshape(len(X), -1).max(axis=1)
        unit, limit = 2.0 ** -program.values[op.inputs[0]].fraction, op.squaring(program.modulus).limit
        assert headroom[op.name].limit == limit * unit
        assert headroom[op.name].largest == largest.max() * unit
        assert headroom[op.name].share == (2 * largest > limit).mean()


def test_inputs_beyond_what_can_be_computed_count_as_beyond(program: Program):
    inputs = program.encode(X[:33])
    calm = square_headroom(program, inputs)
    inputs[5] = np.clip(inputs[5] * 50, -program.input_bound, program.input_bound)
    inputs[32] = 0
    wild = square_headroom(program, inputs)
    assert all(np.isfinite(room.largest) for room in calm.values())
    shares = [wild[name].share - calm[name].share for name in wild]
    assert max(shares) > 0
    assert max(room.share for room in wild.values()) < 0.5  # the others are looked at one by one


def test_a_network_of_relus_has_none():
    model = build(architecture("stch-2x-m2-phi1.1", (1, 8, 8), 10), seed=0).eval()
    program = lower(model, X[:8]).program
    assert square_headroom(program, program.encode(X)) == {}
