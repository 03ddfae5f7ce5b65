"""Networks of cells with one ReLU layer each (Sphynx, Cho et al., 2021): ReLU-balanced by construction.

A cell maps the outputs of the two cells before it to the sum of linear operators, joins its four nodes, mixes them by a
1x1 convolution, and ends in its only ReLU. Channels grow fourfold where maps are halved, so that every cell has C h w
ReLUs: as many as C channels at the input's size. The linear inside is what this costs: many convolutions in a row, each
of which private inference has to truncate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from deepreshape.cost.layers import Layer, LinearLayer
from deepreshape.models.architecture import Site
from deepreshape.models.genotype import NODES, OPERATORS, SPHYNX, CellEdge, Genotype
from deepreshape.models.parts import LayerList, Map, activation, shrink
from deepreshape.models.staged import Staged

__all__ = ["CellNet", "CellNetwork", "CellPlace", "Node", "cell_operator"]

STEM = 3
"""Times the channels of a cell: what the stem gives."""


@dataclass(frozen=True)
class CellPlace:
    """Where a cell stands: its number, stage, width, and whether it and the one before halve the map."""

    number: int
    stage: int
    width: int
    halves: bool
    after_halving: bool


@final
@dataclass(frozen=True)
class CellNet(Staged):
    """``phi`` are the cells before the first reduction, from it to the second, and from there on; ``base`` is C.

    Attributes:
        stem: ``"3x3"``, or what ``-imagenet`` in a name stands for, here three strided 3x3 convolutions of which two
            end in ReLUs.
        genotype: of its cells, as :class:`~.genotype.Genotype` writes it.
    """

    family: ClassVar[str] = "cells"
    fewest: ClassVar[int] = 0
    successive: ClassVar[bool] = False
    scheme: ClassVar[str] = "cells"

    stem: Literal["3x3", "7x7"] = "3x3"
    genotype: str = SPHYNX

    @classmethod
    def presets(cls) -> Mapping[str, CellNet]:
        return {}

    def cells(self) -> Iterator[CellPlace]:
        """All cells, front to back.

        Raises:
            ValueError: if a reduction meets a map with an odd side.
        """
        if len(self.phi) != 3 or self.strides != (1, 2, 2):
            raise ValueError(f"a network of cells has two reductions: {self}")
        number, halved, size = 0, self.stem == "7x7", self.stem_size
        for stage, (count, width) in enumerate(zip(self.phi, self.widths, strict=True), start=1):
            for first in (place == 0 for place in range(count)):
                halves = first and stage > 1
                if halves:
                    if size[0] % 2 or size[1] % 2:
                        raise ValueError(
                            f"cell {number} halves a map of {size[0]}x{size[1]}, which has an odd side; "
                            "another input size or an earlier reduction works"
                        )
                    size = size[0] // 2, size[1] // 2
                yield CellPlace(number, stage, width, halves, halved)
                number, halved = number + 1, halves
            if not count and stage > 1:
                raise ValueError(f"reductions have to rise, and cell {number} would be both")

    @property
    def stem_size(self) -> tuple[int, int]:
        """Of the map that the first cell takes."""
        return shrink(self.input[1:], self.resolution * (8 if self.stem == "7x7" else 1))

    def sites(self) -> tuple[Site, ...]:
        sites: list[Site] = []
        if self.stem == "7x7":
            for place, (width, stride) in enumerate(((self.base // 2, 2), (self.base, 4)), start=1):
                size = shrink(self.input[1:], stride * self.resolution)
                sites.append(Site(f"stem.act{place}", 0, place, place == 2, width, size, reusable=False))
        size = self.stem_size
        for cell in self.cells():
            size = (size[0] // 2, size[1] // 2) if cell.halves else size
            sites.append(Site(f"cell{cell.number}.act", cell.stage, 1, True, cell.width, size, reusable=False))
        return tuple(sites)

    def layers(self) -> tuple[Layer, ...]:
        listed = _Layers(self)
        before, last = listed.stem(self)
        edges = Genotype.parse(self.genotype)
        for cell in self.cells():
            before, last = last, listed.cell(cell, edges.reduction if cell.halves else edges.normal, before, last)
        listed.linear("head.2", last[0], self.classes)
        return tuple(listed.layers)

    def build(self) -> nn.Module:
        return CellNetwork(self)


class _Layers(LayerList):
    """Arithmetic of what the modules below do, in the order in which they run."""

    def stem(self, made_for: CellNet) -> tuple[Map, Map]:
        """The stem; gives the two maps that the first cell takes."""
        at: Map = made_for.input[0], made_for.input[1:]
        if made_for.stem == "3x3":
            at = self.conv("stem.conv.0", at, STEM * made_for.base, 3, made_for.resolution)
            return at, at
        at = self.conv("stem.conv1.0", at, made_for.base // 2, 3, 2 * made_for.resolution)
        self.activation("stem.act1", at)
        before = self.conv("stem.conv2.0", at, made_for.base, 3, 2)
        self.activation("stem.act2", before)
        return before, self.conv("stem.conv3.0", before, made_for.base, 3, 2)

    def cell(self, cell: CellPlace, edges: tuple[CellEdge, ...], before: Map, last: Map) -> Map:
        """One cell; gives the map after it."""
        path, width = f"cell{cell.number}", cell.width
        if cell.after_halving:
            first = self.halving(f"{path}.before", before, width)
        else:
            first = self.conv(f"{path}.before.0", before, width, 1, 1)
        values = [first, self.conv(f"{path}.last.0", last, width, 1, 1)]
        for number, edge in enumerate(edges):
            if number % 2 == 0:
                values.append(values[edge.source])
            stride = 2 if cell.halves and edge.source < 2 else 1
            values[-1] = self.operator(f"{path}.edges.{number}", edge.operator, values[edge.source], width, stride)
        mixed = self.conv(f"{path}.mix.0", (NODES * width, values[-1][1]), width, 1, 1)
        self.activation(f"{path}.act", mixed)
        return mixed

    def operator(self, path: str, letter: str, at: Map, width: int, stride: int) -> Map:
        """An operator; gives the map after it."""
        name = OPERATORS[letter]
        if name == "skip":
            return self.halving(path, at, width) if stride == 2 else at
        if name == "avg3":
            return width, shrink(at[1], stride)
        kernel = int(name[-1])
        if name.startswith("van"):
            return self.conv(f"{path}.3", self.conv(f"{path}.0", at, width, kernel, stride), width, kernel, 1)
        after, each = shrink(at[1], stride), (stride, stride)
        around, spread = (kernel - 1, kernel - 1), (2, 2)
        macs = at[0] * width * kernel**2 * after[0] * after[1]
        self.layers.append(
            LinearLayer(
                f"{path}.0", at[0], width, (kernel, kernel), 1, at[1], after, macs, each, around, spread
            )
        )  # fmt: skip
        return width, after

    def halving(self, path: str, at: Map, width: int) -> Map:
        """Two 1x1 convolutions of stride 2, of the even pixels and of the odd ones."""
        channels, (height, wide) = at
        after = height // 2, wide // 2
        parts = ("even", width // 2, at[1]), ("odd", width - width // 2, (height - 1, wide - 1))
        for part, outs, size in parts:
            macs = channels * outs * after[0] * after[1]
            self.layers.append(LinearLayer(f"{path}.{part}", channels, outs, (1, 1), 1, size, after, macs, (2, 2)))
        return width, after


class _Halving(nn.Module):
    """Half of the channels from the pixels of even rows and columns, half from those of odd ones."""

    def __init__(self, ins: int, width: int, *, affine: bool) -> None:
        super().__init__()
        self.even = nn.Conv2d(ins, width // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(ins, width - width // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(width, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


def _conv(ins: int, width: int, kernel: int, stride: int = 1, dilation: int = 1, *, affine: bool = True) -> list:
    padding = dilation * (kernel - 1) // 2
    conv = nn.Conv2d(ins, width, kernel, stride, padding, dilation, bias=False)
    return [conv, nn.BatchNorm2d(width, affine=affine)]


def cell_operator(letter: str, width: int, stride: int) -> nn.Module:
    """An operator of :data:`~.genotype.OPERATORS` on maps of ``width`` channels."""
    name = OPERATORS[letter]
    if name == "skip":
        return _Halving(width, width, affine=True) if stride == 2 else nn.Identity()
    if name == "avg3":
        return nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), nn.BatchNorm2d(width))
    kernel = int(name[-1])
    if name.startswith("van"):
        first, second = _conv(width, width, kernel, stride), _conv(width, width, kernel)
        return nn.Sequential(*first, nn.Identity(), *second)
    return nn.Sequential(*_conv(width, width, kernel, stride, 2))


Node = Sequence[tuple[int, nn.Module]]
"""The operators that are summed to a node, each with the number of its input."""


class _CellModule(nn.Module):
    """Maps the outputs of the two cells before to its own, (N, width, h, w)."""

    def __init__(self, architecture: CellNet, cell: CellPlace, nodes: Sequence[Node], before: int, last: int) -> None:
        super().__init__()
        width = cell.width
        self.sources = [[source for source, _ in node] for node in nodes]
        if cell.after_halving:
            self.before = _Halving(before, width, affine=False)
        else:
            self.before = nn.Sequential(*_conv(before, width, 1, affine=False))
        self.last = nn.Sequential(*_conv(last, width, 1, affine=False))
        self.edges = nn.ModuleList(module for node in nodes for _, module in node)
        self.mix = nn.Sequential(*_conv(NODES * width, width, 1, affine=False))
        self.act = activation(architecture, f"cell{cell.number}.act", width)

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        values, edges = [self.before(before), self.last(last)], iter(self.edges)
        for sources in self.sources:
            first, *others = [next(edges)(values[source]) for source in sources]
            values.append(sum(others, first))
        return self.act(self.mix(torch.cat(values[2:], dim=1)))


class _SmallStem(nn.Module):
    """One convolution; gives its map for both of the maps that the first cell takes."""

    def __init__(self, architecture: CellNet) -> None:
        super().__init__()
        width = STEM * architecture.base
        self.conv = nn.Sequential(*_conv(architecture.input[0], width, 3, architecture.resolution))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.conv(x)
        return out, out


class _LargeStem(nn.Module):
    """Three convolutions of stride 2; gives the maps after the second and after the third."""

    def __init__(self, architecture: CellNet) -> None:
        super().__init__()
        base = architecture.base
        self.conv1 = nn.Sequential(*_conv(architecture.input[0], base // 2, 3, 2 * architecture.resolution))
        self.act1 = activation(architecture, "stem.act1", base // 2)
        self.conv2 = nn.Sequential(*_conv(base // 2, base, 3, 2))
        self.act2 = activation(architecture, "stem.act2", base)
        self.conv3 = nn.Sequential(*_conv(base, base, 3, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self.act2(self.conv2(self.act1(self.conv1(x))))
        return before, self.conv3(before)


class CellNetwork(nn.Module):
    """Maps a batch (N, channels, height, width) to logits (N, classes).

    Args:
        architecture: of it.
        nodes: of each cell; those of the architecture's genotype without.
    """

    def __init__(self, architecture: CellNet, nodes: Callable[[CellPlace], Sequence[Node]] | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        base = architecture.base
        small = architecture.stem == "3x3"
        self.stem = (_SmallStem if small else _LargeStem)(architecture)
        before = last = STEM * base if small else base
        nodes = nodes or partial(_nodes, Genotype.parse(architecture.genotype))
        self.count = 0
        for cell in architecture.cells():
            self.add_module(f"cell{cell.number}", _CellModule(architecture, cell, nodes(cell), before, last))
            before, last = last, cell.width
            self.count += 1
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, architecture.classes))

    def forward(self, x: Tensor) -> Tensor:
        before, last = self.stem(x)
        for number in range(self.count):
            before, last = last, self.get_submodule(f"cell{number}")(before, last)
        return self.head(last)


def _nodes(genotype: Genotype, cell: CellPlace) -> Sequence[Node]:
    edges = genotype.reduction if cell.halves else genotype.normal
    operators = [
        (edge.source, cell_operator(edge.operator, cell.width, 2 if cell.halves and edge.source < 2 else 1))
        for edge in edges
    ]
    return [operators[first : first + 2] for first in range(0, len(operators), 2)]
