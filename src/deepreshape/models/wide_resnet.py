"""Wide ResNets with pre-activation blocks (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from deepreshape.cost.layers import Layer
from deepreshape.models.architecture import Site
from deepreshape.models.parts import LayerList, activation, shrink
from deepreshape.models.staged import Staged

__all__ = ["STEM_WIDTH", "WideResNet"]

STEM_WIDTH = 16


@final
@dataclass(frozen=True)
class WideResNet(Staged):
    """Two ReLUs before the convolutions of each block, the first still on the map that enters; one after the last."""

    family: ClassVar[str] = "wide_resnet"

    @classmethod
    def presets(cls) -> Mapping[str, WideResNet]:
        return {"wideresnet22-8": cls((3, 3, 3), 128, (2, 2)), "wideresnet28-10": cls((4, 4, 4), 160, (2, 2))}

    def blocks(self) -> Iterator[tuple[str, int, int, int]]:
        """(path, stage, width, stride) of every residual block."""
        for stage, (blocks, width, stride) in enumerate(zip(self.phi, self.widths, self.strides, strict=True), start=1):
            for block in range(blocks):
                yield f"stage{stage}.{block}", stage, width, stride if block == 0 else 1

    def sites(self) -> tuple[Site, ...]:
        size, channels, sites = shrink(self.input[1:], self.resolution), STEM_WIDTH, []
        for path, stage, width, stride in self.blocks():
            sites.append(Site(f"{path}.act1", stage, 1, False, channels, size, reusable=False))
            size, channels = shrink(size, stride), width
            sites.append(Site(f"{path}.act2", stage, 2, True, width, size, reusable=False))
        sites.append(Site("head.act", len(self.phi), 1, True, channels, size, reusable=False))
        return tuple(sites)

    def layers(self) -> tuple[Layer, ...]:
        layers = LayerList(self)
        at = layers.conv("stem", (self.input[0], self.input[1:]), STEM_WIDTH, 3, self.resolution)
        for path, _, width, stride in self.blocks():
            layers.activation(f"{path}.act1", at)
            if stride != 1 or at[0] != width:
                layers.conv(f"{path}.shortcut", at, width, 1, stride)
            at = layers.conv(f"{path}.conv1", at, width, 3, stride)
            layers.activation(f"{path}.act2", at)
            at = layers.conv(f"{path}.conv2", at, width, 3, 1)
        layers.activation("head.act", at)
        layers.linear("head.linear", at[0], self.classes)
        return tuple(layers.layers)

    def build(self) -> nn.Module:
        return _WideResNet(self)


class _Block(nn.Module):
    def __init__(self, architecture: WideResNet, path: str, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.act1 = activation(architecture, f"{path}.act1", in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act2 = activation(architecture, f"{path}.act2", width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            self.shortcut = nn.Conv2d(in_channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = self.act1(self.norm1(x))
        # a projection sees the activated input, an identity the raw one
        across = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(ready)
        return self.conv2(self.act2(self.norm2(self.conv1(ready)))) + across


class _WideResNet(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes)."""

    def __init__(self, architecture: WideResNet) -> None:
        super().__init__()
        self.architecture = architecture
        self.stem = nn.Conv2d(architecture.input[0], STEM_WIDTH, 3, architecture.resolution, 1, bias=False)
        channels = STEM_WIDTH
        for path, _, width, stride in architecture.blocks():
            name, _, block = path.partition(".")
            if block == "0":
                self.add_module(name, nn.Sequential())
            self.get_submodule(name).append(_Block(architecture, path, channels, width, stride))  # pyright: ignore[reportCallIssue]
            channels = width
        self.head = nn.Sequential()
        self.head.norm = nn.BatchNorm2d(channels)
        self.head.act = activation(architecture, "head.act", channels)
        self.head.pool = nn.AdaptiveAvgPool2d(1)
        self.head.flat = nn.Flatten()
        self.head.linear = nn.Linear(channels, architecture.classes)
