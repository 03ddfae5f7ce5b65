"""One-bit layers in the integer program: whole numbers, windows that hold for every input, and no ReLU in between."""

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
from deepreshape.private.program import interpret
from deepreshape.private.program.encoding import from_bytes, to_bytes
from deepreshape.private.program.graph import Conv, Dense, Graph, Signed
from deepreshape.private.program.lower import lower
from deepreshape.private.program.one_bit import make_exact
from deepreshape.private.program.ops import Conv2d, Sign
from deepreshape.private.program.program import to_fixed
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.choose import Protocols

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


@pytest.mark.parametrize("change", ["two sizes", "read twice", "no sign before"])
def test_other_layers_are_left_as_they_are(change: str):
    weight = np.ones((2, 9))
    graph = between(weight, np.full(2, 0.5), np.full(2, 0.25))
    if change == "two sizes":
        weight[0, 0] = 2.0
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
