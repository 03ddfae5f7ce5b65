"""Wide ResNets with pre-activation blocks (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from deepreshape.models.architecture import Architecture, Site
from deepreshape.models.parts import activation, shrink

__all__ = ["STEM_WIDTH", "WideResNet", "sites"]

STEM_WIDTH = 16


def sites(architecture: Architecture) -> Iterator[Site]:
    """The ReLU sites, front to back: two before the convolutions of each block, one after the last block.

    A block's first ReLU still works on the map that enters the block. There is none in the stem.
    """
    size, channels = shrink(architecture.input[1:], architecture.resolution), STEM_WIDTH
    for stage, (blocks, width, stride) in enumerate(
        zip(architecture.phi, architecture.widths, architecture.strides, strict=True), start=1
    ):
        for block in range(blocks):
            yield Site(f"stage{stage}.{block}.act1", stage, 1, False, channels, size, reusable=False)
            size, channels = shrink(size, stride if block == 0 else 1), width
            yield Site(f"stage{stage}.{block}.act2", stage, 2, True, width, size, reusable=False)
    yield Site("head.act", len(architecture.phi), 1, True, channels, size, reusable=False)


class _Block(nn.Module):
    def __init__(self, architecture: Architecture, path: str, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.act1 = activation(architecture, f"{path}.act1")
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act2 = activation(architecture, f"{path}.act2")
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            self.shortcut = nn.Conv2d(in_channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = self.act1(self.norm1(x))
        # a projection sees the activated input, an identity the raw one
        across = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(ready)
        return self.conv2(self.act2(self.norm2(self.conv1(ready)))) + across


class WideResNet(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.stem = nn.Conv2d(architecture.input[0], STEM_WIDTH, 3, architecture.resolution, 1, bias=False)
        channels = STEM_WIDTH
        for stage, (blocks, width, stride) in enumerate(
            zip(architecture.phi, architecture.widths, architecture.strides, strict=True), start=1
        ):
            layers = nn.Sequential()
            for block in range(blocks):
                path = f"stage{stage}.{block}"
                layers.append(_Block(architecture, path, channels, width, stride if block == 0 else 1))
                channels = width
            self.add_module(f"stage{stage}", layers)
        self.head = nn.Sequential()
        self.head.norm = nn.BatchNorm2d(channels)
        self.head.act = activation(architecture, "head.act")
        self.head.pool = nn.AdaptiveAvgPool2d(1)
        self.head.flat = nn.Flatten()
        self.head.linear = nn.Linear(channels, architecture.classes)
