"""Every operation there is: in the clear, on shares, in real numbers, as bytes, and priced."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.programs import random_inputs, run_both, slow

from deepreshape.engines.real import bound, evaluate_program, parameters
from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.arith.truncation import ShareTruncation
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.encoding import digest, from_bytes, to_bytes
from deepreshape.private.program.ops import (
    OPS,
    Add,
    Concat,
    Conv2d,
    Fill,
    Flatten,
    Gather,
    Linear,
    Local,
    Op,
    ProgramError,
    Raise,
    Relu,
    Rescale,
    Secret,
    Sign,
    Square,
    SumPool,
    Truncate,
    Weighted,
    Weights,
)
from deepreshape.private.program.program import Program, truncation_room
from deepreshape.private.protocols.choose import Protocols

IMAGE = (2, 3, 4)
EXAMPLES: tuple[Op, ...] = (
    Conv2d("op", ("input",), 4, 3, 3, 2, 2, 1, 2),
    Conv2d("op", ("input",), 4, 3, 3, 2, 1, 1, 2, mask=np.arange(12).reshape(3, 4) % 3 > 0),
    Linear("op", ("input",), 3, 3, 2),
    Add("op", ("input", "input", "input")),
    SumPool("op", ("input",), (2, 3), (1, 1)),
    Relu("op", ("input",), 2, np.arange(24).reshape(IMAGE) % 3 > 0),
    Square("op", ("input",), 1, 3, 1, np.arange(24).reshape(IMAGE) % 3 > 0),
    Sign("op", ("input",)),
    Truncate("op", ("input",), 2),
    Raise("op", ("input",), 3),
    Rescale("op", ("input",), -5, 2, 77),
    Flatten("op", ("input",)),
    Concat("op", ("input", "input")),
    Gather("op", ("input",), np.array([[[5, -1], [23, 5]]], np.int32)),
    Fill("op", ("input",), np.arange(6).reshape(2, 3) % 2 > 0),
)


class Numpy:
    """NumPy as an engine that loses nothing."""

    arrays = np

    def convolve(self, x, weight, stride, padding):
        edge = (padding, padding)
        views = np.lib.stride_tricks.sliding_window_view(
            np.pad(x, ((0, 0), (0, 0), edge, edge)), weight.shape[2:], (2, 3)
        )
        return np.einsum("nchwij,kcij->nkhw", views[:, :, ::stride, ::stride], weight)

    def multiply(self, x, weight):
        return x @ weight.T


def program(op: Op) -> Program:
    rng = np.random.default_rng(0)
    shape = (6,) if isinstance(op, Linear) else (2, 3) if isinstance(op, Fill) else IMAGE
    bare = Program(Ring(20), shape, 4, 99, (op,))
    weights = {}
    if isinstance(op, Secret):
        full = op.weight_shape(bare.values["input"])
        weights["op"] = Weights(rng.integers(-8, 9, full), rng.integers(-99, 100, full[:1]))
    return Program(Ring(20), shape, 4, 99, (op,), weights)


def concrete(cls: type[Op]) -> Iterator[type[Op]]:
    for below in cls.__subclasses__():
        yield from concrete(below)
        if not below.__subclasses__():
            yield below


def test_every_operation_is_listed_and_has_an_example():
    ours = {cls for cls in concrete(Op) if cls.__module__.startswith("deepreshape.")}  # tests define others
    assert ours == {*OPS} == {type(op) for op in EXAMPLES}
    assert len({cls.kind for cls in OPS}) == len(OPS)


@pytest.mark.parametrize("op", EXAMPLES, ids=lambda op: op.kind)
def test_every_reading_of_an_operation_agrees(op: Op):
    given = program(op)
    x = random_inputs(given, 2, 1)
    integers = plain.run(given, x)
    assert [row.tolist() for row in integers] == [slow(given, each)["op"].tolist() for each in x]
    assert np.abs(integers).max() <= given.bounds()["op"]
    again = from_bytes(to_bytes(given))
    assert digest(again) == digest(given)
    assert np.array_equal(plain.run(again, x), integers)
    real = evaluate_program(given, np.ldexp(x.astype(np.float64), -4), parameters(given), Numpy())
    tolerance = bound(given, 60).reshape(-1, *[1] * (integers.ndim - 2))
    assert (np.abs(real - given.decode(integers)[0]) <= tolerance).all()
    run = run_both(given, x[0])
    assert np.array_equal(run.output, plain.run(given, x[:1], client=run.client_shares, protocols=Protocols())[0])
    online = Plan(given.public()).declared().only(layer="op", phase="online")
    assert (online.bytes == 0) == isinstance(op, Local | Weighted)


def test_several_outputs_are_learned_together_and_decoded_apart():
    ops = (Flatten("flat", ("input",)), Raise("fine", ("flat",), 2), Relu("relu", ("input",), 1))
    given = Program(Ring(16), IMAGE, 4, 99, ops, outputs=("relu", "fine"))
    x = random_inputs(given, 1, 2)
    run = run_both(given, x[0])
    assert np.array_equal(run.output, plain.run(given, x)[0])
    relu, fine = given.decode(run.output)
    assert np.array_equal(relu, (np.maximum(x[0], 0) + 1) // 2 / 8)
    assert np.array_equal(fine, x[0].reshape(-1) / 16)
    assert from_bytes(to_bytes(given)).outputs == ("relu", "fine")
    for wrong in (("relu", "relu"), ("nothing",)):
        with pytest.raises(ProgramError, match="must be values of this program, none of them twice"):
            Program(Ring(16), IMAGE, 4, 99, ops, outputs=wrong)


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (Rescale("a", ("input",), 0), "a: a factor of 0"),
        (Concat("a", ("input",)), "a: has 1 inputs"),
        (Gather("a", ("input",), np.array([24], np.int32)), "a: reads 24 to 24 of 24 elements"),
        (Gather("a", ("input",), np.array([0], np.int64)), "a: its index is int64"),
    ],
)
def test_operations_that_do_not_fit_are_refused(op: Op, words: str):
    with pytest.raises(ProgramError, match=words):
        Program(Ring(20), IMAGE, 4, 99, (op,))


@pytest.mark.parametrize("modulus", [Ring(8), Field(251)], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2, 4])
def test_what_truncation_leaves_is_within_its_worst_case(modulus: Ring | Field, shift: int) -> None:
    """For every value that has room, and every share of it: over a field it may end two units from zero too far."""
    most = truncation_room(modulus, shift)
    op, truncation = Truncate("op", ("input",), shift), ShareTruncation(modulus, shift, modulus.order // 4)
    client = np.arange(modulus.order, dtype=np.uint64)
    largest = {
        x: int(np.abs(truncation.rounded(np.full(len(client), x), client)).max()) for x in range(-most, most + 1)
    }
    assert most > 30
    assert all(reached <= op.worst((abs(x),), None) for x, reached in largest.items())
    assert all(reached <= Relu("op", ("input",), shift).worst((abs(x),), None) for x, reached in largest.items())
