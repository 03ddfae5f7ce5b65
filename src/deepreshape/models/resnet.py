"""ResNets for small images (He et al. 2016), of any stage count, width and multipliers; HybReNets are among them.

Stem of 3x3, batch norm, ReLU; stages of residual blocks whose first block down-samples; a 1x1 projection where the
shape changes; global average pool; one linear layer. DeepReShape section 2 and Table 1.

The form for segmentation gives logits for a map an eighth of the image's size: what would halve it further keeps its
size instead, and all convolutions behind it are dilated twice as far, so that each place of the map computes what it
would have computed (Chen et al. 2015; Yu et al. 2017). Its head is a 1x1 convolution; the map is upsampled by whoever
reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from deepreshape.cost.layers import Layer
from deepreshape.models.architecture import Site
from deepreshape.models.parts import LayerList, activation, conv_norm, head, head_sites, pool, shrink
from deepreshape.models.staged import Staged

__all__ = ["ResNet"]

EXPANSION = 4
"""Output width of a bottleneck block over its inner width."""
OUTPUT_STRIDE = 8
"""The largest down-sampling of a network for segmentation."""


@dataclass(frozen=True)
class ResidualBlock:
    """A block of a ResNet.

    Attributes:
        path: of its module.
        stage: 1 and up.
        chain: (kernel, width, stride, dilation) of its convolutions.
        stride: of its shortcut.
        channels, out_channels: that it takes and gives.
        projects: whether its shortcut is a 1x1 convolution.
    """

    path: str
    stage: int
    chain: tuple[tuple[int, int, int, int], ...]
    stride: int
    channels: int
    out_channels: int
    projects: bool


@final
@dataclass(frozen=True)
class ResNet(Staged):
    """A residual network.

    Attributes:
        block: kind of residual block; a bottleneck's output is four times its width.
        stem: ``"3x3"`` (CIFAR, TinyImageNet: 3x3, stride 1) or ``"7x7"`` (ImageNet: 7x7, stride 2, pool).
        layer_widths: output channels of each convolution, the stem's first, then block by block; empty for those of
            the stages. Where a block's last convolution is wider than its identity shortcut, zeros are added to the
            shortcut; where it is narrower, the shortcut's other channels pass by the block, and its ReLU.
        task: ``"classify"``: logits (N, classes); or ``"segment"``: maps of logits (N, classes, height, width), down
            by :data:`OUTPUT_STRIDE` at most.
    """

    family: ClassVar[str] = "resnet"
    heads: ClassVar[tuple[str, ...]] = ("light", "conv")
    scheme: ClassVar[str] = "redesign"

    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["3x3", "7x7"] = "3x3"
    layer_widths: tuple[int, ...] = ()
    task: Literal["classify", "segment"] = "classify"

    def __post_init__(self) -> None:
        Staged.__post_init__(self)
        convolutions = 1 + sum(self.phi) * self.depth
        if self.layer_widths and (len(self.layer_widths) != convolutions or min(self.layer_widths) < 1):
            raise ValueError(
                f"it has {convolutions} convolutions, which need as many positive widths, not {self.layer_widths}"
            )

    @property
    def maps(self) -> bool:
        return self.task == "segment"

    @property
    def depth(self) -> int:
        """Convolutions of a block."""
        return 3 if self.block == "bottleneck" else 2

    @property
    def stem_width(self) -> int:
        """Channels of the stem."""
        return self.layer_widths[0] if self.layer_widths else self.base

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

    def _steps(self) -> Iterator[tuple[int, int, int]]:
        """By stage: its stride, the dilation of the convolution that has it, and that of those behind it."""
        shrunk, dilation = self.stem_stride * (2 if self.stem == "7x7" else 1), 1
        for stride in self.strides:
            if self.task == "segment" and stride > 1 and shrunk * stride > OUTPUT_STRIDE:
                yield 1, dilation, dilation * stride
                dilation *= stride
            else:
                yield stride, dilation, dilation
                shrunk *= stride

    def _chain(
        self, number: int, width: int, stride: int, dilations: tuple[int, int]
    ) -> list[tuple[int, int, int, int]]:
        """(kernel, width, stride, dilation) of the convolutions of a block, by its number among all."""
        striding, others = dilations
        if self.block == "bottleneck":
            usual = [(1, width, 1, 1), (3, width, stride, striding), (1, EXPANSION * width, 1, 1)]
        else:
            usual = [(3, width, stride, striding), (3, width, 1, others)]
        if not self.layer_widths:
            return usual
        first = 1 + number * self.depth
        given = self.layer_widths[first : first + self.depth]
        return [(kernel, wide, step, far) for (kernel, _, step, far), wide in zip(usual, given, strict=True)]

    def blocks(self) -> Iterator[ResidualBlock]:
        """All residual blocks, front to back."""
        number, channels = 0, self.stem_width
        expansion = EXPANSION if self.block == "bottleneck" else 1
        stages = zip(self.phi, self.widths, self.strides, self._steps(), strict=True)
        for stage, (blocks, width, strides, (stride, striding, others)) in enumerate(stages, start=1):
            for block in range(blocks):
                down, first = (stride, striding) if block == 0 else (1, others)
                chain = self._chain(number, width, down, (first, others))
                usual_in = self.base if number == 0 else expansion * self.widths[stage - 1 - (block == 0)]
                projects = (strides != 1 and block == 0) or usual_in != expansion * width
                wide = chain[-1][1]
                out = wide if projects else max(wide, channels)
                yield ResidualBlock(f"stage{stage}.{block}", stage, tuple(chain), down, channels, out, projects)
                number, channels = number + 1, out

    def sites(self) -> tuple[Site, ...]:
        size = shrink(self.input[1:], self.stem_stride)
        sites = [Site("stem.act", 0, 1, True, self.stem_width, size, reusable=False)]
        size, channels = shrink(size, 2) if self.stem == "7x7" else size, self.stem_width
        for block in self.blocks():
            channels = block.out_channels
            for index, (_, wide, stride, _) in enumerate(block.chain, start=1):
                size, last = shrink(size, stride), index == len(block.chain)
                sites.append(Site(f"{block.path}.act{index}", block.stage, index, last, wide, size))
        return (*sites, *head_sites(self, channels, size))

    def layers(self) -> tuple[Layer, ...]:
        layers = LayerList(self)
        image = self.input[0], self.input[1:]
        at = layers.conv("stem.conv.0", image, self.stem_width, 7 if self.stem == "7x7" else 3, self.stem_stride)
        layers.activation("stem.act", at)
        at = (at[0], shrink(at[1], 2)) if self.stem == "7x7" else at
        for block in self.blocks():
            start = at
            for index, (kernel, wide, stride, dilation) in enumerate(block.chain, start=1):
                site = f"{block.path}.act{index}"
                at = layers.conv_norm(f"{block.path}.conv{index}", site, at, wide, kernel, stride, dilation)
                if index == len(block.chain) and block.projects:
                    layers.conv(f"{block.path}.shortcut.0", start, wide, 1, block.stride)
                layers.activation(site, at)
            at = block.out_channels, at[1]
        layers.head(at)
        return tuple(layers.layers)

    def build(self) -> nn.Module:
        return _ResNet(self)


class _Block(nn.Module):
    """One residual block; the convolutions are a chain whose last activation follows the add."""

    def __init__(self, architecture: ResNet, block: ResidualBlock) -> None:
        super().__init__()
        self.depth, self.width, channels = len(block.chain), block.chain[-1][1], block.channels
        for index, (kernel, wide, step, dilation) in enumerate(block.chain, start=1):
            site = f"{block.path}.act{index}"
            conv = conv_norm(architecture.reduction, site, channels, wide, kernel, step, dilation)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"act{index}", activation(architecture, site, wide))
            channels = wide
        self.shortcut: nn.Module = nn.Identity()
        if block.projects:
            self.shortcut = conv_norm(architecture.reduction, None, block.channels, channels, 1, block.stride)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index in range(1, self.depth):
            out = self.get_submodule(f"act{index}")(self.get_submodule(f"conv{index}")(out))
        out, short = self.get_submodule(f"conv{self.depth}")(out), self.shortcut(x)
        act = self.get_submodule(f"act{self.depth}")
        more = short.shape[1] - self.width
        if more < 0:
            short = pad(short, (0, 0, 0, 0, 0, -more))
        if more <= 0:
            return act(out + short)
        return torch.cat([act(out + short[:, : self.width]), short[:, self.width :]], dim=1)


class _ResNet(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes), or to maps of them."""

    def __init__(self, architecture: ResNet) -> None:
        super().__init__()
        self.architecture = architecture
        large, reduction, channels = architecture.stem == "7x7", architecture.reduction, architecture.stem_width
        self.stem = nn.Sequential()
        self.stem.conv = conv_norm(
            reduction, None, architecture.input[0], channels, 7 if large else 3, architecture.stem_stride
        )
        self.stem.act = activation(architecture, "stem.act", channels)
        if large:
            self.stem.pool = pool(architecture.pool, 3, 2, 1)
        for block in architecture.blocks():
            name, _, number = block.path.partition(".")
            if number == "0":
                self.add_module(name, nn.Sequential())
            self.get_submodule(name).append(_Block(architecture, block))  # pyright: ignore[reportCallIssue]
            channels = block.out_channels
        self.head = head(architecture, channels)
