"""ResNet-9, the small fast network of the short-training literature: four stages, two of them with a residual pair.

Pools, or strides in their place, come before the ReLU, so that a ReLU works on the smaller map.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from deepreshape.models.architecture import Architecture, Site
from deepreshape.models.parts import activation, conv_norm, pool, shrink

__all__ = ["ResNet9", "sites"]

RESIDUAL_STAGES = (2, 4)


def sites(architecture: Architecture) -> Iterator[Site]:
    """The ReLU sites, front to back. The first stage is the stem: one convolution, no pool."""
    size = shrink(architecture.input[1:], architecture.resolution)
    for stage, width in enumerate(architecture.widths, start=1):
        if stage == 1:
            yield Site("stem.act", 0, 1, True, width, size, reusable=False)
            continue
        size = max(1, size[0] // 2), max(1, size[1] // 2)
        residual = stage in RESIDUAL_STAGES
        yield Site(f"stage{stage}.act", stage, 1, not residual, width, size, reusable=False)
        if residual:
            yield Site(f"stage{stage}.pair.act1", stage, 2, False, width, size)
            yield Site(f"stage{stage}.pair.act2", stage, 3, True, width, size)


class _Pair(nn.Module):
    def __init__(self, architecture: Architecture, path: str, width: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(architecture, f"{path}.act1", width, width, 3)
        self.act1 = activation(architecture, f"{path}.act1")
        self.conv2 = conv_norm(architecture, f"{path}.act2", width, width, 3)
        self.act2 = activation(architecture, f"{path}.act2")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act2(self.conv2(self.act1(self.conv1(x))))


class ResNet9(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.stem = nn.Sequential()
        self.stem.conv = conv_norm(
            architecture, None, architecture.input[0], architecture.base, 3, architecture.resolution
        )
        self.stem.act = activation(architecture, "stem.act")
        channels, size = architecture.base, shrink(architecture.input[1:], architecture.resolution)
        for stage, width in enumerate(architecture.widths[1:], start=2):
            layers = nn.Sequential()
            shrinks = min(size) > 1
            if shrinks and architecture.pool == "conv":
                layers.conv = conv_norm(architecture, None, channels, width, 4, 2)
            else:
                layers.conv = conv_norm(architecture, None, channels, width, 3)
                if shrinks:
                    layers.pool = pool(architecture, 2, 2)
            if shrinks:
                size = size[0] // 2, size[1] // 2
            layers.act = activation(architecture, f"stage{stage}.act")
            if stage in RESIDUAL_STAGES:
                layers.pair = _Pair(architecture, f"stage{stage}.pair", width)
            self.add_module(f"stage{stage}", layers)
            channels = width
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, architecture.classes))
