"""One-bit layers in the integer program: whole numbers, windows that hold for every input, and no ReLU in between."""

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from support.lowered import answers, drawn, prepared
from support.programs import run_both
from torch import nn

from deepreshape.models import architecture, build
from deepreshape.models.react import fuse_thresholds
from deepreshape.nn import RPReLU
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program import interpret
from deepreshape.private.program.encoding import from_bytes, to_bytes
from deepreshape.private.program.graph import Conv, Dense, Graph, Signed
from deepreshape.private.program.lower import lower
from deepreshape.private.program.one_bit import make_exact
from deepreshape.private.program.ops import Conv2d, ProgramError, Sign
from deepreshape.private.program.program import Program, to_fixed
from deepreshape.private.program.relu_config import ReluConfig, read_relus
from deepreshape.private.program.sign_bits import calibrate, program_accuracy, windowed
from deepreshape.private.protocols.choose import Protocols
from deepreshape.private.protocols.transfers.relu_ot import OtLayer

SIGNS = np.array([*product([-1.0, 1.0], repeat=9)])
"""Every input of nine signs."""


def between(weight: np.ndarray, bias: np.ndarray, threshold: np.ndarray) -> Graph:
    """A linear layer between two signs."""
    layers = [
        Signed("before", ("input",), np.zeros(9)),
        Dense("layer", ("before",), weight, bias),
        Signed("behind", ("layer",), threshold),
    ]
    outs = len(weight)
    return Graph(layers, ["behind"], {"input": (9,), "before": (9,), "layer": (outs,), "behind": (outs,)})


def test_whole_numbers_have_the_signs_of_the_real_ones_for_every_input():
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = rng.uniform(0.01, 3, (8, 1))
        weight = size * rng.choice([-1.0, 0.0, 1.0], (8, 9), p=[0.45, 0.1, 0.45])
        bias, threshold = rng.normal(0, 5, 8), rng.normal(0, 1, 8)
        graph = between(weight, bias, threshold)
        make_exact(graph)
        layer, behind = graph.named("layer"), graph.named("behind")
        assert isinstance(layer, Dense)
        assert isinstance(behind, Signed)
        assert not behind.threshold.any()
        assert {*np.unique(layer.weight)} <= {-1.0, 0.0, 1.0}
        assert np.array_equal(layer.bias, np.rint(layer.bias))
        assert (np.abs(layer.bias) <= 10).all()
        whole = SIGNS @ layer.weight.T + layer.bias > 0
        assert np.array_equal(whole, SIGNS @ weight.T + bias > threshold)


def test_ties_and_what_is_next_to_them_are_decided_as_in_float64():
    """Constants that are whole, and those a little above or below, also next to 0, where many sums are."""
    rng = np.random.default_rng(1)
    offsets = np.array([0.0, 1e-3, 1e-7, 1e-8, 1e-15, 1e-30])
    constants = np.concatenate(
        [offsets, -offsets, *[whole + sign * offsets[:4] for whole in (1, -2, 9, -10) for sign in (1, -1)]]
    )
    for size in (1.0, 0.25, 2.0**-20):  # so that float64 has no rounding of its own here
        weight = size * rng.choice([-1.0, 0.0, 1.0], (len(constants), 9), p=[0.4, 0.2, 0.4])
        weight[:3] = 0
        threshold = size * rng.integers(-3, 4, len(constants)) * (np.abs(constants) >= 1)
        bias = size * constants + threshold
        graph = between(weight, bias, threshold)
        assert make_exact(graph)
        layer = graph.named("layer")
        assert isinstance(layer, Dense)
        assert np.array_equal(SIGNS @ layer.weight.T + layer.bias > 0, SIGNS @ weight.T + (bias - threshold) > 0)


