"""ResNets for small images (He et al. 2016), of any stage count, width and multipliers; HybReNets are among them.

Stem of 3x3, batch norm, ReLU; stages of residual blocks whose first block down-samples; a 1x1 projection where the
shape changes; global average pool; one linear layer. DeepReShape section 2 and Table 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import Tensor, nn

from deepreshape.cost.layers import Layer
from deepreshape.models.architecture import Site
from deepreshape.models.parts import LayerList, activation, conv_norm, pool, shrink
from deepreshape.models.staged import Staged

__all__ = ["ResNet"]

EXPANSION = 4
"""Output width of a bottleneck block over its inner width."""


@final
@dataclass(frozen=True)
class ResNet(Staged):
    """A residual network.

    Attributes:
        block: kind of residual block; a bottleneck's output is four times its width.
        stem: ``"3x3"`` (CIFAR, TinyImageNet: 3x3, stride 1) or ``"7x7"`` (ImageNet: 7x7, stride 2, pool).
    """

    family: ClassVar[str] = "resnet"
    scheme: ClassVar[str] = "redesign"

    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["3x3", "7x7"] = "3x3"

    @classmethod
    def presets(cls) -> Mapping[str, ResNet]:
        return {
            "resnet18": cls((2, 2, 2, 2), 64, (2, 2, 2)),
            "resnet20": cls((3, 3, 3), 16, (2, 2)),
            "resnet32": cls((5, 5, 5), 16, (2, 2)),
            "resnet34": cls((3, 4, 6, 3), 64, (2, 2, 2)),
            "resnet50": cls((3, 4, 6, 3), 64, (2, 2, 2), block="bottleneck"),
        }

    @property
    def stem_stride(self) -> int:
        """Down-sampling of the stem's convolution."""
        return self.resolution * (2 if self.stem == "7x7" else 1)

    def chain(self, width: int, stride: int) -> Iterator[tuple[int, int, int]]:
        """(kernel, width, stride) of the convolutions of a block."""
        if self.block == "bottleneck":
            yield from ((1, width, 1), (3, width, stride), (1, EXPANSION * width, 1))
        else:
            yield from ((3, width, stride), (3, width, 1))

    def blocks(self) -> Iterator[tuple[str, int, int, int]]:
        """(path, stage, width, stride) of every residual block."""
        for stage, (blocks, width, stride) in enumerate(zip(self.phi, self.widths, self.strides, strict=True), start=1):
            for block in range(blocks):
                yield f"stage{stage}.{block}", stage, width, stride if block == 0 else 1

    def sites(self) -> tuple[Site, ...]:
        size = shrink(self.input[1:], self.stem_stride)
        sites = [Site("stem.act", 0, 1, True, self.base, size, reusable=False)]
        size = shrink(size, 2) if self.stem == "7x7" else size
        for path, stage, width, down in self.blocks():
            chain = [*self.chain(width, down)]
            for index, (_, wide, stride) in enumerate(chain, start=1):
                size = shrink(size, stride)
                sites.append(Site(f"{path}.act{index}", stage, index, index == len(chain), wide, size))
        return tuple(sites)

    def layers(self) -> tuple[Layer, ...]:
        layers = LayerList(self)
        image = self.input[0], self.input[1:]
        at = layers.conv("stem.conv.0", image, self.base, 7 if self.stem == "7x7" else 3, self.stem_stride)
        layers.activation("stem.act", at)
        at = (at[0], shrink(at[1], 2)) if self.stem == "7x7" else at
        for path, _, width, down in self.blocks():
            start, chain = at, [*self.chain(width, down)]
            for index, (kernel, wide, stride) in enumerate(chain, start=1):
                site = f"{path}.act{index}"
                at = layers.conv_norm(f"{path}.conv{index}", site, at, wide, kernel, stride)
                if index == len(chain) and (down != 1 or start[0] != wide):
                    layers.conv(f"{path}.shortcut.0", start, wide, 1, down)
                layers.activation(site, at)
        layers.linear("head.2", at[0], self.classes)
        return tuple(layers.layers)

    def build(self) -> nn.Module:
        return _ResNet(self)


class _Block(nn.Module):
    """One residual block; the convolutions are a chain whose last activation follows the add."""

    def __init__(self, architecture: ResNet, path: str, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        chain = [*architecture.chain(width, stride)]
        self.depth, channels = len(chain), in_channels
        for index, (kernel, wide, step) in enumerate(chain, start=1):
            site = f"{path}.act{index}"
            self.add_module(f"conv{index}", conv_norm(architecture.reduction, site, channels, wide, kernel, step))
            self.add_module(f"act{index}", activation(architecture, site, wide))
            channels = wide
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = conv_norm(architecture.reduction, None, in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index in range(1, self.depth + 1):
            out = self.get_submodule(f"conv{index}")(out)
            if index == self.depth:
                out = out + self.shortcut(x)
            out = self.get_submodule(f"act{index}")(out)
        return out


class _ResNet(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes)."""

    def __init__(self, architecture: ResNet) -> None:
        super().__init__()
        self.architecture = architecture
        large, reduction = architecture.stem == "7x7", architecture.reduction
        self.stem = nn.Sequential()
        self.stem.conv = conv_norm(
            reduction, None, architecture.input[0], architecture.base, 7 if large else 3, architecture.stem_stride
        )
        self.stem.act = activation(architecture, "stem.act", architecture.base)
        if large:
            self.stem.pool = pool(architecture.pool, 3, 2, 1)
        channels = architecture.base
        expansion = EXPANSION if architecture.block == "bottleneck" else 1
        for path, _, width, stride in architecture.blocks():
            name, _, block = path.partition(".")
            if block == "0":
                self.add_module(name, nn.Sequential())
            self.get_submodule(name).append(_Block(architecture, path, channels, width, stride))  # pyright: ignore[reportCallIssue]
            channels = expansion * width
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, architecture.classes))
