"""Prices by layers: the convolutions that they rest on are those of the network and of the exact plan."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deepreshape.cost import LinearLayer, price_published
from deepreshape.cost.published import PROFILES
from deepreshape.counting import count
from deepreshape.pricing.estimate import estimate_steps, square
from deepreshape.pricing.quote import Terms, quote_layers, quote_program
from deepreshape.private.crypto.he.packing import Convolution
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.lower import lower
from deepreshape.private.program.lowering.geometry import SquareForm


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def alex() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 11, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 4))


def geometry(convolution: Convolution) -> Convolution:
    """Without the widths of the weights, which rest on calibration in one place and are typical in the other."""
    return replace(convolution, weight_bits=1, sum_bits=1)


@pytest.mark.parametrize(
    ("net", "shape", "macs"),
    [
        (lenet(), (1, 28, 28), 576 * 150 + 64 * 2400 + 256 * 120 + 120 * 84 + 840),
        (alex(), (3, 32, 32), 49 * 363 * 8 + 392 * 4),
    ],
)
def test_a_price_by_layers_is_that_of_the_exact_plan(net: nn.Module, shape: tuple[int, int, int], macs: int):
    inputs = np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)
    program = lower(net, inputs).program
    exact = [geometry(each) for each in Plan(program.public()).convolutions.values()]
    layers = count(net, shape).priced_layers
    assert [geometry(convolution) for _, convolution in estimate_steps(layers).linear.values()] == exact
    quotes = quote_layers(layers, Terms()), quote_program(program, Terms())
    assert [sum(row.macs for row in quote.report.rows) for quote in quotes] == [macs, macs]


SHAPES = [
    (nn.Conv2d(2, 3, 5), (2, 28, 28)),
    (nn.Conv2d(2, 3, 3, padding=2, dilation=2), (2, 9, 9)),
    (nn.Conv2d(2, 3, 11, 4), (2, 40, 40)),
    (nn.Conv2d(2, 3, (1, 7), padding=(0, 3)), (2, 9, 9)),
    (nn.Conv2d(2, 4, (3, 5), 2, (2, 0), groups=2), (2, 9, 12)),
    (nn.Conv2d(2, 3, 1, padding=1), (2, 4, 4)),
    (nn.Conv1d(2, 3, 5, 3), (2, 20)),
    (nn.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=1), (3, 6, 7)),
    (nn.ConvTranspose2d(4, 2, 2, 2, groups=2), (4, 5, 5)),
    (nn.ConvTranspose2d(3, 2, 3, 2, 2, dilation=2), (3, 6, 6)),
]


class Line(nn.Module):
    """A module on one axis, of a map with one row."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x.squeeze(2))


@pytest.mark.parametrize(("module", "shape"), SHAPES, ids=str)
def test_a_layer_of_any_shape_has_the_price_of_the_exact_plan(module: nn.Module, shape: tuple[int, ...]):
    net, size = (module, shape) if len(shape) == 3 else (Line(module), (shape[0], 1, shape[1]))
    inputs = np.random.default_rng(0).standard_normal((4, *size)).astype(np.float32)
    program = lower(net, inputs).program
    (exact,) = Plan(program.public()).convolutions.values()
    counted = count(net, size)
    (convolution,) = [each for _, each in estimate_steps(counted.layers).linear.values()]
    assert geometry(convolution) == geometry(exact)
    quotes = quote_layers(counted.layers, Terms()), quote_program(program, Terms())
    one, other = (sum(row.macs for row in quote.report.rows) for quote in quotes)
    assert one == other >= counted.total.macs


def test_two_strides_become_their_divisor_and_one_output_has_none():
    layer = LinearLayer("a", 1, 1, (1, 1), 1, (9, 9), (3, 2), 6, (4, 6))
    assert square(layer) == SquareForm(1, 2, 0, (0, 0), (5, 4), (2, 3), (9, 7))
    layer = LinearLayer("a", 1, 1, (3, 3), 1, (4, 9), (1, 4), 36, (5, 2))
    assert square(layer).stride == 2


class OnMap(nn.Module):
    """A linear layer over the channels of a map, which it has last."""

    def __init__(self, channels: int = 64, outputs: int = 256):
        super().__init__()
        self.linear = nn.Linear(channels, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.permute(0, 2, 3, 1))


def test_a_linear_layer_on_a_map_has_the_geometry_of_the_exact_plan():
    net = nn.Sequential(OnMap(4, 6), nn.Flatten(), nn.Linear(6 * 25, 3))
    inputs = np.random.default_rng(0).standard_normal((4, 4, 5, 5)).astype(np.float32)
    exact = [geometry(each) for each in Plan(lower(net, inputs).program.public()).convolutions.values()]
    layers = count(net, (4, 5, 5)).layers
    assert [geometry(each) for _, each in estimate_steps(layers).linear.values()] == exact


@pytest.mark.parametrize("net", [OnMap(), OnMap().requires_grad_(False)])
def test_a_linear_layer_on_a_map_is_priced_as_a_convolution(net: OnMap):
    layers = count(net, (64, 32, 32)).layers
    assert layers == (LinearLayer("linear", 64, 256, (1, 1), 1, (32, 32), (32, 32), 64 * 256 * 1024),)
    quote = quote_layers(layers, Terms())
    assert sum(row.macs for row in quote.report.rows) == 64 * 256 * 1024
    same = count(nn.Conv2d(64, 256, 1), (64, 32, 32)).layers
    assert quote.seconds == quote_layers(same, Terms()).seconds


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x.transpose(1, 2)


@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (nn.Sequential(nn.Conv3d(1, 2, 3)), (1, 4, 4, 4), "0: a convolution over 3 axes"),
        (nn.Sequential(nn.Linear(4, 4), Attention()), (3, 4), "1: aten.bmm, a product of two values"),
    ],
)
def test_what_has_no_price_is_refused_by_name(net: nn.Module, shape: tuple[int, ...], words: str):
    layers = count(net, shape).layers
    with pytest.raises(ValueError, match=f"gc-full has no price for {words}"):
        quote_layers(layers, Terms())
    with pytest.raises(ValueError, match=f"the published systems have no price for {words}"):
        price_published(layers, PROFILES["server-garbler"])
