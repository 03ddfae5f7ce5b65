"""Networks with exits: an answer after some of the stages, beside that at the end (Kouris et al., ECCV 2022, MESS).

    network = attach_exits(trained, at=(1, 2))   # logits after stages 1 and 2, and the network's own
    plain = network.exit(1)                      # a network of stage 1 and a head; its weights are those of `network`

An exit after stage k is the network of the first k stages with a head of its own: a network like any other, which is
counted, priced, saved, lowered and served as others are. What stands before its head it shares with the whole.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from deepreshape.cost.layers import Layer
from deepreshape.models.architecture import Architecture, Reduction, Site
from deepreshape.models.staged import Staged

__all__ = ["HEADS", "MultiExit", "MultiExitNetwork", "attach_exits", "check_points", "cut_after", "read_exits_name"]

HEADS = ("light", "conv")
"""Kinds of heads, of which every family takes the first: ``light`` is what it ends with, such as an average pool and a
linear layer; ``conv`` the same behind a 3x3 convolution with a batch norm and a ReLU, of as many channels."""

_NAME = re.compile(r"(?P<whole>.+)-exits(?P<at>\d+(?:\.\d+)*)(?:-(?P<heads>[a-z]+))?")


def cut_after(whole: Staged, stage: int, head: str = "light") -> Staged:
    """The network of the first stages of another, with a head of its own.

    Args:
        whole: of several stages.
        stage: the last that is left, 1 and up.
        head: kind of the head, one of :data:`HEADS`.

    Raises:
        ValueError: if there is no such stage before the last, or the network is not one stage after the other.
    """
    stages = len(whole.phi)
    if not 1 <= stage < stages:
        raise ValueError(f"an exit after stage {stage} does not fit a network of {stages} stages; 1 to {stages - 1} do")
    shape: dict[str, Any] = {
        "phi": whole.phi[:stage],
        "multipliers": whole.multipliers[: stage - 1],
        "strides": whole.strides[:stage],
        "head": head,
    }
    if getattr(whole, "layer_widths", ()):
        depth = (len(whole.layer_widths) - 1) // sum(whole.phi)  # pyright: ignore[reportAttributeAccessIssue]
        shape["layer_widths"] = whole.layer_widths[: 1 + depth * sum(shape["phi"])]  # pyright: ignore[reportAttributeAccessIssue]
    cut = replace(whole, **shape, reduction=Reduction())
    inside = {site.name for site in cut.sites() if not site.name.startswith("head.")}
    reduction = Reduction(
        whole.reduction.removed & inside,
        tuple(pair for pair in whole.reduction.reused if pair[0] in inside),
        whole.reduction.form,
    )
    return replace(cut, reduction=reduction)


def check_points(whole: Staged, at: Sequence[int]) -> tuple[int, ...]:
    """The stages after which there are to be exits, if they are some of the network's.

    Raises:
        ValueError: if there is none, they do not rise, one is none of the stages before the last, or the network is not
            one stage after the other.
    """
    if not whole.successive:
        raise _no_place(whole.family)
    stages, listed = len(whole.phi), ",".join(map(str, at))
    if stages < 2:
        raise ValueError(f"a network of {stages} stage has no place for an exit before its end")
    if not at or list(at) != sorted(set(at)):
        raise ValueError(f"exits at {listed or 'no stage'}: give stages that rise, from 1 to {stages - 1}")
    if at[0] < 1 or at[-1] >= stages:
        wrong = at[0] if at[0] < 1 else at[-1]
        raise ValueError(
            f"exits at {listed}: {wrong} is no stage before the last of {stages}; give some of 1 to {stages - 1}"
        )
    return tuple(at)


@final
@dataclass(frozen=True)
class MultiExit:
    """The architecture of a network with exits.

    Attributes:
        whole: the network without them.
        at: stages after which there is one, rising.
        heads: their kind, one of :data:`HEADS`.
    """

    family: ClassVar[str] = "exits"

    whole: Staged
    at: tuple[int, ...]
    heads: str = "light"

    def __post_init__(self) -> None:
        check_points(self.whole, self.at)
        if self.heads not in HEADS:
            raise ValueError(f"unknown kind of heads {self.heads!r}; known are {', '.join(HEADS)}")
        self.exit(self.at[0])  # of a family that takes such heads

    @property
    def input(self) -> tuple[int, int, int]:
        """(channels, height, width) of one input."""
        return self.whole.input

    @property
    def classes(self) -> int:
        """Width of every output."""
        return self.whole.classes

    @property
    def maps(self) -> bool:
        """Whether it gives maps of logits."""
        return self.whole.maps

    @property
    def phi(self) -> tuple[int, ...]:
        """Blocks in each stage of the whole."""
        return self.whole.phi

    @property
    def points(self) -> tuple[int, ...]:
        """Stages after which there is an answer: those of the exits, then the last, whose answer is the network's."""
        return (*self.at, len(self.whole.phi))

    @property
    def name(self) -> str:
        """The whole's name with its exits; :func:`read_exits_name` reads it.

        Raises:
            ValueError: if the whole has none.
        """
        kind = "" if self.heads == "light" else f"-{self.heads}"
        return f"{self.whole.name}-exits{'.'.join(map(str, self.at))}{kind}"

    def exit(self, point: int) -> Staged:
        """The plain network that ends after stage ``point``; the whole after the last.

        Raises:
            ValueError: if there is no answer after that stage.
        """
        if point not in self.points:
            listed = ", ".join(map(str, self.at))
            raise ValueError(f"there is no exit {point}: exits are at {listed}, and {self.points[-1]} is the whole")
        return self.whole if point == self.points[-1] else cut_after(self.whole, point, self.heads)

    @property
    def relus(self) -> int:
        """How many ReLUs an inference has that gives all answers."""
        return sum(self.relus_at(site) for site in self.sites())

    def sites(self) -> tuple[Site, ...]:
        """Every ReLU site of the unreduced network, those of the exits' heads after their stages."""
        return self._renamed(lambda plain: plain.sites())

    def relus_at(self, site: Site) -> int:
        """How many ReLUs there are at a site."""
        return self.whole.relus_at(site)

    def layers(self) -> tuple[Layer, ...]:
        """Every linear and ReLU layer in the order in which they run."""
        return self._renamed(lambda plain: plain.layers())

    def _renamed(self, parts_of: Callable[[Staged], Sequence[Any]]) -> tuple[Any, ...]:
        """The parts of every exit's plain network that no earlier exit has, by their paths in this network."""
        known: set[str] = set()
        parts: list[Any] = []
        for point in self.points:
            plain = parts_of(self.exit(point))
            for part in plain:
                first, _, rest = part.name.partition(".")
                inside = point != self.points[-1] and first == "head"
                if part.name not in known:
                    parts.append(replace(part, name=f"exits.{point}.{rest}") if inside else part)
            known |= {part.name for part in plain if not part.name.startswith("head.")}
        return tuple(parts)

    def build(self) -> nn.Module:
        """A module with fresh weights, which carries the architecture as ``.architecture``."""
        return MultiExitNetwork(self, self.whole.build())

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, ``family`` among them."""
        return {"family": self.family, "whole": self.whole.to_dict(), "at": list(self.at), "heads": self.heads}

    @classmethod
    def of(cls, values: Mapping[str, Any], whole: Architecture) -> MultiExit:
        """The architecture of what :meth:`to_dict` gave, whose whole has been read.

        Raises:
            ValueError: if a field is missing, unknown or does not fit.
        """
        if set(values) != {"family", "whole", "at", "heads"} or not isinstance(whole, Staged):
            raise ValueError(f"not a network with exits: {', '.join(sorted(values))}")
        return cls(whole, tuple(int(stage) for stage in values["at"]), str(values["heads"]))


class MultiExitNetwork(nn.Module):
    """Maps a batch (N, channels, height, width) to the logits of all exits and of the end, a tuple.

    Logits are (N, classes), or maps of them (N, classes, h, w), whose sizes differ by exit.

    It computes all of them: what an exit saves is seen in the plain networks that :meth:`exit` gives.

    Args:
        architecture: of it.
        whole: the network without exits, whose modules become this one's, under the same paths.
    """

    def __init__(self, architecture: MultiExit, whole: nn.Module) -> None:
        super().__init__()
        self.architecture = architecture
        self.stages: dict[str, int] = {}
        """By name of a child before the head, its stage; 0 is the stem."""
        self.order: list[str] = []
        """Paths of its parts in the order in which they run."""
        plain = {point: architecture.exit(point).build() for point in architecture.at}
        self.exits = nn.ModuleDict()
        waiting = list(architecture.at)
        for name, child in whole.named_children():
            stage = int(name.removeprefix("stage")) if name.startswith("stage") else 0
            while waiting and stage > waiting[0]:
                point = waiting.pop(0)
                self.exits[str(point)] = plain[point].get_submodule("head")
                self.order.append(f"exits.{point}")
            self.add_module(name, child)
            self.order.append(name)
            if name != "head":
                self.stages[name] = stage

    def maps(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """For each head by its path, front to back, the map (N, C, H, W) that it takes, as soon as it is there."""
        for path in self.order:
            if path in self.stages:
                x = self.get_submodule(path)(x)
            else:
                yield path, x

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits by exit, front to back, the network's own last."""
        return tuple(self.get_submodule(path)(map) for path, map in self.maps(x))

    def exit(self, point: int) -> nn.Module:
        """The plain network up to an exit, or without exits; its weights are this network's, not copies.

        Raises:
            ValueError: if there is no answer after that stage.
        """
        architecture = self.architecture.exit(point)
        with torch.device("meta"):
            plain = architecture.build()
        for name, stage in self.stages.items():
            if stage <= point:
                plain.set_submodule(name, self.get_submodule(name))
        last = point == self.architecture.points[-1]
        plain.set_submodule("head", self.get_submodule("head") if last else self.exits[str(point)])
        return plain.train(self.training)


