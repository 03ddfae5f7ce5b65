"""What of torch is lowered: each operator's program against the operator itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.lowered import checked, drawn, prepared
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import ProgramError, Square


class Around(nn.Module):
    """A convolution, and what is tried on its result."""

    def __init__(self, tried: Callable[..., Any], *layers: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(layers)
        self.tried = tried
        self.channel = nn.Parameter(torch.randn(4))
        self.each = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, x: Tensor):
        return self.tried(self, self.conv(x), *self.layers)


MAX_POOLS = {
    "2": (lambda s, y: F.max_pool2d(F.relu(y), 2), 256 + 192),
    "3 at stride 2, padded": (lambda s, y: F.max_pool2d(y, 3, 2, 1), 4 * (8 * 7 + 4 * 7)),
    "3 at stride 1, dilated": (lambda s, y: F.max_pool2d(y, 3, 1, 1, dilation=2), 504),
    "ceil": (lambda s, y: F.max_pool2d(y, 3, 2, ceil_mode=True), 4 * (8 * 7 + 4 * 7)),
    "rectangular": (lambda s, y: F.max_pool2d(y, (2, 3), (1, 2), (1, 0)), 4 * (7 * 7 + 9 * 6)),
    "not all read": (lambda s, y: F.max_pool2d(y, 3), 4 * 4 * 8),
    "over the map": (lambda s, y: y.amax((2, 3)), 4 * 63),
    "of values": (lambda s, y: y.flatten(2).max(2)[0], 4 * 63),
    "the least over the map": (lambda s, y: y.amin((2, 3)), 4 * 63),
    "the least of values": (lambda s, y: y.flatten(2).min(2, keepdim=True)[0], 4 * 63),
    "adaptive": (lambda s, y: F.adaptive_max_pool2d(y, 3), 4 * (7 * 8 + 7 * 3)),
    "in one dimension": (lambda s, y: F.max_pool1d(y.flatten(2), 2), 128),
}
ACTIVATIONS = {
    "relu6": lambda s, y: F.relu6(4 * y),
    "clamp": lambda s, y: y.clamp(-0.5, 0.7),
    "clamp below": lambda s, y: y.clamp(min=0.1),
    "clamp above": lambda s, y: y.clamp(max=0.1),
    "hardtanh": lambda s, y: F.hardtanh(y),
    "leaky": lambda s, y: F.leaky_relu(y, 0.1),
    "prelu": lambda s, y: F.prelu(y, s.channel),
    "hard sigmoid": lambda s, y: F.hardsigmoid(3 * y),
    "abs": lambda s, y: y.abs(),
    "threshold": lambda s, y: F.threshold(y, 0.2, 0.2),
    "maximum": lambda s, y: torch.maximum(y, y.flip(3)),
    "minimum": lambda s, y: torch.minimum(y, 2 * y),
    "the larger of two by max": lambda s, y: torch.max(y, y.flip(3)),
    "the smaller of two by min": lambda s, y: torch.min(y, y.flip(3)),
    "maximum with a number": lambda s, y: torch.maximum(y, torch.tensor(0.3)),
    "twice": lambda s, y: F.relu(F.relu(y)),
}
SUMS = {
    "sub": lambda s, y: y - y.flip(2),
    "rsub": lambda s, y: 1 - y,
    "alpha": lambda s, y: torch.add(y, F.relu(y), alpha=0.5),
    "itself": lambda s, y: y + y,
    "broadcast": lambda s, y: y + y.mean((2, 3), keepdim=True),
    "times a number": lambda s, y: 0.37 * F.relu(y),
    "divided": lambda s, y: F.relu(y) / 3,
    "negative": lambda s, y: -y,
    "plus a channel's": lambda s, y: F.relu(y) + s.channel.view(4, 1, 1),
    "times a channel's": lambda s, y: F.relu(y) * (1 + s.channel)[:, None, None],
    "plus an element's": lambda s, y: F.relu(y) + s.each,
    "times an element's": lambda s, y: F.relu(y) * s.each,
    "times a column's": lambda s, y: F.relu(y) * s.each[0, 0],
}
PRODUCTS = {
    "of two maps": lambda s, y: F.relu(y) * y.flip(3),
    "by a channel's": lambda s, y: y * F.hardsigmoid(y.mean((2, 3), keepdim=True)),
    "by a channel's, first": lambda s, y: y.mean((2, 3), keepdim=True) * y,
    "by a column's": lambda s, y: y * y.mean((1, 2), keepdim=True),
    "in place": lambda s, y: F.relu(y).mul_(y + 1),
    "without maps": lambda s, y: y.mean((2, 3)) * y.amax((2, 3)),
    "of a product": lambda s, y: y * y.flip(2) * y.flip(3),
    "read twice": lambda s, y: (lambda z: F.relu(z) + z)(y * y.flip(3)),
}
AVERAGES = {
    "padded": lambda s, y: F.avg_pool2d(y, 3, 2, 1),
    "padding not counted": lambda s, y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False),
    "ceil": lambda s, y: F.avg_pool2d(y, 3, 2, ceil_mode=True),
    "ceil and padded": lambda s, y: F.avg_pool2d(y, 3, 2, 1, ceil_mode=True),
    "divisor": lambda s, y: F.avg_pool2d(y, 2, divisor_override=3),
    "adaptive": lambda s, y: F.adaptive_avg_pool2d(y, 4),
    "adaptive, uneven": lambda s, y: F.adaptive_avg_pool2d(y, 3),
    "over channels": lambda s, y: F.relu(y).mean(1),
    "over columns": lambda s, y: F.relu(y).mean(3, keepdim=True),
    "sum": lambda s, y: y.sum((2, 3)),
    "bilinear": lambda s, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "bilinear, aligned": lambda s, y: F.interpolate(y, size=(15, 15), mode="bilinear", align_corners=True),
    "bilinear, smaller": lambda s, y: F.interpolate(y, size=(4, 4), mode="bilinear"),
    "linear": lambda s, y: F.interpolate(y.flatten(2), scale_factor=2, mode="linear"),
    "average in one dimension": lambda s, y: F.avg_pool1d(y.flatten(2), 2),
    "adaptive in one dimension": lambda s, y: F.adaptive_avg_pool1d(y.flatten(2), 4),
}
MOVES = {
    "nearest": lambda s, y: F.interpolate(F.relu(y), size=(12, 20)),
    "cat": lambda s, y: torch.cat([y, F.relu(y), 2 * y], 1),
    "cat of columns": lambda s, y: torch.cat([y, F.relu(y)], 3),
    "cat of zeros": lambda s, y: torch.cat([F.relu(y), torch.zeros(y.shape[0], 2, 8, 8)], 1),
    "stack": lambda s, y: torch.stack([y, F.relu(y)], 2),
    "shuffle": lambda s, y: F.channel_shuffle(y, 2),
    "chunks": lambda s, y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "slices": lambda s, y: F.relu(y[:, 1:3]) + y[:, :2],
    "pixel shuffle": lambda s, y: F.relu(F.pixel_shuffle(y, 2)),
    "pixel unshuffle": lambda s, y: F.pixel_unshuffle(y, 2),
    "pad": lambda s, y: F.pad(y, (1, 2, 0, 1)),
    "crop": lambda s, y: F.pad(y, (-1, 2, 0, 0)),
    "reflect": lambda s, y: F.pad(y, (1, 2, 1, 1), mode="reflect"),
    "replicate": lambda s, y: F.pad(y, (1, 2, 1, 1), mode="replicate"),
    "roll": lambda s, y: torch.roll(y, 1, 2),
    "unfold": lambda s, y: F.unfold(y, 3, padding=1),
    "every other": lambda s, y: torch.cat([y[..., ::2, ::2], y[..., 1::2, 1::2]], 1),
    "permute": lambda s, y: y.permute(0, 2, 3, 1),
    "index": lambda s, y: y[:, [2, 0, 1]],
    "casts": lambda s, y: y.float().detach().clone().to(torch.float64).to(y.dtype),
}
LAYERS = {
    "even, same": nn.Conv2d(4, 5, (3, 5), padding="same"),
    "same": nn.Conv2d(4, 5, (3, 4), padding="same"),
    "rectangular": nn.Conv2d(4, 5, (1, 7), padding=(0, 3)),
    "dilated": nn.Conv2d(4, 5, 3, padding=2, dilation=2),
    "dilated one way, grouped": nn.Conv2d(4, 6, 3, padding=(1, 2), dilation=(1, 2), groups=2),
    "strided unevenly": nn.Conv2d(4, 5, 3, stride=(2, 1), padding=1),
    "strided one way": nn.Conv2d(4, 5, (1, 3), stride=(1, 2)),
    "1x1, padded": nn.Conv2d(4, 5, 1, padding=1),
    "11 at stride 4": nn.Conv2d(4, 5, 11, 4, 2),
    "much padding": nn.Conv2d(4, 5, (5, 2), padding=(4, 0)),
    "transposed 2": nn.ConvTranspose2d(4, 6, 2, 2),
    "transposed 3": nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
    "transposed, grouped": nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2),
    "transposed 4": nn.ConvTranspose2d(4, 6, 4, 2, 1),
    "transposed, dilated": nn.ConvTranspose2d(4, 6, 3, 1, 1, dilation=2),
    "transposed, rectangular": nn.ConvTranspose2d(4, 6, (2, 3), (3, 1), (0, 1), output_padding=(2, 0)),
}
NETWORKS = {
    "linear on the last axis": (lambda s, y, m: F.relu(m(F.relu(y).permute(0, 2, 3, 1))), nn.Linear(4, 7)),
    "linear on tokens": (lambda s, y, m: m(F.relu(y).flatten(2).transpose(1, 2)).mean(1), nn.Linear(4, 7)),
    "1-d": (lambda s, y, m: F.relu(m(F.relu(y).flatten(2))), nn.Conv1d(4, 5, 3, 2, 1)),
    "1-d transposed": (lambda s, y, m: F.relu(m(F.relu(y).flatten(2))), nn.ConvTranspose1d(4, 5, 3, 2, 1)),
    "norm before padding": (lambda s, y, b, m: m(b(F.relu(y))), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)),
    "instance norm by stored statistics": (
        lambda s, y, b: b(F.relu(y)), nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    ),
    "instance norm without weights": (lambda s, y, b: F.relu(b(y)), nn.InstanceNorm2d(4, track_running_stats=True)),
    "norm of features": (lambda s, y, b: b(F.relu(y).mean((2, 3))), nn.BatchNorm1d(4)),
    "transposed, norm, relu": (
        lambda s, y, m, b: F.relu(b(m(F.relu(y)))), nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def tried(what: Callable[..., Any], *layers: nn.Module):
    x = drawn(6, 3, 8, 8)
    return checked(prepared(Around(what, *layers), x), x)


@pytest.mark.parametrize("name", MAX_POOLS)
def test_a_max_pool_is_exact_and_compares_what_windows_share_once(name: str):
    what, comparisons = MAX_POOLS[name]
    assert tried(what).program.relus == comparisons


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_sums_of_relus(name: str):
    assert tried(ACTIVATIONS[name]).program.relus in (256, 512)


@pytest.mark.parametrize("name", SUMS)
def test_sums_and_products_with_constants(name: str):
    tried(SUMS[name])


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_two_values_is_two_squares_at_once(name: str):
    squares = [op for op in tried(PRODUCTS[name]).program.ops if isinstance(op, Square)]
    assert len(squares) == 1 + (name == "of a product")


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_and_upsampling(name: str):
    assert tried(AVERAGES[name]).program.relus in (0, 256)


@pytest.mark.parametrize("name", MOVES)
def test_elements_that_move(name: str):
    assert tried(MOVES[name]).program.relus in (0, 128, 256)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
def test_convolutions_of_every_shape(name: str):
    tried(lambda s, y, m: F.relu(m(F.relu(y))), LAYERS[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_on_other_axes(name: str):
    what, *layers = NETWORKS[name]
    tried(what, *layers)


def test_a_max_pool_with_a_window_of_padding_alone_is_refused():
    pool = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2, 2, 1, dilation=2))
    assert pool(torch.zeros(1, 1, 1, 1)).isinf().all()
    with pytest.raises(ProgramError, match="a window lies wholly in the padding"):
        lower(pool.eval(), np.ones((2, 1, 1, 1), np.float32))
