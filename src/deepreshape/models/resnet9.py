"""ResNet-9, the small fast network of the short-training literature: four stages, two of them with a residual pair.

Pools, or strides in their place, come before the ReLU, so that a ReLU works on the smaller map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from deepreshape.cost.layers import Layer
from deepreshape.models.architecture import Site
from deepreshape.models.parts import LayerList, activation, conv_norm, head, head_sites, pool, shrink
from deepreshape.models.staged import Staged

__all__ = ["ResNet9"]

RESIDUAL_STAGES = (2, 4)


@final
@dataclass(frozen=True)
class ResNet9(Staged):
    """Its first stage is the stem: one convolution, no pool."""

    family: ClassVar[str] = "resnet9"
    heads: ClassVar[tuple[str, ...]] = ("light", "conv")
    pools: ClassVar[tuple[str, ...]] = ("max", "avg", "conv")

    @classmethod
    def presets(cls) -> Mapping[str, ResNet9]:
        return {"resnet9": cls((1, 1, 1, 1), 64, (2, 2, 2))}

    def sites(self) -> tuple[Site, ...]:
        size = shrink(self.input[1:], self.resolution)
        sites = [Site("stem.act", 0, 1, True, self.base, size, reusable=False)]
        for stage, width in enumerate(self.widths[1:], start=2):
            size = max(1, size[0] // 2), max(1, size[1] // 2)
            residual = stage in RESIDUAL_STAGES
            sites.append(Site(f"stage{stage}.act", stage, 1, not residual, width, size, reusable=False))
            if residual:
                sites.append(Site(f"stage{stage}.pair.act1", stage, 2, False, width, size))
                sites.append(Site(f"stage{stage}.pair.act2", stage, 3, True, width, size))
        return (*sites, *head_sites(self, self.widths[-1], size))

    def layers(self) -> tuple[Layer, ...]:
        layers = LayerList(self)
        at = layers.conv("stem.conv.0", (self.input[0], self.input[1:]), self.base, 3, self.resolution)
        layers.activation("stem.act", at)
        for stage, width in enumerate(self.widths[1:], start=2):
            shrinks = min(at[1]) > 1
            strided = shrinks and self.pool == "conv"
            at = layers.conv(f"stage{stage}.conv.0", at, width, 4 if strided else 3, 2 if strided else 1)
            at = (width, (at[1][0] // 2, at[1][1] // 2)) if shrinks and not strided else at
            layers.activation(f"stage{stage}.act", at)
            if stage in RESIDUAL_STAGES:
                for part in ("1", "2"):
                    site = f"stage{stage}.pair.act{part}"
                    at = layers.conv_norm(f"stage{stage}.pair.conv{part}", site, at, width, 3)
                    layers.activation(site, at)
        layers.head(at)
        return tuple(layers.layers)

    def build(self) -> nn.Module:
        return _ResNet9(self)


class _Pair(nn.Module):
    def __init__(self, architecture: ResNet9, path: str, width: int) -> None:
        super().__init__()
        reduction = architecture.reduction
        self.conv1 = conv_norm(reduction, f"{path}.act1", width, width, 3)
        self.act1 = activation(architecture, f"{path}.act1", width)
        self.conv2 = conv_norm(reduction, f"{path}.act2", width, width, 3)
        self.act2 = activation(architecture, f"{path}.act2", width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act2(self.conv2(self.act1(self.conv1(x))))


class _ResNet9(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes)."""

    def __init__(self, architecture: ResNet9) -> None:
        super().__init__()
        self.architecture = architecture
        reduction, channels = architecture.reduction, architecture.base
        self.stem = nn.Sequential()
        self.stem.conv = conv_norm(reduction, None, architecture.input[0], channels, 3, architecture.resolution)
        self.stem.act = activation(architecture, "stem.act", channels)
        size = shrink(architecture.input[1:], architecture.resolution)
        for stage, width in enumerate(architecture.widths[1:], start=2):
            layers = nn.Sequential()
            shrinks = min(size) > 1
            if shrinks and architecture.pool == "conv":
                layers.conv = conv_norm(reduction, None, channels, width, 4, 2)
            else:
                layers.conv = conv_norm(reduction, None, channels, width, 3)
                if shrinks:
                    layers.pool = pool(architecture.pool, 2, 2)
            if shrinks:
                size = size[0] // 2, size[1] // 2
            layers.act = activation(architecture, f"stage{stage}.act", width)
            if stage in RESIDUAL_STAGES:
                layers.pair = _Pair(architecture, f"stage{stage}.pair", width)
            self.add_module(f"stage{stage}", layers)
            channels = width
        self.head = head(architecture, channels)