def attach_exits(network: nn.Module, at: Sequence[int], heads: str = "light", *, seed: int = 0) -> MultiExitNetwork:
    """A network with exits after some of its stages, whose heads have fresh weights.

    Args:
        network: of this package, of stages; it is left as it was.
        at: the stages, rising; the last, which has the network's own head, is none of them.
        heads: kind of the heads, one of :data:`HEADS`.
        seed: of the heads' weights.

    Raises:
        ValueError: if the network has no stages, or the exits do not fit it.
    """
    whole = getattr(network, "architecture", None)
    if isinstance(whole, MultiExit):
        raise ValueError(f"the network has exits already, at {','.join(map(str, whole.at))}; give the one without")
    if not isinstance(whole, Staged) or not isinstance(network, nn.Sequential):
        raise _no_place(getattr(whole, "family", type(network).__name__))
    architecture = MultiExit(whole, tuple(at), heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attached = MultiExitNetwork(architecture, copy.deepcopy(network))
    device = next(network.parameters()).device
    return attached.to(device).train(network.training)


def _no_place(kind: str) -> ValueError:
    return ValueError(f"a network of kind {kind} is not one stage after the other, so it has no place for an exit")


def read_exits_name(name: str) -> tuple[str, tuple[int, ...], str] | None:
    """The whole's name, the exits and their heads of a name such as ``resnet18-m16-exits1.2-conv``; None of any other.

    Without a word for the heads they are light.
    """
    if not (matched := _NAME.fullmatch(name)):
        return None
    return matched["whole"], tuple(int(stage) for stage in matched["at"].split(".")), matched["heads"] or "light"
