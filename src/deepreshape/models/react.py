"""Networks of one-bit activations and weights: ReActNet (Liu et al., ECCV 2020), on two bodies.

``resnet`` is Bi-Real Net's: residual blocks of two 3x3 convolutions, each with a shortcut of its own, so that what is
real passes around every sign. ``mobile`` is MobileNet's: a 3x3 convolution and a 1x1 one, two beside one another where
channels double. Stem, down-sampling 1x1 shortcuts and head are real, as published; the stem is for small images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from deepreshape.cost.layers import Layer, ReluLayer, SignLayer
from deepreshape.models.architecture import Reduction, Site
from deepreshape.models.parts import LayerList, shrink
from deepreshape.models.staged import Staged
from deepreshape.nn import BinaryConv2d, RPReLU, RSign, ShiftedReLU
from deepreshape.nn.binary import fused_threshold

__all__ = ["ReActNet", "fuse_thresholds"]


class _Unit(NamedTuple):
    """A sign, a convolution, a shortcut and an activation: their path and shapes; ``size`` is that of the input."""

    path: str
    number: int
    stage: int
    channels: int
    width: int
    kernel: int
    stride: int
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """Its path."""
        return f"{self.path}.unit{self.number}"

    @property
    def copies(self) -> int:
        """Convolutions beside one another, each as wide as the input."""
        return self.width // self.channels if self.kernel == 1 else 1


@final
@dataclass(frozen=True)
class ReActNet(Staged):
    """A binary network; ``binary="both"`` is the published one, the other two are its teachers.

    Attributes:
        body: ``"resnet"`` or ``"mobile"``.
        binary: what has one bit: ``"none"``, ``"activations"`` (the first of two training steps) or ``"both"``.
        rprelu: behind every shortcut: the published ``"prelu"`` between two shifts, a ``"relu"`` between them, whose
            ReLUs other methods can remove, or ``"none"``.
        shortcut: ``"real"``, or ``"none"``, which keeps every sign's input a sum of signs.
    """

    family: ClassVar[str] = "react"
    pools: ClassVar[tuple[str, ...]] = ("max",)

    body: Literal["resnet", "mobile"] = "resnet"
    binary: Literal["none", "activations", "both"] = "both"
    rprelu: Literal["prelu", "relu", "none"] = "prelu"
    shortcut: Literal["real", "none"] = "real"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "body": ("resnet", "mobile"),
            "binary": ("none", "activations", "both"),
            "rprelu": ("prelu", "relu", "none"),
            "shortcut": ("real", "none"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.reduction != Reduction() or self.activation != "relu":
            raise ValueError("a binary network has no ReLUs to remove by stage or to replace")
        if self.binary == "none" and self.rprelu == "none":
            raise ValueError("without signs and without RPReLUs the network would be linear; leave one of them")
        if self.body == "mobile" and (self.base % 2 or set(self.multipliers) - {1, 2}):
            raise ValueError(f"the mobile body doubles an even width or keeps it, not {self.widths} from {self.base}")
        if set(self.strides) - {1, 2}:
            raise ValueError(f"strides of a binary network are 1 or 2, not {self.strides}")

    @classmethod
    def presets(cls) -> Mapping[str, ReActNet]:
        return {
            "react18": cls((2, 2, 2, 2), 64, (2, 2, 2)),
            "reacta": cls((1, 2, 2, 6, 2), 64, (2, 2, 2, 2), body="mobile"),
        }

    @property
    def stem_width(self) -> int:
        """Channels behind the stem."""
        return self.base // 2 if self.body == "mobile" else self.base

    def units(self) -> Iterator[_Unit]:
        """Every unit, front to back."""
        channels, size = self.stem_width, shrink(self.input[1:], self.resolution)
        for stage, (blocks, width, stride) in enumerate(zip(self.phi, self.widths, self.strides, strict=True), start=1):
            for block in range(blocks):
                path, down = f"stage{stage}.{block}", stride if block == 0 else 1
                middle, kernel = (channels, 1) if self.body == "mobile" else (width, 3)
                yield _Unit(path, 1, stage, channels, middle, 3, down, size)
                size = shrink(size, down)
                yield _Unit(path, 2, stage, middle, width, kernel, 1, size)
                channels = width

    def sites(self) -> tuple[Site, ...]:
        return tuple(
            Site(
                f"{unit.name}.{self.rectifier}",
                unit.stage,
                unit.number,
                unit.number == 2,
                unit.width,
                shrink(unit.size, unit.stride),
                reusable=False,
            )
            for unit in self.units()
        )

    @property
    def rectifier(self) -> str:
        """Path of what rectifies, in a unit."""
        return "act.relu" if self.rprelu == "relu" else "act"

    def relus_at(self, site: Site) -> int:
        return 0 if self.rprelu == "none" else site.relus

    def layers(self) -> tuple[Layer, ...]:
        layers = LayerList(self)
        at = layers.conv("stem.0", (self.input[0], self.input[1:]), self.stem_width, 3, self.resolution)
        for unit in self.units():
            before, width = (unit.channels, unit.size), unit.width // unit.copies
            if self.binary != "none":
                layers.layers.append(SignLayer(f"{unit.name}.sign", prod((unit.channels, *unit.size))))
            for number in range(unit.copies):
                _, size = layers.conv(f"{unit.name}.convs.{number}", before, width, unit.kernel, unit.stride)
            if self.shortcut == "real" and _widens(unit):
                layers.conv(f"{unit.name}.shortcut.1", (unit.channels, size), unit.width, 1, 1)
            at = unit.width, size
            if self.rprelu != "none":
                elements = prod((unit.width, *size))
                layers.layers.append(ReluLayer(f"{unit.name}.{self.rectifier}", elements, elements))
        layers.linear("head.2", at[0], self.classes)
        return tuple(layers.layers)

    def build(self) -> nn.Module:
        return _ReActNet(self)


def fuse_thresholds(model: nn.Module) -> nn.Module:
    """A copy of a binary network without shortcuts that computes the same, bit for bit, with fewer RPReLUs.

    Where nothing but a sign reads what an RPReLU gives that has no slope below 0, one threshold does both; the last one
    stays. Any other network is given back as it is.
    """
    architecture = getattr(model, "architecture", None)
    if not isinstance(architecture, ReActNet) or architecture.shortcut == "real" or architecture.binary == "none":
        return model
    fused = copy.deepcopy(model)
    for unit, behind in pairwise(architecture.units()):
        act = fused.get_submodule(f"{unit.name}.act")
        sign = fused.get_submodule(f"{behind.name}.sign")
        if isinstance(act, RPReLU) and isinstance(sign, RSign) and (act.slope >= 0).all():
            sign.threshold = nn.Parameter(fused_threshold(act, sign.threshold))
            fused.set_submodule(f"{unit.name}.act", nn.Identity())
    return fused


def _widens(unit: _Unit) -> bool:
    """Whether a shortcut has a convolution of its own."""
    return unit.width != unit.channels * unit.copies


class _BitUnit(nn.Module):
    """act(norm(conv(sign(x))) + shortcut(x)); the outputs of several convolutions stand behind one another."""

    def __init__(self, architecture: ReActNet, unit: _Unit) -> None:
        super().__init__()
        kind = BinaryConv2d if architecture.binary == "both" else _RealConv2d
        width, padding = unit.width // unit.copies, (unit.kernel - 1) // 2
        self.sign = nn.Identity() if architecture.binary == "none" else RSign(unit.channels)
        self.convs = nn.ModuleList(
            kind(unit.channels, width, unit.kernel, unit.stride, padding) for _ in range(unit.copies)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(unit.copies))
        self.real = architecture.shortcut == "real"
        odd = any(side % unit.stride for side in unit.size)
        pool = nn.AvgPool2d(unit.stride, ceil_mode=odd) if unit.stride > 1 else nn.Identity()
        self.shortcut = nn.Sequential(pool)
        if self.real and _widens(unit):
            self.shortcut.extend([nn.Conv2d(unit.channels, unit.width, 1, bias=False), nn.BatchNorm2d(unit.width)])
        acts = {"prelu": RPReLU, "relu": ShiftedReLU}
        self.act = acts[architecture.rprelu](unit.width) if architecture.rprelu in acts else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        signs = self.sign(x)
        outs = [norm(conv(signs)) for conv, norm in zip(self.convs, self.norms, strict=True)]
        if self.real:
            around = self.shortcut(x)
            outs = [out + around for out in outs]
        return self.act(torch.cat(outs, 1) if len(outs) > 1 else outs[0])


class _RealConv2d(nn.Conv2d):
    """A convolution without bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)


class _ReActNet(nn.Sequential):
    """Maps a batch (N, channels, height, width) to logits (N, classes)."""

    def __init__(self, architecture: ReActNet) -> None:
        super().__init__()
        self.architecture = architecture
        width, channels = architecture.stem_width, architecture.input[0]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, architecture.resolution, 1, bias=False), nn.BatchNorm2d(width)
        )
        for unit in architecture.units():
            stage, _, block = unit.path.partition(".")
            if (block, unit.number) == ("0", 1):
                self.add_module(stage, nn.Sequential())
            if unit.number == 1:
                self.get_submodule(stage).append(nn.Sequential())  # pyright: ignore[reportCallIssue]
            self.get_submodule(unit.path).add_module(f"unit{unit.number}", _BitUnit(architecture, unit))
        last = architecture.widths[-1]
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, architecture.classes))
