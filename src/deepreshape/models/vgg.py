"""VGG with batch norm (Simonyan and Zisserman 2015) and one linear layer, as used for CIFAR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from deepreshape.cost.layers import Layer
from deepreshape.models.architecture import Site
from deepreshape.models.parts import LayerList, activation, conv_norm, head, head_sites, pool, shrink
from deepreshape.models.staged import Staged

__all__ = ["VGG"]


@final
@dataclass(frozen=True)
class VGG(Staged):
    """A ReLU after each convolution; a stage ends with a pool; there is no stem."""

    family: ClassVar[str] = "vgg"
    heads: ClassVar[tuple[str, ...]] = ("light", "conv")

    @classmethod
    def presets(cls) -> Mapping[str, VGG]:
        return {"vgg16": cls((2, 2, 3, 3, 3), 64, (2, 2, 2, 1))}

    def sites(self) -> tuple[Site, ...]:
        size, sites = shrink(self.input[1:], self.resolution), []
        for stage, (convs, width) in enumerate(zip(self.phi, self.widths, strict=True), start=1):
            for conv in range(convs):
                first = (stage, conv) == (1, 0)
                sites.append(
                    Site(f"stage{stage}.{conv}.act", stage, conv + 1, conv == convs - 1, width, size, not first)
                )
            size = max(1, size[0] // 2), max(1, size[1] // 2)
        return (*sites, *head_sites(self, self.widths[-1], size))

    def layers(self) -> tuple[Layer, ...]:
        layers, at = LayerList(self), (self.input[0], self.input[1:])
        for stage, (convs, width) in enumerate(zip(self.phi, self.widths, strict=True), start=1):
            for conv in range(convs):
                path = f"stage{stage}.{conv}"
                stride = self.resolution if (stage, conv) == (1, 0) else 1
                at = layers.conv_norm(f"{path}.conv", f"{path}.act", at, width, 3, stride)
                layers.activation(f"{path}.act", at)
            at = (at[0], (at[1][0] // 2, at[1][1] // 2)) if min(at[1]) > 1 else at
        layers.head(at)
        return tuple(layers.layers)

    def build(self) -> nn.Module:
        return _VGG(self)


class _VGG(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes)."""

    def __init__(self, architecture: VGG) -> None:
        super().__init__()
        self.architecture = architecture
        channels, size = architecture.input[0], shrink(architecture.input[1:], architecture.resolution)
        for stage, (convs, width) in enumerate(zip(architecture.phi, architecture.widths, strict=True), start=1):
            layers = nn.Sequential()
            for conv in range(convs):
                path = f"stage{stage}.{conv}.act"
                unit = nn.Sequential()
                stride = architecture.resolution if (stage, conv) == (1, 0) else 1
                unit.conv = conv_norm(architecture.reduction, path, channels, width, 3, stride)
                unit.act = activation(architecture, path, width)
                layers.append(unit)
                channels = width
            if min(size) > 1:
                layers.append(pool(architecture.pool, 2, 2))
                size = size[0] // 2, size[1] // 2
            self.add_module(f"stage{stage}", layers)
        self.head = head(architecture, channels)
