"""Prices by layers: the convolutions that they rest on are those of the network and of the exact plan."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from deepreshape.cost import LinearLayer, price_published
from deepreshape.cost.published import PROFILES
from deepreshape.counting import count
from deepreshape.pricing.estimate import outline, square
from deepreshape.pricing.quote import Terms, quote_layers, quote_program
from deepreshape.private.crypto.he.packing import Convolution
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.lower import lower


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
    assert [geometry(convolution) for _, convolution in outline(layers).linear.values()] == exact
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


@pytest.mark.parametrize(("module", "shape"), SHAPES, ids=str)
def test_the_square_convolution_gives_what_the_layer_gives(module: nn.Module, shape: tuple[int, ...]):
    module = module.double()
    torch.nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
    (layer,) = count(module, shape).layers
    assert isinstance(layer, LinearLayer)
    size, kernel, stride, padding = square(layer)
    x = torch.randn(1, *shape, dtype=torch.float64)
    wanted = module(x)
    # the same by the square convolution alone: its weights are those of the layer, with zeros between and around
    weight = module.weight.detach()  # pyright: ignore[reportCallIssue]
    if len(shape) == 2:
        x, wanted, weight = x[:, :, None], wanted[:, :, None], weight[:, :, None]
    before = list(layer.padding)
    if layer.transposed:
        (down, across), (rows, columns) = layer.stride, x.shape[2:]
        spaced = x.new_zeros(1, x.shape[1], (rows - 1) * down + 1, (columns - 1) * across + 1)
        spaced[:, :, ::down, ::across] = x
        x = spaced
        weight = torch.cat([part.transpose(0, 1) for part in weight.chunk(layer.groups)]).flip(2, 3)
        before = [(k - 1) * d - p for k, d, p in zip(layer.kernel, layer.dilation, before, strict=True)]
    whole = weight.new_zeros(*weight.shape[:2], kernel, kernel)
    whole[:, :, : (weight.shape[2] - 1) * layer.dilation[0] + 1 : layer.dilation[0],
          : (weight.shape[3] - 1) * layer.dilation[1] + 1 : layer.dilation[1]] = weight  # fmt: skip
    if not padding:
        # whoever pads before does so at the given sides, and behind as far as the square kernel reaches
        room = [side - has - low for side, has, low in zip(size, x.shape[2:], before, strict=True)]
        x = nn.functional.pad(x, (before[1], room[1], before[0], room[0]))
    assert tuple(x.shape[2:]) == size
    given = nn.functional.conv2d(x, whole, None, stride, padding, 1, layer.groups)
    assert torch.allclose(given, wanted)
    convolution = Convolution(1, *size, 1, kernel, stride, padding)
    assert convolution.output_shape[1:] == layer.out_size == tuple(wanted.shape[2:])


@pytest.mark.parametrize(("module", "shape"), SHAPES, ids=str)
def test_a_layer_of_any_shape_has_a_price(module: nn.Module, shape: tuple[int, ...]):
    counted = count(module.float(), shape)
    quote = quote_layers(counted.layers, Terms())
    assert sum(row.macs for row in quote.report.rows) >= counted.total.macs
    (convolution,) = [each for _, each in outline(counted.layers).linear.values()]
    assert convolution.copies * prod(convolution.output_shape) == prod(module(torch.zeros(1, *shape)).shape)


def test_two_strides_become_their_divisor():
    layer = LinearLayer("a", 1, 1, (1, 1), 1, (9, 9), (3, 2), 6, (3, 5))
    assert square(layer) == ((7, 6), 1, 1, 0)


class OnMap(nn.Module):
    """A linear layer over the channels of a map, which it has last."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.permute(0, 2, 3, 1))


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
