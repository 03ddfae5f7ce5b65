"""What a network is before it has weights: a small frozen value, one type a family, from which all else follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn

from deepreshape.cost.layers import Layer
from deepreshape.nn import ReuseForm

__all__ = ["Architecture", "Reduction", "Site"]


@dataclass(frozen=True)
class Site:
    """A place where the unreduced network has a ReLU.

    Attributes:
        name: path of its module in the built network, such as ``stage2.0.act1``.
        stage: 1 and up; 0 is the stem.
        position: of the ReLU in its block, 1 and up; the last one stands after the residual add.
        last: whether it is the last of its block.
        channels, size: shape of its map, (height, width) last; a vector's size is (1, 1).
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
class Reduction:
    """Which sites of a network have fewer ReLUs by its architecture; masks, which are tensors, lie with the weights.

    Attributes:
        removed: names of the sites that have no ReLU any more.
        reused: (site name, factor) of the sites whose ReLUs are reused.
        form: how reused sites are wired.
    """

    removed: frozenset[str] = frozenset()
    reused: tuple[tuple[str, int], ...] = ()
    form: ReuseForm = field(default_factory=ReuseForm)

    def factor(self, site: str | None) -> int:
        """By how much the ReLUs of a site are divided; 1 where they are not reused."""
        return dict(self.reused).get(site or "", 1)

    def without(self, sites: set[str]) -> Reduction:
        """The same with no ReLU at these sites either."""
        reused = tuple((name, factor) for name, factor in self.reused if name not in sites)
        return Reduction(self.removed | sites, reused, self.form)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; :meth:`from_dict` gives it back."""
        form = {name: getattr(self.form, name) for name in self.form.__dataclass_fields__}
        return {"removed": sorted(self.removed), "reused": [list(pair) for pair in self.reused], "form": form}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reduction:
        """The reduction of what :meth:`to_dict` gave.

        Raises:
            KeyError, TypeError: if a field is missing, unknown or does not fit.
        """
        reused = tuple((str(site), int(factor)) for site, factor in values["reused"])
        return cls(frozenset(values["removed"]), reused, ReuseForm(**values["form"]))


@runtime_checkable
class Architecture(Protocol):
    """What every family's type offers.

    Attributes:
        family: the word for the type in a manifest.
        input: (channels, height, width) of one input.
        classes: width of the output.
    """

    family: ClassVar[str]

    @property
    def input(self) -> tuple[int, int, int]: ...

    @property
    def classes(self) -> int: ...

    @property
    def name(self) -> str:
        """What the network is called, removal left aside."""
        ...

    @property
    def relus(self) -> int:
        """How many ReLUs the network has; a trace of the built one counts the same."""
        ...

    def sites(self) -> tuple[Site, ...]:
        """Every ReLU site of the unreduced network, front to back."""
        ...

    def relus_at(self, site: Site) -> int:
        """How many ReLUs there are at a site."""
        ...

    def layers(self) -> tuple[Layer, ...]:
        """Every linear and ReLU layer in the order in which they run; a trace gives the same."""
        ...

    def build(self) -> nn.Module:
        """A module with fresh weights, which carries the architecture as ``.architecture``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, ``family`` among them."""
        ...
