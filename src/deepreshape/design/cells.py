"""Search of cells (Sphynx, Cho et al., 2021) by DARTS (Liu et al., ICLR 2019): of which linear operators one consists.

In the network that is searched every edge of a cell is a mixture of all operators, weighed by the softmax of numbers
alpha, which all normal cells share, and all reduction cells. In the end a node keeps the two inputs whose best operator
weighs most. No operator has a ReLU, so that any cell has the same ReLUs: the search is for accuracy alone.

Users of DARTS report that random cells do about as well, and that searches collapse to identities: so ``skips`` bounds
those of a cell, and :func:`random_genotype` is the control to compare with.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deepreshape.data import Dataset, Split
from deepreshape.design.alpha_steps import AlphaConfig, AlphaSteps, Searched, train_with_alpha
from deepreshape.models import CellNet
from deepreshape.models.cells import CellNetwork, CellPlace, cell_operator
from deepreshape.models.genotype import NODES, OPERATORS, CellEdge, Genotype
from deepreshape.training import Progress, Recipe, check_ranges

__all__ = ["CellSearch", "random_genotype", "search_cells"]


@dataclass(frozen=True)
class CellSearch(AlphaConfig):
    """Settings of a search; defaults are the published ones, but for the epochs and the order.

    Attributes:
        channels, cells: of the network that is searched.
        skips: how many identities a cell may keep.
    """

    channels: int = 16
    cells: int = 8
    skips: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, channels=(2, 1024), cells=(3, 100), skips=(0, 2 * NODES))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Cells before the first reduction, from it to the second, and from there on: at a third and at two thirds."""
        first, second = self.cells // 3, 2 * self.cells // 3
        return first, second - first, self.cells - second


def search_cells(
    data: Dataset,
    config: CellSearch,
    recipe: Recipe,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Genotype:
    """Search a genotype on a data set's training split; validation and test are not looked at.

    Args:
        data: images whose sides can be halved twice.
        config: of the search.
        recipe: of the weights; it takes its batch from ``config`` and trains on half of the split.
        seed: same seed, same genotype.
        folder: for checkpoints; a run that was cut there continues to the same genotype.
        progress: called after every step.

    Raises:
        ValueError: if a setting does not fit, or the folder holds another run.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        searched = _Searched(config, data)

    def steps(halves: tuple[Split, Split], recipe: Recipe) -> AlphaSteps:
        return AlphaSteps(searched, config, recipe, data, halves, seed)

    train_with_alpha(steps, data, config, recipe, seed=seed, folder=folder, progress=progress)
    return searched.genotype(config.skips)


def random_genotype(seed: int) -> Genotype:
    """Cells at random: two distinct inputs a node, any operator on either."""
    draw = random.Random(seed)  # noqa: S311 - a control, no secret

    def cell() -> tuple[CellEdge, ...]:
        return tuple(
            CellEdge(draw.choice(sorted(OPERATORS)), source)
            for node in range(NODES)
            for source in sorted(draw.sample(range(2 + node), 2))
        )

    return Genotype(cell(), cell())


class _Mixture(nn.Module):
    """All operators of an edge at once, weighed by what ``weights`` holds for its kind of cell and its number."""

    def __init__(self, weights: dict[bool, Tensor], cell: CellPlace, number: int, source: int) -> None:
        super().__init__()
        self.weights, self.halves, self.number = weights, cell.halves, number
        stride = 2 if cell.halves and source < 2 else 1
        self.operators = nn.ModuleList(cell_operator(letter, cell.width, stride) for letter in OPERATORS)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights[self.halves][self.number]
        # the last weight is that of nothing
        total = weights[0] * self.operators[0](x)
        for number in range(1, len(self.operators)):
            total = total + weights[number] * self.operators[number](x)
        return total


class _Searched(Searched):
    """The network with mixtures for operators, and alpha, float32 (edges, operators + 1), of both kinds of cells."""

    alphas = ("normal", "reduction")

    normal: Tensor
    reduction: Tensor

    def __init__(self, config: CellSearch, data: Dataset) -> None:
        super().__init__()
        shape = CellNet(config.shape, config.channels, (2, 2), data.shape, len(data.class_names))
        self.weights: dict[bool, Tensor] = {}
        self.network = CellNetwork(shape, self._nodes)
        edges = sum(2 + node for node in range(NODES))
        for name in ("normal", "reduction"):
            self.register_buffer(name, 1e-3 * torch.randn(edges, len(OPERATORS) + 1))

    def _nodes(self, cell: CellPlace) -> list[list[tuple[int, nn.Module]]]:
        nodes, number = [], 0
        for node in range(NODES):
            sources = range(2 + node)
            nodes.append([(source, _Mixture(self.weights, cell, number + source, source)) for source in sources])
            number += len(sources)
        return nodes

    def forward(self, x: Tensor, alpha: tuple[Tensor, Tensor] | None = None) -> Tensor:
        normal, reduction = alpha or (self.normal, self.reduction)
        self.weights |= {False: normal.softmax(1), True: reduction.softmax(1)}
        return self.network(x)

    def genotype(self, skips: int) -> Genotype:
        """What the alphas say now."""
        return Genotype(*(_strongest(alpha.softmax(1), skips) for alpha in (self.normal, self.reduction)))


def _strongest(weights: Tensor, skips: int) -> tuple[CellEdge, ...]:
    """Of each node the two inputs whose best operator weighs most, with at most so many identities in all."""
    letters = list(OPERATORS)
    chosen: list[tuple[int, int]] = []
    number = 0
    for node in range(NODES):
        best = [(float(weights[number + source, :-1].max()), -source) for source in range(2 + node)]
        chosen += sorted((-place, number - place) for _, place in sorted(best)[-2:])
        number += 2 + node
    ranked = {edge: weights[edge, :-1].argsort(descending=True, stable=True).tolist() for _, edge in chosen}
    identity = letters.index("s")
    kept = sorted(
        (edge for edge, order in ranked.items() if order[0] == identity),
        key=lambda edge: -float(weights[edge, identity]),
    )
    for edge in kept[skips:]:
        ranked[edge].remove(identity)
    return tuple(CellEdge(letters[ranked[edge][0]], source) for source, edge in chosen)
