"""Programs: what is refused and with which words, what is public, what survives bytes."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import random_program

from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring
from deepreshape.private.program.encoding import LENGTH, MAGIC, digest, from_bytes, to_bytes
from deepreshape.private.program.ops import (
    Add,
    Conv2d,
    Flatten,
    Linear,
    Op,
    ProgramError,
    Relu,
    SumPool,
    Truncate,
    Value,
    Weights,
)
from deepreshape.private.program.program import Program

IMAGE = (2, 4, 4)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), prime=st.booleans())
def test_survives_bytes(seed: int, prime: bool) -> None:
    program = replace(random_program(seed, prime=prime), limits={"input": 7})
    data = to_bytes(program)
    again = from_bytes(data)
    assert to_bytes(again) == data
    assert again.values == program.values
    assert again.limits == program.limits
    assert digest(again) == digest(program) == digest(program.public())
    for name, weights in program.weights.items():
        assert np.array_equal(weights.weight, again.weights[name].weight)
        assert np.array_equal(weights.bias, again.weights[name].bias)


def example() -> Program:
    mask = np.arange(32).reshape(IMAGE) % 3 == 0
    ops = (
        Conv2d("conv", ("input",), 2, 3, 4, 4, padding=1),
        Relu("relu", ("conv",), 4, mask),
        SumPool("pool", ("relu",), (2, 2), (2, 2)),
        Flatten("flat", ("pool",)),
        Linear("fc", ("flat",), 3, 4, 4),
    )
    rng = np.random.default_rng(0)
    weights = {
        "conv": Weights(rng.integers(-16, 17, (2, 2, 3, 3)), rng.integers(-300, 300, 2)),
        "fc": Weights(rng.integers(-16, 17, (3, 8)), rng.integers(-300, 300, 3)),
    }
    return Program(Ring(24), IMAGE, 4, 15, ops, weights, {"relu": 30})


def test_the_digest_covers_all_that_is_public_and_nothing_else() -> None:
    program = example()
    secret = [
        replace(program, weights={k: Weights(-v.weight, v.bias + 1) for k, v in program.weights.items()}),
        replace(program, limits={}),
        program.public(),
    ]
    assert {digest(other) for other in secret} == {digest(program)}
    ops = program.ops
    flipped = replace(ops[1], mask=~ops[1].mask)  # type: ignore[union-attr]
    public = [
        replace(program, modulus=Ring(25)),
        replace(program, modulus=Field(CIRCA_PRIME)),
        replace(program, input_fraction=5),
        replace(program, input_bound=16),
        replace(program, ops=(ops[0], flipped, *ops[2:])),
        replace(program, ops=(replace(ops[0], weight_bits=5), *ops[1:])),
        replace(program, ops=(replace(ops[0], sum_bits=20), *ops[1:])),
        replace(program, ops=(*ops[:4], replace(ops[4], weight_fraction=3))),
    ]
    digests = {digest(other) for other in public}
    assert len(digests) == len(public)
    assert digest(program) not in digests
    assert program.public().weights == {}
    assert program.public().limits == {}
    assert b'"weights":{}' in to_bytes(program.public())


def test_a_bound_on_sums_that_lies_is_refused_and_one_that_holds_is_kept() -> None:
    program = example()
    conv, *rest = program.ops
    weight = program.weights[conv.name].weight
    total = int(np.abs(weight.reshape(len(weight), -1)).sum(1).max())
    true = (total - 1).bit_length()
    kept = replace(program, ops=(replace(conv, sum_bits=true), *rest))
    assert vars(from_bytes(to_bytes(kept)).ops[0]) == vars(kept.ops[0])
    with pytest.raises(
        ProgramError, match=rf"conv: absolute weights of one output sum to {total}, above the 2\^{true - 1}"
    ):
        replace(program, ops=(replace(conv, sum_bits=true - 1), *rest))
    lie = to_bytes(replace(kept.public(), ops=(replace(conv, sum_bits=true - 1), *rest)))
    assert from_bytes(lie).ops[0].sum_bits == true - 1  # type: ignore[union-attr]
    with pytest.raises(ProgramError, match="1 to 52 bits are supported"):
        replace(program.public(), ops=(replace(conv, sum_bits=53), *rest))


def test_no_secret_in_repr() -> None:
    program = example()
    assert "array" not in repr(program)
    assert "array" not in repr(program.weights["fc"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(at=st.integers(0, 10**6), to=st.binary(min_size=0, max_size=3), cut=st.booleans())
def test_damaged_bytes_give_a_program_error_or_another_program(at: int, to: bytes, cut: bool) -> None:
    data = bytearray(to_bytes(example()))
    at %= len(data)
    data[at : len(data) if cut else at + 1] = to
    with suppress(ProgramError):
        to_bytes(from_bytes(data))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"DRSHPRG2", b"DRSHPRG9", "no deepreshape program"),
        (b'"op":"relu"', b'"op":"gelu"', "'gelu' is not known"),
        (b'"kernel":3', b'"kernel":"', "not JSON"),
        (b'"kernel":3', b'"kernal":3', "conv must have the fields"),
        (b'"stride":1', b'"stride":0', "conv: sizes below 1"),
        (b'"groups":1', b'"groups":[', "not JSON"),
        (b'"shift":4', b'"shift":9', "relu: drops 9 bits"),
        (b'"mask":true', b'"mask":1234', "relu: mask must be true or false"),
        (b'"bits":24', b'"bits":99', "a ring of 99 bits"),
        (b'"bound":15', b'"bound":-1', "input bound must be an integer"),
        (b'"|i1"', b'"|O8"', "weights of types"),
        (b'"inputs":["conv"]', b'"inputs":["nope"]', "relu: reads 'nope'"),
        (b'"name":"relu"', b'"name":"r*lu"', "no plain name"),
    ],
)
def test_what_is_wrong_with_bytes_is_named(old: bytes, new: bytes, words: str) -> None:
    data = to_bytes(example())
    assert old in data
    assert len(old) == len(new)
    with pytest.raises(ProgramError, match=words):
        from_bytes(data.replace(old, new, 1))


def test_bytes_may_not_be_short_or_long() -> None:
    data = to_bytes(example())
    with pytest.raises(ProgramError, match="1 bytes are left"):
        from_bytes(data + b"\0")
    with pytest.raises(ProgramError, match="fc: its arrays take"):
        from_bytes(data[:-1])
    with pytest.raises(ProgramError, match="bytes, and 0 are there"):
        from_bytes(data[:16])


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (Conv2d("a", ("input",), 2, 5, 4, 4), "a: kernel 5 is larger"),
        (Conv2d("a", ("input",), 2, 3, 4, 4, padding=3), "a: padding 3 must be below kernel 3"),
        (Conv2d("a", ("input",), 3, 3, 4, 4, groups=2), "a: 2 to 3 channels do not divide into 2 groups"),
        (Conv2d("a", ("input",), 2, 3, 31, 4), "a: weights of 31 bits"),
        (Linear("a", ("input",), 2, 4, 4), "a: wants a flat input"),
        (Add("a", ("input",)), "a: has 1 inputs"),
        (SumPool("a", ("input",), (5, 1), (1, 1)), "a: a window of"),
        (Relu("a", ("input",), 5), "a: drops 5 bits of a value that has 4"),
        (Relu("a", ("input",), 0, np.ones((2, 4), np.bool_)), "a: its mask is bool of shape"),
        (Truncate("a", ("input", "input"), 1), "a: has 2 inputs"),
        (Flatten("a b", ("input",)), "'a b' is used already or no plain"),
        (Flatten("input", ("input",)), "'input' is used already"),
        (Flatten("a", ("b",)), "a: reads 'b', which no earlier"),
    ],
)
def test_what_is_wrong_with_an_operation_is_named(op: Op, words: str) -> None:
    with pytest.raises(ProgramError, match=words):
        Program(Ring(24), IMAGE, 4, 15, (op,))


def test_shapes_and_fractions() -> None:
    values = example().values
    assert values["conv"] == Value((2, 4, 4), 8)
    assert values["relu"] == Value((2, 4, 4), 4)
    assert values["pool"] == Value((2, 2, 2), 4)
    assert values["fc"] == Value((3,), 8)
    assert example().relus == 11


def test_weights_must_be_those_of_the_program() -> None:
    program = example()
    weights = program.weights["fc"]
    for wrong, words in [
        ({"fc": weights}, "weights are missing"),
        ({**program.weights, "fc": Weights(weights.weight.T, weights.bias)}, "fc: weights and bias are"),
        ({**program.weights, "fc": Weights(weights.weight + 16, weights.bias)}, r"fc: a weight is \d+, above the 2\^4"),
        ({**program.weights, "relu": weights}, "not wanted for"),
        ({**program.weights, "nope": weights}, "no value of this program"),
    ]:
        with pytest.raises(ProgramError, match=words):
            replace(program, weights=wrong)


def test_check_names_the_first_layer_that_may_not_fit_and_limits_help() -> None:
    program = example()
    program.check()
    with pytest.raises(ProgramError, match=r"^conv: values may reach \d+, and only 1023 fits Ring\(bits=11\)"):
        replace(program, modulus=Ring(11)).check()
    reach = program.bounds()["conv"]
    tight = replace(program, modulus=Ring(reach.bit_length() + 1), limits={"relu": 30, "fc": 99})
    with pytest.raises(ProgramError, match=r"^conv: .* which relu truncates without a ReLU"):
        tight.check()
    replace(tight, limits={"conv": reach // 4, "relu": 30, "fc": 99}).check()
    with pytest.raises(ProgramError, match="conv: bounds come from the weights"):
        program.public().check()


RELU = {"op": "relu", "name": "r", "inputs": ["input"], "shift": 0, "mask": False, "low": 0, "high": 0}
CONV = {"op": "conv2d", "name": "c", "inputs": ["input"], "out_channels": 1, "kernel": 1, "weight_bits": 3}
CONV |= {"weight_fraction": 0, "stride": 1, "padding": 0, "groups": 1, "sum_bits": 9}
LINEAR = {"op": "linear", "name": "a", "inputs": ["input"], "out_features": 2, "weight_bits": 3}
LINEAR |= {"weight_fraction": 0, "sum_bits": 4}


def described(shape: list[int], *ops: dict, weights: dict | None = None) -> bytes:
    source = {"shape": shape, "fraction": 0, "bound": 3}
    head = {"modulus": {"bits": 30}, "input": source, "ops": ops, "weights": weights or {}, "limits": {}}
    text = json.dumps(head).encode()
    return MAGIC + LENGTH.pack(len(text)) + text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (described([2], LINEAR, weights={"a": [[], []]}), r"a: weights of types \[\[\], \[\]\]"),
        (described([1 << 31], RELU), "an input of 2147483648 elements; at most 16777216"),
        (described([1] * 30_000, RELU), "an input of 30000 axes; at most 8"),
        (described([2], *({**RELU, "name": f"r{at}"} for at in range(20_000))), "20000 operations; at most 16384"),
        (described([2], {**LINEAR, "out_features": 1 << 28}), "makes 268435456 elements|has 536870912 weights"),
        (
            described([1, 2, 2], {**CONV, "kernel": 1 << 30, "padding": (1 << 30) - 1, "stride": 1 << 30}),
            "pads to .* elements; at most",
        ),
        (described([1 << 20, 4, 4], {**CONV, "out_channels": 1 << 20}), "has 1099511627776 weights; at most"),
        (MAGIC + LENGTH.pack(1 << 40) + bytes(9), "takes 1099511627776 bytes; at most 8388608 are read"),
    ],
)
def test_what_is_too_large_is_refused_before_any_work(data: bytes, words: str) -> None:
    tracemalloc.start()
    with pytest.raises(ProgramError, match=words):
        from_bytes(data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_relus_without_a_mask_are_counted_without_an_array() -> None:
    program = Program(Ring(30), (1 << 24,), 0, 3, (Relu("r", ("input",)),))
    tracemalloc.start()
    assert program.relus == 1 << 24
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()
