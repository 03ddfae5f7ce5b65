"""ResNets for small images (He et al. 2016), of any stage count, width and multipliers; HybReNets are among them.

Stem of 3x3, batch norm, ReLU; stages of residual blocks whose first block down-samples; a 1x1 projection where the
shape changes; global average pool; one linear layer. DeepReShape section 2 and Table 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from deepreshape.cost.layers import Layer, LinearLayer, ReluLayer
from deepreshape.models.architecture import Architecture, Site
from deepreshape.models.parts import activation, conv_norm, pool, shrink
from deepreshape.nn import reuse_widths

__all__ = ["ResNet", "layers", "sites"]

Map = tuple[int, tuple[int, int]]
"""Channels, and (height, width)."""

EXPANSION = 4
"""Output width of a bottleneck block over its inner width."""


def sites(architecture: Architecture) -> Iterator[Site]:
    """The ReLU sites, front to back, from arithmetic alone."""
    size = shrink(architecture.input[1:], architecture.resolution * (2 if architecture.stem == "7x7" else 1))
    yield Site("stem.act", 0, 1, True, architecture.base, size, reusable=False)
    if architecture.stem == "7x7":
        size = shrink(size, 2)
    for stage, (blocks, width, stride) in enumerate(
        zip(architecture.phi, architecture.widths, architecture.strides, strict=True), start=1
    ):
        for block in range(blocks):
            before, size = size, shrink(size, stride if block == 0 else 1)
            name = f"stage{stage}.{block}.act"
            if architecture.block == "basic":
                yield Site(f"{name}1", stage, 1, False, width, size)
                yield Site(f"{name}2", stage, 2, True, width, size)
            else:
                yield Site(f"{name}1", stage, 1, False, width, before)
                yield Site(f"{name}2", stage, 2, False, width, size)
                yield Site(f"{name}3", stage, 3, True, EXPANSION * width, size)


def _chain(
    architecture: Architecture, width: int, stride: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernels, widths and strides of a block's convolutions."""
    if architecture.block == "bottleneck":
        return (1, 3, 1), (width, width, EXPANSION * width), (1, stride, 1)
    return (3, 3), (width, width), (stride, 1)


class _Block(nn.Module):
    """One residual block; the convolutions are a chain whose last activation follows the add."""

    def __init__(self, architecture: Architecture, path: str, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        kernels, widths, strides = _chain(architecture, width, stride)
        channels = (in_channels, *widths)
        self.depth = len(kernels)
        for index, kernel in enumerate(kernels, start=1):
            site = f"{path}.act{index}"
            conv = conv_norm(architecture, site, channels[index - 1], channels[index], kernel, strides[index - 1])
            self.add_module(f"conv{index}", conv)
            self.add_module(f"act{index}", activation(architecture, site))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != widths[-1]:
            self.shortcut = conv_norm(architecture, None, in_channels, widths[-1], 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index in range(1, self.depth + 1):
            out = self.get_submodule(f"conv{index}")(out)
            if index == self.depth:
                out = out + self.shortcut(x)
            out = self.get_submodule(f"act{index}")(out)
        return out


class ResNet(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        large = architecture.stem == "7x7"
        stride = architecture.resolution * (2 if large else 1)
        self.stem = nn.Sequential()
        self.stem.conv = conv_norm(
            architecture, None, architecture.input[0], architecture.base, 7 if large else 3, stride
        )
        self.stem.act = activation(architecture, "stem.act")
        if large:
            self.stem.pool = pool(architecture, 3, 2, 1)
        channels = architecture.base
        expansion = EXPANSION if architecture.block == "bottleneck" else 1
        for stage, (blocks, width, stride) in enumerate(
            zip(architecture.phi, architecture.widths, architecture.strides, strict=True), start=1
        ):
            name = f"stage{stage}"
            layers = nn.Sequential()
            for block in range(blocks):
                layers.append(_Block(architecture, f"{name}.{block}", channels, width, stride if block == 0 else 1))
                channels = expansion * width
            self.add_module(name, layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, architecture.classes))


def layers(architecture: Architecture) -> Iterator[Layer]:
    """Every linear and ReLU layer in the order in which they run, from arithmetic alone; a trace gives the same."""
    reused = dict(architecture.reused)
    large = architecture.stem == "7x7"

    def conv(name: str, before: Map, width: int, kernel: int, stride: int) -> LinearLayer:
        (channels, size), after = before, shrink(before[1], stride)
        macs = channels * width * kernel**2 * after[0] * after[1]
        return LinearLayer(name, channels, width, (kernel, kernel), 1, size, after, macs)

    def rectified(site: str, width: int, size: tuple[int, int]) -> Iterator[Layer]:
        if site not in architecture.removed and site not in reused:
            elements = width * size[0] * size[1]
            yield ReluLayer(site, elements, elements)

    def convolved(name: str, site: str, before: Map, width: int, kernel: int, stride: int) -> Iterator[Layer]:
        if site not in reused:
            yield conv(f"{name}.0", before, width, kernel, stride)
            return
        ins, outs, passed = reuse_widths(before[0], width, stride, reused[site], architecture.reuse)
        after = shrink(before[1], stride)
        for group, (wide_in, wide_out) in enumerate(zip(ins, outs, strict=True)):
            if group == 1 and passed:
                continue
            yield conv(f"{name}.groups.{group}.0", (wide_in, before[1]), wide_out, kernel, stride)
            if group == 0:
                elements = wide_out * after[0] * after[1]
                yield ReluLayer(f"{name}.groups.0.2", elements, elements)
        if architecture.reuse.mix and kernel > 1:
            yield conv(f"{name}.mix.0", (width, after), width, 1, 1)

    stride = architecture.resolution * (2 if large else 1)
    image = architecture.input[0], architecture.input[1:]
    yield conv("stem.conv.0", image, architecture.base, 7 if large else 3, stride)
    size, channels = shrink(architecture.input[1:], stride), architecture.base
    yield from rectified("stem.act", channels, size)
    size = shrink(size, 2) if large else size
    for stage, (blocks, width, down) in enumerate(
        zip(architecture.phi, architecture.widths, architecture.strides, strict=True), start=1
    ):
        for block in range(blocks):
            path = f"stage{stage}.{block}"
            kernels, widths, strides = _chain(architecture, width, down if block == 0 else 1)
            start = at = channels, size
            for index, (kernel, wide, step) in enumerate(zip(kernels, widths, strides, strict=True), start=1):
                site = f"{path}.act{index}"
                yield from convolved(f"{path}.conv{index}", site, at, wide, kernel, step)
                at = wide, shrink(at[1], step)
                if index == len(kernels) and (max(strides) != 1 or start[0] != wide):
                    yield conv(f"{path}.shortcut.0", start, wide, 1, max(strides))
                yield from rectified(site, *at)
            channels, size = at
    classes = architecture.classes
    yield LinearLayer("head.2", channels, classes, (1, 1), 1, (1, 1), (1, 1), channels * classes)
