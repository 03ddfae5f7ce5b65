"""Quadratics carried as squares: the same function, no sign and no product with a secret left, and what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepreshape.private.program.graph import Conv, Dense, Flat, Graph, Layer, Pool, Quadratic, Rectify, Squared, Sum
from deepreshape.private.program.lowering.real import run_layers
from deepreshape.private.program.ops import INPUT, ProgramError
from deepreshape.private.program.scales import SPREAD, carry_scales

SIDE = 8


class Net:
    """A network of layers that is built from front to back."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.layers: list[Layer] = []

    def _add(self, layer: Layer) -> str:
        self.layers.append(layer)
        return layer.name

    def conv(self, source: str, ins: int, outs: int, kernel: int = 3, stride: int = 1) -> str:
        weight = 0.4 * self.rng.normal(size=(outs, ins, kernel, kernel)) / np.sqrt(ins * kernel**2)
        bias = 0.1 * self.rng.normal(size=outs)
        return self._add(Conv(f"conv{len(self.layers)}", (source,), weight, bias, stride, kernel // 2))

    def square(self, source: str, channels: int, mask: np.ndarray | None = None, low: float = 0.05) -> str:
        sign = np.ones(channels) if mask is not None else np.where(self.rng.random(channels) < 0.4, -1.0, 1.0)
        square = sign * self.rng.uniform(low, 0.35, channels)
        rest = self.rng.normal(size=(2, channels)) * 0.2
        coefficients = np.stack([rest[0], 0.3 + rest[1], square], 1)
        return self._add(Quadratic(f"act{len(self.layers)}", (source,), coefficients, mask))

    def sum(self, *sources: str) -> str:
        return self._add(Sum(f"sum{len(self.layers)}", sources))

    def block(self, source: str, ins: int, outs: int, stride: int = 1, *, projected: bool = False) -> str:
        inner = self.square(self.conv(source, ins, outs, stride=stride), outs)
        shortcut = self.conv(source, ins, outs, 1, stride) if projected else source
        return self.square(self.sum(self.conv(inner, outs, outs), shortcut), outs)

    def head(self, source: str, channels: int, side: int) -> list[Layer]:
        self._add(Pool("pool", (source,), (side // 2, side // 2), (side // 2, side // 2)))
        self._add(Flat("flat", ("pool",)))
        self._add(Dense("fc", ("flat",), self.rng.normal(size=(3, 4 * channels)), self.rng.normal(size=3)))
        return self.layers


def residual(seed: int) -> list[Layer]:
    net = Net(seed)
    at = net.square(net.conv(INPUT, 2, 4), 4)
    at = net.block(net.block(at, 4, 4), 4, 4)
    at = net.block(net.block(at, 4, 6, 2, projected=True), 6, 6)
    return net.head(at, 6, SIDE // 2)


def pre_activation(seed: int) -> list[Layer]:
    net = Net(seed)
    at = net.conv(INPUT, 2, 4)
    for _ in range(3):
        at = net.sum(net.conv(net.square(at, 4), 4, 4), at)
    return net.head(net.square(at, 4), 4, SIDE)


def mixed(seed: int) -> list[Layer]:
    net = Net(seed)
    mask = net.rng.random((4, SIDE, SIDE)) < 0.3
    mask[0], mask[1] = True, False
    at = net.square(net.conv(INPUT, 2, 4), 4, mask)
    inner = net.square(net.conv(at, 4, 4), 4, mask[::-1].copy())
    return net.head(net.square(net.sum(net.conv(inner, 4, 4), at), 4, mask), 4, SIDE)


def beside_relus(seed: int) -> list[Layer]:
    """Squares of either sign whose results a ReLU reads, of the input, of one value twice, and of flat values."""
    net = Net(seed)
    at = net.sum(net.square(INPUT, 2), INPUT)
    net.layers.append(Rectify("relu", (at,)))
    at = net.conv("relu", 2, 4)
    at = net.conv(net.sum(net.square(at, 4), net.square(at, 4)), 4, 4)
    net.layers.append(Flat("early", (at,)))
    size = 4 * SIDE * SIDE
    at = net.square("early", size)
    net.layers.append(Dense("fc", (at,), net.rng.normal(size=(3, size)), net.rng.normal(size=3)))
    return net.layers


def results(layers: list[Layer], x: torch.Tensor) -> torch.Tensor:
    return run_layers(Graph(layers, [layers[-1].name], {}), x)[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("make", "extra"), [(residual, 0), (pre_activation, 0), (mixed, 3), (beside_relus, 4)], ids=lambda of: str(of)[:20]
)
def test_the_function_stays_and_only_squares_are_left(make, extra: int, seed: int):
    layers = make(seed)
    x = torch.as_tensor(np.random.default_rng(seed).normal(size=(3, 2, SIDE, SIDE))) * 0.5
    carried = carry_scales(layers, (layers[-1].name,))
    wanted, got = results(layers, x), results(carried, x)
    assert float((wanted - got).abs().max()) < 1e-12 * float(wanted.abs().max())
    assert not any(isinstance(layer, Quadratic) for layer in carried)
    squares = sum(isinstance(layer, Quadratic) for layer in layers)
    assert sum(isinstance(layer, Squared) for layer in carried) == squares
    linear = [sum(isinstance(layer, Conv | Dense) for layer in some) for some in (layers, carried)]
    assert linear[1] - linear[0] <= extra
    assert (linear[1] > linear[0]) == bool(extra)


def test_a_wide_spread_of_coefficients_gets_a_layer_of_its_own():
    net = Net(5)
    at = net.square(net.conv(INPUT, 2, 4), 4)
    layers = net.head(net.block(at, 4, 4), 4, SIDE)
    last = layers[-4]
    assert isinstance(last, Quadratic)
    last.coefficients[0, 2] = last.coefficients[1, 2] / (4 * SPREAD**2)
    carried = carry_scales(layers, ("fc",))
    x = torch.ones(1, 2, SIDE, SIDE, dtype=torch.float64)
    assert torch.allclose(results(layers, x), results(carried, x), rtol=1e-9)
    assert [layer.name for layer in carried if layer.name.endswith(".scaled")] == [f"{last.name}.scaled"]


@pytest.mark.parametrize(
    ("channel", "value", "words"),
    [(1, 0.0, "channel 1 has no square"), (2, -0.1, "channel 2 has ReLUs beside squares of the negative coeff")],
)
def test_what_is_no_square_is_refused_by_layer_and_channel(channel: int, value: float, words: str):
    net = Net(0)
    mask = np.zeros((4, SIDE, SIDE), np.bool_)
    mask[:, 0, 0] = True
    name = net.square(net.conv(INPUT, 2, 4), 4, mask)
    last = net.layers[-1]
    assert isinstance(last, Quadratic)
    last.coefficients[channel, 2] = value
    with pytest.raises(ProgramError, match=f"{name}: {words}"):
        carry_scales(net.layers, (name,))
