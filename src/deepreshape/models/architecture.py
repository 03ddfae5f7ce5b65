"""What a network is before it has weights: a small frozen value from which everything else follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import mul
from typing import Any, Literal

from deepreshape.nn import ReuseForm

__all__ = ["Architecture", "Site"]

Family = Literal["resnet", "wide_resnet", "resnet9", "vgg"]


MOST_CHANNELS = 1 << 24


@dataclass(frozen=True)
class Site:
    """A place where the unreduced network has a ReLU.

    Attributes:
        name: path of its module in the built network, such as ``stage2.0.act1``.
        stage: 1 and up; 0 is the stem.
        position: of the ReLU in its block, 1 and up; the last one stands after the residual add.
        last: whether it is the last of its block.
        channels, size: shape of its map, (height, width) last.
        reusable: whether the convolution before it can be split in groups that share its ReLUs.
    """

    name: str
    stage: int
    position: int
    last: bool
    channels: int
    size: tuple[int, int]
    reusable: bool = True

    @property
    def relus(self) -> int:
        """How many ReLUs the whole map has."""
        return self.channels * self.size[0] * self.size[1]


@dataclass(frozen=True)
class Architecture:
    """A convolutional network of stages, and which of its ReLUs are left.

    Attributes:
        family: which builder makes it.
        phi: stage compute ratio: blocks (for VGG: convolutions) in each stage.
        base: m, the channels of the first stage.
        multipliers: (alpha, beta, gamma, ...): how much wider each stage is than the one before.
        input: (channels, height, width) of the input.
        classes: width of the output.
        block: kind of residual block; a bottleneck's output is four times its width.
        stem: ``"3x3"`` (CIFAR, TinyImageNet: 3x3, stride 1) or ``"7x7"`` (ImageNet: 7x7, stride 2, pool).
        strides: down-sampling of each stage.
        pool: kind of the pools inside the network, where the family has any. ``"conv"``, for ResNet-9 only, is none:
            the convolution before strides, with a 4x4 kernel, which can be what a 3x3 one and an average pool make.
        resolution: extra down-sampling in the stem (DeepReDuce's feature-map reshaping).
        removed: names of the sites that have no ReLU any more.
        reused: (site name, factor) of the sites whose ReLUs are reused.
        reuse: how reused sites are wired.
    """

    family: Family
    phi: tuple[int, ...]
    base: int
    multipliers: tuple[int, ...]
    input: tuple[int, int, int] = (3, 32, 32)
    classes: int = 100
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["3x3", "7x7"] = "3x3"
    strides: tuple[int, ...] = ()
    pool: Literal["max", "avg", "conv"] = "max"
    resolution: int = 1
    removed: frozenset[str] = frozenset()
    reused: tuple[tuple[str, int], ...] = ()
    reuse: ReuseForm = field(default_factory=ReuseForm)

    def __post_init__(self) -> None:
        if not self.strides:
            object.__setattr__(self, "strides", (1,) + (2,) * (len(self.phi) - 1))
        if len(self.multipliers) != len(self.phi) - 1:
            raise ValueError(
                f"{len(self.phi)} stages need {len(self.phi) - 1} multipliers, not {len(self.multipliers)}: "
                f"phi={self.phi}, multipliers={self.multipliers}"
            )
        if len(self.strides) != len(self.phi):
            raise ValueError(f"{len(self.phi)} stages need as many strides, not {self.strides}")
        if self.pool == "conv" and self.family != "resnet9":
            raise ValueError(f"a {self.family} cannot stride in place of its pools; resnet9 can")
        for name, values in {
            "phi": self.phi,
            "base": (self.base,),
            "multipliers": self.multipliers,
            "input": self.input,
            "classes": (self.classes,),
            "strides": self.strides,
            "resolution": (self.resolution,),
        }.items():
            if any(value < 1 for value in values):
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if max(self.widths) > MOST_CHANNELS:
            raise ValueError(f"a stage would have {max(self.widths):,} channels; up to {MOST_CHANNELS:,} work")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage: (m, m alpha, m alpha beta, ...)."""
        return tuple(accumulate(self.multipliers, mul, initial=self.base))

    @property
    def unreduced(self) -> Architecture:
        """The same network with all its ReLUs."""
        return replace(self, removed=frozenset(), reused=())

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; :meth:`from_dict` gives it back."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["removed"] = sorted(self.removed)
        values["reuse"] = {name: getattr(self.reuse, name) for name in self.reuse.__dataclass_fields__}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """The architecture of what :meth:`to_dict` gave.

        Raises:
            ValueError: if a field is missing, unknown or does not fit.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"unknown architecture fields {sorted(unknown)}")
        try:
            given = dict(values)
            for name in ("phi", "multipliers", "input", "strides"):
                given[name] = tuple(int(value) for value in given[name])
            given["removed"] = frozenset(given["removed"])
            given["reused"] = tuple((str(site), int(factor)) for site, factor in given["reused"])
            given["reuse"] = ReuseForm(**given["reuse"])
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an architecture: {error}") from error
