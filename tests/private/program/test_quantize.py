"""Formats, integers and error bounds, against real arithmetic on layers made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.graph import Conv, Dense, Flat, Layer, Pool, Rectify, Squared, Sum
from deepreshape.private.program.ops import INPUT, Conv2d, Linear, ProgramError, Raise, Relu, Truncate
from deepreshape.private.program.program import from_fixed, to_fixed
from deepreshape.private.program.quantization.formats import LEAST_BITS, WEIGHT_BITS
from deepreshape.private.program.quantize import quantize


def real(layers: list[Layer], x: np.ndarray) -> dict[str, np.ndarray]:
    """Every value of 1x1 convolutions and the rest on a batch, in float64."""
    values = {INPUT: x}
    for layer in layers:
        values[layer.name] = apply(layer, [values[name] for name in layer.inputs])
    return values


def apply(layer: Layer, inputs: list[np.ndarray]) -> np.ndarray:
    x = inputs[0]
    match layer:
        case Conv():
            return np.einsum("oi,nihw->nohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]
        case Dense():
            return x @ layer.weight.T + layer.bias
        case Sum():
            return np.sum(inputs, axis=0)
        case Pool():
            return x.sum((2, 3), keepdims=True)
        case Rectify():
            return np.maximum(x, 0) if layer.mask is None else np.where(layer.mask, np.maximum(x, 0), x)
        case Squared():  # without shifts and constants
            return np.where(layer.mask, np.maximum(x, 0), x * x)
        case Flat():
            return x.reshape(len(x), -1)


def ranges(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.abs(value).max()) for name, value in values.items()}


def residual(seed: int) -> list[Layer]:
    """A block with an identity shortcut, a linear block behind it, a pool and a head: every kind of step."""
    rng = np.random.default_rng(seed)

    def conv(name: str, source: str) -> Conv:
        return Conv(name, (source,), rng.normal(size=(3, 3, 1, 1)), rng.normal(size=3))

    mask = rng.random((3, 2, 2)) < 0.5
    mask[0], mask[1, 0, 0] = True, False
    return [
        conv("stem", INPUT),
        Rectify("act", ("stem",)),
        conv("conv1", "act"),
        Sum("add", ("conv1", "act")),
        Rectify("masked", ("add",), mask),
        conv("conv2", "masked"),
        conv("conv3", "conv2"),
        Pool("pool", ("conv3",), (2, 2), (2, 2)),
        Flat("flat", ("pool",)),
        Dense("head", ("flat",), rng.normal(size=(4, 3)), rng.normal(size=4)),
    ]


@given(st.integers(0, 1000), st.sampled_from([None, 4, 16]), st.sampled_from([None, Ring(60), Field((1 << 61) - 1)]))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_integers_stay_within_the_bounds_of_every_value(seed: int, fraction: int | None, modulus: Ring | Field | None):
    layers = residual(seed)
    x = np.random.default_rng(seed + 1).normal(size=(20, 3, 2, 2))
    wanted = real(layers, x)
    lowered = quantize(layers, (3, 2, 2), ranges(wanted), fraction=fraction, modulus=modulus)
    program, seen = lowered.program, {}
    plain.run(program, to_fixed(x, program.input_fraction), observe=lambda name, value: seen.update({name: value}))
    rows = {form.name: form for form in lowered.formats}
    assert list(rows) == list(program.values)
    by_name = {layer.name: layer for layer in layers}
    for name, integers in seen.items():
        got = from_fixed(integers, rows[name].fraction)
        assert np.abs(integers).max() <= rows[name].limit
        if name in wanted:
            assert np.abs(got - wanted[name]).max() <= rows[name].error
        if name in by_name and name != "add":
            before = [from_fixed(seen[source], rows[source].fraction) for source in program_inputs(program, name)]
            assert np.abs(got - apply(by_name[name], before)).max() <= rows[name].added
    result = from_fixed(seen["head"], rows["head"].fraction)
    assert (np.abs(result - wanted["head"]) <= lowered.error).all()


def program_inputs(program, name: str) -> tuple[str, ...]:
    return next(op.inputs for op in program.ops if op.name == name)


def test_accumulators_that_are_added_share_a_fraction_and_a_shortcut_is_raised_exactly():
    layers = residual(3)
    x = np.random.default_rng(4).normal(size=(20, 3, 2, 2))
    program = quantize(layers, (3, 2, 2), ranges(real(layers, x))).program
    ops = {op.name: op for op in program.ops}
    assert ops["add"].inputs == ("conv1", "add.raise1")
    gained = program.values["conv1"].fraction - program.input_fraction
    assert ops["add.raise1"] == Raise("add.raise1", ("act",), gained)
    assert program.values["conv1"] == program.values["add.raise1"]
    # every linear layer reads values at rest, and what no ReLU shifts back is truncated
    rest = program.input_fraction
    for op in program.ops:
        if op.name in program.weights:
            assert program.values[op.inputs[0]].fraction == rest
    assert [name for name, op in ops.items() if isinstance(op, Truncate)] == ["conv2.truncate", "flat.truncate"]


def test_a_shift_behind_a_relu_rounds_to_the_nearest():
    layers: list[Layer] = [
        Dense("scale", (INPUT,), np.array([[0.7]]), np.zeros(1)),
        Rectify("act", ("scale",)),
        Dense("head", ("act",), np.ones((1, 1)), np.zeros(1)),
    ]
    x = np.linspace(-1, 1, 999)[:, None]
    program = quantize(layers, (1,), ranges(real(layers, x)), fraction=4).program
    seen = {}
    plain.run(program, to_fixed(x, 4), observe=lambda name, value: seen.update({name: value}))
    weight = int(program.weights["scale"].weight[0, 0])
    shift = next(op.shift for op in program.ops if isinstance(op, Relu))
    exact = np.maximum(seen[INPUT] * weight, 0) / (1 << shift)
    assert np.abs(seen["act"] - exact).max() <= 0.5
    assert np.abs((seen["act"] - exact).mean()) < 0.05


def test_a_narrow_modulus_takes_bits_from_weights_and_activations_alike_until_too_few_are_left():
    layers = residual(5)
    seen = ranges(real(layers, np.random.default_rng(6).normal(size=(20, 3, 2, 2))))
    roomy = quantize(layers, (3, 2, 2), seen).program
    assert isinstance(roomy.modulus, Ring)
    less = quantize(layers, (3, 2, 2), seen, modulus=Ring(roomy.modulus.bits - 4)).program
    lost = roomy.input_fraction - less.input_fraction
    widest = {name: op.weight_bits for op in less.ops if (name := op.name) in less.weights and "raise" not in name}
    assert 1 <= lost <= 2
    assert min(widest.values()) >= WEIGHT_BITS - 2 - 1
    with pytest.raises(
        ProgramError, match=rf"^[a-z0-9]+: values reach .*Ring\(bits=14\).*use Ring\({roomy.modulus.bits}"
    ):
        quantize(layers, (3, 2, 2), seen, modulus=Ring(14))
    assert LEAST_BITS > 2


def test_sums_of_weights_are_declared_as_the_next_power_of_two():
    layers = residual(5)
    seen = ranges(real(layers, np.random.default_rng(6).normal(size=(20, 3, 2, 2))))
    program = quantize(layers, (3, 2, 2), seen).program
    for op in program.ops:
        if isinstance(op, Conv2d | Linear):
            weight = program.weights[op.name].weight
            total = int(np.abs(weight.reshape(len(weight), -1)).sum(1).max())
            assert total <= 1 << op.sum_bits < 2 * total


def test_what_only_calibration_promises_is_said():
    layers = residual(7)
    seen = ranges(real(layers, np.random.default_rng(8).normal(size=(20, 3, 2, 2))))
    tight = quantize(layers, (3, 2, 2), seen)
    assert tight.calibrated
    assert f"from {tight.calibrated[0]} on, are bounded by calibration only" in str(tight)
    wide = quantize(layers, (3, 2, 2), seen, modulus=Ring(60))
    assert not wide.calibrated
    assert "no input can overflow" in str(wide)
    replace(wide.program, limits={}).check()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"margin of 0\.5"):
        quantize(residual(0), (3, 2, 2), {}, margin=0.5)
    with pytest.raises(ValueError, match="41 fraction bits"):
        quantize(residual(0), (3, 2, 2), {}, fraction=41)
    with pytest.raises(ProgramError, match="nothing private to run"):
        quantize([Rectify("act", (INPUT,))], (3, 2, 2), {INPUT: 1.0, "act": 1.0})
    with pytest.raises(ValueError, match="not finite"):
        to_fixed(np.array([np.nan]), 3)


def test_the_bound_of_squares_counts_the_relus_among_them():
    """A square shrinks the errors of small values, a ReLU beside it does not."""
    rng = np.random.default_rng(0)
    mask = np.zeros((1, 2, 2), np.bool_)
    mask[0, 0] = True
    layers: list[Layer] = [
        Conv("difference", (INPUT,), np.array([[8.0, -8.0]]).reshape(1, 2, 1, 1), np.zeros(1)),
        Squared("squares", ("difference",), np.zeros(1), np.zeros(1), mask),
        Flat("flat", ("squares",)),
        Dense("head", ("flat",), np.eye(4), np.zeros(4)),
    ]
    x = rng.normal(size=(200, 1, 2, 2))
    x = np.concatenate([x, x + rng.uniform(-0.01, 0.01, x.shape)], 1)
    seen = real(layers, x)
    lowered = quantize(layers, (2, 2, 2), ranges(seen), fraction=8)
    program = lowered.program
    result = from_fixed(plain.run(program, to_fixed(x, 8)), program.values["head"].fraction)
    off = np.abs(result - seen["head"]).max(0)
    assert (off[:2] > 0.01).any()
    assert (off <= lowered.error).all()