def test_a_constant_that_is_whole_but_for_rounding_is_not_rounded_up():
    graph = between(np.full((1, 9), 0.1), np.array([0.3]), np.zeros(1))
    make_exact(graph)
    layer = graph.named("layer")
    assert isinstance(layer, Dense)
    assert layer.bias.tolist() == [3.0]  # 0.3 / 0.1 is a little below; 0.7 / 0.1 and others a little above
    graph = between(np.full((1, 9), 0.1), np.array([0.1 + 0.2]), np.zeros(1))
    make_exact(graph)
    layer = graph.named("layer")
    assert isinstance(layer, Dense)
    assert layer.bias.tolist() == [3.0]


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 1, 2), (1, 2, 2), (3, 0, 4)])
def test_convolutions_with_edges_and_groups_have_the_signs_of_the_real_ones(stride: int, padding: int, groups: int):
    rng = np.random.default_rng(padding)
    size = rng.integers(1, 64, (8, 1, 1, 1)) / 16  # sums of these are exact in float64, and so are ties at 0
    weight = size * rng.choice([-1.0, 1.0], (8, 4 // groups, 3, 3))
    bias, threshold = rng.normal(0, 5, 8), rng.normal(0, 1, 8)
    bias[:2] = threshold[:2] = 0
    layers = [
        Signed("before", ("input",), np.zeros(4)),
        Conv("layer", ("before",), weight, bias, stride, padding, groups),
        Signed("behind", ("layer",), threshold),
    ]
    shape = (8, *(((9 + 2 * padding - 3) // stride + 1,) * 2))
    graph = Graph(layers, ["behind"], {"input": (4, 9, 9), "before": (4, 9, 9), "layer": shape, "behind": shape})
    assert make_exact(graph)
    whole = graph.named("layer")
    assert isinstance(whole, Conv)
    x = torch.from_numpy(rng.choice([-1.0, 1.0], (50, 4, 9, 9)))

    def sums(weight: np.ndarray, constant: np.ndarray) -> torch.Tensor:
        weights, constants = torch.from_numpy(weight), torch.from_numpy(constant)
        return nn.functional.conv2d(x, weights, constants, stride, padding, 1, groups)

    assert torch.equal(sums(whole.weight, whole.bias) > 0, sums(weight, bias - threshold) > 0)
    assert sums(np.abs(whole.weight), np.abs(whole.bias)).max() <= 2 * 9 * (4 // groups) + 1


@pytest.mark.parametrize("change", ["two sizes", "nearly one size", "read twice", "no sign before"])
def test_other_layers_are_left_as_they_are(change: str):
    weight = np.ones((2, 9))
    graph = between(weight, np.full(2, 0.5), np.full(2, 0.25))
    if change == "two sizes":
        weight[0, 0] = 2.0
    elif change == "nearly one size":
        weight[0, 0] = 1 + 1e-9
    elif change == "read twice":
        graph.outputs.append("layer")
    else:
        graph.layers[1] = Dense("layer", ("input",), weight, np.full(2, 0.5))
    make_exact(graph)
    layer = graph.named("layer")
    assert isinstance(layer, Conv | Dense)
    assert layer.bias.tolist() == [0.5, 0.5]


def network(name: str) -> tuple[nn.Module, np.ndarray]:
    x = drawn(64, 1, 8, 8)
    return prepared(build(architecture(name, (1, 8, 8), 10), seed=1), x), x


STRAIGHT = "react18-m4-phi1.1.1.1-noshortcuts"


def test_fused_rprelus_compute_the_same_bit_for_bit_and_one_is_left():
    model, x = network(STRAIGHT)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RPReLU):
                module.before.normal_(0, 0.3)
                module.after.normal_(0, 0.3)
                module.slope.uniform_(0.05, 1.5)
    fused = fuse_thresholds(model)
    with torch.no_grad():
        assert torch.equal(fused(torch.from_numpy(x)), model(torch.from_numpy(x)))
    assert sum(isinstance(module, RPReLU) for module in fused.modules()) == 1
    assert sum(isinstance(module, RPReLU) for module in model.modules()) == 8
    shortcut, _ = network("react18-m4-phi1.1.1.1")
    assert fuse_thresholds(shortcut) is shortcut


def test_windows_between_signs_hold_for_every_input_and_come_from_the_fan_in():
    model, x = network(STRAIGHT)
    program = lower(model, x).program
    convolutions = {op.name: op for op in program.ops if isinstance(op, Conv2d)}
    narrow = [op for op in program.ops if isinstance(op, Sign) and op.inputs[0] in convolutions][1:]
    assert len(narrow) == 7
    assert program.relus == 32
    assert program.signs == 4 * 64 * 2 + 64 * 4 + 8 * 16 + 8 * 16 + 16 * 4 + 16 * 4 + 32
    for op in narrow:
        layer = convolutions[op.inputs[0]]
        assert (layer.weight_bits, layer.weight_fraction) == (1, 0)
        fan_in = int(np.prod(layer.weight_shape(program.values[layer.inputs[0]])[1:]))
        assert op.high <= (2 * fan_in + 1).bit_length() + 1
        # inputs far beyond all that calibration saw
        weights = program.weights[layer.name]
        most = np.abs(weights.weight).reshape(len(weights.weight), -1).sum(1) + np.abs(weights.bias)
        assert most.max() <= 2 ** (op.high - 1) - 1


@pytest.mark.parametrize("far", [1e4, 1e30, -1e30])
def test_a_threshold_beyond_all_values_decides_them_all_and_costs_a_bit(far: float):
    model, x = network(STRAIGHT)
    with torch.no_grad():
        for name in ("stage1.0.unit1.sign", "stage2.0.unit1.sign"):
            model.get_submodule(name).threshold[0] = far
    lowered = lower(model, x)
    program = lowered.program
    for word in ("gc-full", "ot"):
        program.check(Plan(program.public(), ReluConfig.parse(word)).max_inputs)
    signs: dict[str, np.ndarray] = {}
    interpret.run(
        program, to_fixed(x, program.input_fraction), observe=lambda name, values: signs.update({name: values})
    )
    for name in ("stage1.0.unit1.sign", "stage2.0.unit1.sign"):
        assert set(signs[name][:, 0].ravel().tolist()) == {-1 if far > 0 else 1}
        assert {*signs[name][:, 1].ravel().tolist()} == {-1, 1}
    assert all(op.high < 12 for op in program.ops if isinstance(op, Sign) and op.name != "stage1.0.unit1.sign")


@pytest.mark.parametrize(
    "name",
    [STRAIGHT, "react18-m4-phi1.1.1.1", "react18-m4-phi1.1.1.1-signs-relus", "reacta-m4-phi1.1.1.1.1"],
)
def test_the_program_gives_what_the_network_gives(name: str):
    model, x = network(name)
    lowered = lower(model, x, fraction=18)  # so fine that hardly a value falls on the other side of a threshold
    got = answers(lowered, x)
    with torch.no_grad():
        wanted = model.double()(torch.from_numpy(x).double()).numpy()
    assert (np.abs(got - wanted) <= lowered.error).all()
    close = np.abs(got - wanted).max(1) <= 0.02 * (1 + np.abs(wanted).max())
    assert close.mean() >= 0.95


@cache
def behind_shortcuts() -> tuple[Program, np.ndarray]:
    """A program whose signs read real numbers, and inputs of its network."""
    model, x = network("react18-m4-phi1.1.1.1-norelus")
    return lower(model, x).program, x


def signs_of(program: Program) -> list[Sign]:
    return [op for op in program.ops if isinstance(op, Sign)]


def test_signs_of_real_numbers_have_calibrated_windows_that_hold_their_limits_and_never_widen():
    program, _ = behind_shortcuts()
    bounds = program.bounds()
    for op in signs_of(program):
        reach = op.reach(bounds[op.inputs[0]], program.weights[op.name])
        assert 2 ** (op.calibrated - 2) <= reach <= 2 ** (op.calibrated - 1) - 1 or op.calibrated == op.high
        assert op.calibrated <= (op.high or program.modulus.bits)
    assert sum(op.calibrated < (op.high or program.modulus.bits) for op in signs_of(program)) >= 6
    for word in ("gc-sign:window", "ot:window"):
        program.check(Plan(program.public(), ReluConfig.parse(word)).max_inputs)


def test_proven_windows_are_never_calibrated_and_stay_exact_whatever_may_be_lost():
    model, x = network(STRAIGHT)
    program = lower(model, x).program
    first, *narrow = signs_of(program)
    assert first.calibrated > 0
    assert all(op.calibrated == 0 for op in narrow)
    protocols = Protocols(ReluConfig.parse("gc-stochastic:window"))
    inputs = to_fixed(x, program.input_fraction)
    labels = interpret.run(program, inputs).argmax(1)
    program = calibrate(program, inputs, labels, protocols=protocols, max_loss=100).program
    assert signs_of(program)[0].low > 0
    assert signs_of(program)[1:] == narrow
    words = ("gc-stochastic:window", "ot:window")
    for step in [step for word in words for step in Plan(program.public(), ReluConfig.parse(word)).steps]:
        if step.name in {op.name for op in narrow}:
            test = step.layer.relu.sign if isinstance(step.layer, OtLayer) else step.layer.test
            assert test.low == 0


def test_the_search_ignores_bits_of_signs_and_keeps_its_promise():
    program, x = behind_shortcuts()
    protocols = Protocols(ReluConfig.parse("gc-stochastic:window"))
    inputs = to_fixed(x, program.input_fraction)
    labels = interpret.run(program, inputs).argmax(1)
    result = calibrate(program, inputs, labels, protocols=protocols, max_loss=4)
    assert result.exact - result.reached <= 4
    assert program_accuracy(result.program, inputs, labels, protocols=protocols) == result.reached
    assert all(op.low > 0 for op in signs_of(result.program))
    assert to_bytes(from_bytes(to_bytes(result.program))) == to_bytes(result.program)
    plans = [Plan(result.program.public(), ReluConfig.parse(word)) for word in ("gc-sign", "gc-stochastic:window")]
    wide, windowed = (plan.declared().only(layer=signs_of(program)[-1].name).bytes for plan in plans)
    assert windowed < 0.6 * wide
    assert max(op.calibrated - op.low for op in signs_of(result.program)) < 20


def test_an_input_past_a_window_is_refused_by_the_interpreter_and_read_with_all_bits_without():
    program, x = behind_shortcuts()
    first = signs_of(program)[0]
    narrow = replace(program, ops=tuple(replace(op, calibrated=9) if op == first else op for op in program.ops))
    inputs = to_fixed(x, program.input_fraction)
    exact = interpret.run(program, inputs)
    assert np.array_equal(interpret.run(narrow, inputs, protocols=Protocols(ReluConfig.parse("gc-sign"))), exact)
    with pytest.raises(OverflowError, match=rf"what {first.name} can take by gc-sign:window: 255"):
        interpret.run(narrow, inputs, protocols=Protocols(ReluConfig.parse("gc-sign:window")))
    with pytest.raises(ProgramError, match=rf"which {first.name} takes, and only 255 fits"):
        narrow.check(Plan(narrow.public(), ReluConfig.parse("gc-sign:window")).max_inputs)


@pytest.mark.parametrize("word", ["gc-sign:window", "gc-stochastic:window,neg-pass", "ot:window,tree"])
def test_two_parties_read_windows_as_the_interpreter_does(word: str):
    program, x = behind_shortcuts()
    lows = {op.name: op.calibrated - 7 for op in signs_of(program)}  # so much that faults are common
    program = windowed(program, lows)
    relu, inputs = read_relus(word), to_fixed(x[:1], program.input_fraction)
    run = run_both(program, inputs[0], batch=4096, relu=relu, workers=1)
    signs = [dict[str, np.ndarray](), dict[str, np.ndarray]()]
    wanted = interpret.run(
        program, inputs, client=run.client_shares, protocols=Protocols(relu), observe=signs[0].__setitem__
    )
    assert np.array_equal(run.output, wanted[0])
    interpret.run(program, inputs, observe=signs[1].__setitem__)
    names = [op.name for op in signs_of(program)]
    if word == "gc-sign:window":  # the first is not yet behind a truncation
        assert np.array_equal(signs[0][names[0]], signs[1][names[0]])
    else:
        assert any((signs[0][name] != signs[1][name]).any() for name in names)


@pytest.mark.parametrize("word", ["gc-full", "gc-sign", "gc-full:garbler=client", "ot", "ot:window,tree"])
def test_two_parties_compute_it_bit_for_bit(word: str):
    model, x = network(STRAIGHT)
    program = lower(model, x).program
    assert to_bytes(from_bytes(to_bytes(program))) == to_bytes(program)
    inputs = to_fixed(x[:1], program.input_fraction)
    config = ReluConfig.parse(word)
    run = run_both(program, inputs[0], garbler=config.garbler, batch=4096, relu=config, workers=1)
    wanted = interpret.run(program, inputs, client=run.client_shares, protocols=Protocols(config))
    assert np.array_equal(run.output, wanted[0])
