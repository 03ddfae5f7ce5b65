"""Convolutional networks of stages: what the fields of their families have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar, Literal, Self

from torch import nn

from deepreshape.cost.layers import Layer
from deepreshape.models.architecture import Reduction, Site
from deepreshape.models.names import name_of

__all__ = ["Staged"]

MOST_CHANNELS = 1 << 24


@dataclass(frozen=True)
class Staged(ABC):
    """A convolutional network of stages, and which of its ReLUs are left; each family is a final subclass.

    Attributes:
        phi: stage compute ratio: blocks (for VGG: convolutions) in each stage.
        base: m, the channels of the first stage.
        multipliers: (alpha, beta, gamma, ...): how much wider each stage is than the one before.
        input: (channels, height, width) of the input.
        classes: width of the output.
        strides: down-sampling of each stage.
        pool: kind of the pools inside the network, where the family has any. ``"conv"``, for ResNet-9 only, is none:
            the convolution before strides, with a 4x4 kernel, which can be what a 3x3 one and an average pool make.
        activation: what stands at a site: ``"relu"``, or ``"herpn"``, a quadratic (AESPA).
        resolution: extra down-sampling in the stem (DeepReDuce's feature-map reshaping).
        head: what gives the logits: ``"light"`` is an average pool and a linear layer, or of maps a 1x1 convolution;
            ``"conv"`` the same behind a 3x3 convolution of as many channels, with a batch norm and a ReLU.
        reduction: which sites have fewer ReLUs.
    """

    family: ClassVar[str]
    pools: ClassVar[tuple[str, ...]] = ("max", "avg")
    heads: ClassVar[tuple[str, ...]] = ("light",)
    scheme: ClassVar[str] = ""
    """What names beside the presets are of this family: ``"redesign"`` for ``hrn-`` and ``stch-``, ``"cells"``."""
    fewest: ClassVar[int] = 1
    """Blocks that a stage has to have."""
    successive: ClassVar[bool] = True
    """Whether each stage reads the one before alone, so that a network can end behind it."""

    phi: tuple[int, ...]
    base: int
    multipliers: tuple[int, ...]
    input: tuple[int, int, int] = (3, 32, 32)
    classes: int = 100
    strides: tuple[int, ...] = ()
    pool: Literal["max", "avg", "conv"] = "max"
    resolution: int = 1
    activation: Literal["relu", "herpn"] = "relu"
    head: Literal["light", "conv"] = "light"
    reduction: Reduction = field(default_factory=Reduction)

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
        if self.pool not in self.pools:
            raise ValueError(f"a {self.family} cannot stride in place of its pools; resnet9 can")
        if self.head not in self.heads:
            raise ValueError(f"a {self.family} takes heads {', '.join(self.heads)}, not {self.head!r}")
        if self.activation not in ("relu", "herpn"):
            raise ValueError(f"unknown activation {self.activation!r}; known are 'relu' and 'herpn'")
        if self.activation == "herpn" and self.reduction != Reduction():
            raise ValueError("a network of HerPNs has no ReLUs to remove or to reuse")
        for name in ("phi", "base", "multipliers", "input", "classes", "strides", "resolution"):
            value, smallest = getattr(self, name), self.fewest if name == "phi" else 1
            if any(each < smallest for each in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"{name} must be positive, not {value}")
        if max(self.widths) > MOST_CHANNELS:
            raise ValueError(f"a stage would have {max(self.widths):,} channels; up to {MOST_CHANNELS:,} work")

    @classmethod
    @abstractmethod
    def presets(cls) -> Mapping[str, Self]:
        """Networks of the literature by name."""

    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """Every ReLU site of the unreduced network, front to back."""

    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """Every linear and ReLU layer in the order in which they run."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A module with fresh weights."""

    @property
    def name(self) -> str:
        """The name that :func:`~deepreshape.models.architecture` reads, removal left aside.

        Raises:
            ValueError: if it has none, because its strides or its shape are not the usual ones.
        """
        return name_of(self)

    @property
    def maps(self) -> bool:
        """Whether it gives logits for each place of a map, and not for the image."""
        return False

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage: (m, m alpha, m alpha beta, ...)."""
        return tuple(accumulate(self.multipliers, mul, initial=self.base))

    @property
    def unreduced(self) -> Self:
        """The same network with all its ReLUs."""
        return replace(self, reduction=Reduction())

    @property
    def relus(self) -> int:
        """How many ReLUs the network has, by arithmetic."""
        return sum(self.relus_at(site) for site in self.sites())

    def relus_at(self, site: Site) -> int:
        """How many ReLUs the network has at ``site``, by arithmetic."""
        if site.name in self.reduction.removed or self.activation != "relu":
            return 0
        return site.channels // self.reduction.factor(site.name) * site.size[0] * site.size[1]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; :meth:`from_dict` gives it back."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"family": self.family, **values, "reduction": self.reduction.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The architecture of what :meth:`to_dict` gave.

        Raises:
            ValueError: if a field is missing, unknown or does not fit.
        """
        given = {name: value for name, value in values.items() if name != "family"}
        unknown = set(given) - {one.name for one in fields(cls)}
        if unknown:
            raise ValueError(f"unknown fields of a {cls.family}: {', '.join(sorted(unknown))}")
        try:
            for name in ("phi", "multipliers", "input", "strides", "layer_widths"):
                if name == "layer_widths" and name not in given:
                    continue
                given[name] = tuple(int(value) for value in given[name])
            given["reduction"] = Reduction.from_dict(given["reduction"])
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a {cls.family}: {error}") from error
