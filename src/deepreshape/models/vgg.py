"""VGG with batch norm (Simonyan and Zisserman 2015) and one linear layer, as used for CIFAR."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from deepreshape.models.architecture import Architecture, Site
from deepreshape.models.parts import activation, conv_norm, pool, shrink

__all__ = ["VGG", "sites"]


def sites(architecture: Architecture) -> Iterator[Site]:
    """The ReLU sites, front to back: one after each convolution. A stage ends with a pool; there is no stem."""
    size = shrink(architecture.input[1:], architecture.resolution)
    for stage, (convs, width) in enumerate(zip(architecture.phi, architecture.widths, strict=True), start=1):
        for conv in range(convs):
            first = (stage, conv) == (1, 0)
            yield Site(f"stage{stage}.{conv}.act", stage, conv + 1, conv == convs - 1, width, size, not first)
        size = max(1, size[0] // 2), max(1, size[1] // 2)


class VGG(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        channels, size = architecture.input[0], shrink(architecture.input[1:], architecture.resolution)
        for stage, (convs, width) in enumerate(zip(architecture.phi, architecture.widths, strict=True), start=1):
            layers = nn.Sequential()
            for conv in range(convs):
                path = f"stage{stage}.{conv}.act"
                unit = nn.Sequential()
                stride = architecture.resolution if (stage, conv) == (1, 0) else 1
                unit.conv = conv_norm(architecture, path, channels, width, 3, stride)
                unit.act = activation(architecture, path)
                layers.append(unit)
                channels = width
            if min(size) > 1:
                layers.append(pool(architecture, 2, 2))
                size = size[0] // 2, size[1] // 2
            self.add_module(f"stage{stage}", layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, architecture.classes))
