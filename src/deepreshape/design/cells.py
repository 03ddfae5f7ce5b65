"""Search of cells (Sphynx, Cho et al., 2021) by DARTS (Liu et al., ICLR 2019): of which linear operators one consists.

In the network that is searched every edge of a cell is a mixture of all operators, weighed by the softmax of numbers
alpha, which all normal cells share, and all reduction cells. Weights learn from one half of the training split, alpha
from the other, in turns. In the end a node keeps the two inputs whose best operator weighs most. No operator has a
ReLU, so that any cell has the same ReLUs: the search is for accuracy alone.

Users of DARTS report that random cells do about as well, and that searches collapse to identities: so ``skips`` bounds
those of a cell, and :func:`random_genotype` is the control to compare with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deepreshape.data import Dataset, Split
from deepreshape.data.augment import augment
from deepreshape.models import CellNet
from deepreshape.models.cells import CellNetwork, CellPlace, cell_operator
from deepreshape.models.genotype import NODES, OPERATORS, CellEdge, Genotype
from deepreshape.training import Progress, Recipe, TrainingRun, check_ranges

__all__ = ["CellSearch", "random_genotype", "search_cells"]

BETAS = 0.5, 0.999
"""Of Adam's averages for alpha, as published."""


@dataclass(frozen=True)
class CellSearch:
    """Settings of a search; defaults are the published ones, but for the epochs and the order.

    Attributes:
        channels, cells: of the network that is searched.
        order: 1 takes alpha's gradient at the weights as they are; 2 at the weights after a step (its second term by a
            finite difference), for about three times the work.
        alpha_lr, alpha_decay: of Adam on alpha.
        skips: how many identities a cell may keep.
        batch: images a step, of either half.
    """

    channels: int = 16
    cells: int = 8
    order: int = 1
    alpha_lr: float = 3e-4
    alpha_decay: float = 1e-3
    skips: int = 2
    batch: int = 64

    def __post_init__(self) -> None:
        check_ranges(
            self,
            channels=(2, 1024),
            cells=(3, 100),
            order=(1, 2),
            alpha_lr=(1e-9, 10),
            alpha_decay=(0, 1),
            skips=(0, 2 * NODES),
            batch=(1, 100_000),
        )

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
    height, width = data.shape[1:]
    if height % 4 or width % 4:
        raise ValueError(f"a search halves its images twice, and {height}x{width} cannot be; sides of 4 n work")
    if len(data.train) < 2:
        raise ValueError(f"a search needs two images at least to learn from, and {data.name} has {len(data.train)}")
    half = len(data.train) // 2
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    first, second = (Split(data.train.images[part], data.train.labels[part]) for part in (order[:half], order[half:]))
    recipe = replace(recipe, batch=config.batch, holdout=True, ema=0.0, mismatch=0.0, grow=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        searched = _Searched(config, data)
    steps = _AlphaSteps(searched, config, recipe, data, (first, second), seed)
    TrainingRun(steps, replace(data, train=first), recipe, seed=seed, hook=steps).complete(folder, progress)
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


class _Searched(nn.Module):
    """The network with mixtures for operators, and alpha, float32 (edges, operators + 1), of both kinds of cells."""

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


class _AlphaSteps(nn.Module):
    """The hook of a search: before each step of the weights, one of alpha by Adam, whose averages are buffers."""

    gate_lr = 0.0

    def __init__(
        self,
        searched: _Searched,
        config: CellSearch,
        recipe: Recipe,
        data: Dataset,
        halves: tuple[Split, Split],
        seed: int,
    ) -> None:
        super().__init__()
        self.searched, self.config, self.recipe = searched, config, recipe
        self.data, self.halves, self.seed = data, halves, seed
        for name in ("normal", "reduction"):
            for moment in ("mean", "square"):
                self.register_buffer(f"{name}_{moment}", torch.zeros_like(getattr(searched, name)))

    def forward(self, x: Tensor) -> Tensor:
        return self.searched(x)

    def gates(self) -> list[nn.Parameter]:
        """None: alpha is no parameter of the weights' optimizer."""
        return []

    def penalty(self) -> Tensor | None:
        """Nothing."""

    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        """Nothing."""

    def over(self) -> bool:
        """Never before its time."""
        return False

    def before(self, step: int, steps: int) -> None:
        """One step of alpha, on images of the half that the weights do not see."""
        alpha = tuple(
            tensor.detach().clone().requires_grad_() for tensor in (self.searched.normal, self.searched.reduction)
        )
        gradients = self._second_order(alpha, step) if self.config.order == 2 else self._gradients(alpha, step, 1)
        with torch.no_grad():
            for name, gradient in zip(("normal", "reduction"), gradients, strict=True):
                self._adam(name, gradient, step + 1)

    def _loss(self, alpha: tuple[Tensor, ...], step: int, half: int) -> Tensor:
        """Of a batch of a half, which follows from the step alone."""
        split, recipe = self.halves[half], self.recipe
        generator = torch.Generator().manual_seed((2 * step + half + 1_000_003 * self.seed + 77) % 2**32)
        drawn = torch.randint(0, len(split), (min(recipe.batch, len(split)),), generator=generator)
        images = augment(split.images[drawn], generator, crop=recipe.crop, flip=recipe.flip, cutout=recipe.cutout)
        device = self.searched.normal.device
        outputs = self.searched(self.data.normalize(images.to(device)), alpha)
        return cross_entropy(outputs.float(), split.labels[drawn].to(device))

    def _gradients(self, alpha: tuple[Tensor, ...], step: int, half: int) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self._loss(alpha, step, half), alpha)

    def _second_order(self, alpha: tuple[Tensor, ...], step: int) -> tuple[Tensor, ...]:
        """DARTS, equations 6 to 8: alpha's gradient after a step of the weights of size xi = ``recipe.lr``.

        The mixed second derivative is the difference of alpha's gradients at the weights moved by +-eps along the
        weights' gradient, divided by 2 eps.
        """
        weights, xi = list(self.searched.parameters()), self.recipe.lr
        before = [weight.detach().clone() for weight in weights]
        inner = torch.autograd.grad(self._loss(alpha, step, 0), weights, allow_unused=True)
        self._move(weights, before, inner, -xi)
        outer = torch.autograd.grad(self._loss(alpha, step, 1), [*alpha, *weights], allow_unused=True)
        direction = [torch.zeros_like(weight) if part is None else part for weight, part in
                     zip(weights, outer[2:], strict=True)]  # fmt: skip
        eps = 0.01 / float(torch.stack([part.square().sum() for part in direction]).sum().sqrt().clamp(min=1e-12))
        ends = []
        for sign in (1, -1):
            self._move(weights, before, direction, sign * eps)
            ends.append(self._gradients(alpha, step, 0))
        self._move(weights, before, direction, 0.0)
        return tuple(part - xi * (plus - minus) / (2 * eps) for part, plus, minus in zip(outer[:2], *ends, strict=True))

    @staticmethod
    @torch.no_grad()
    def _move(weights: list[nn.Parameter], start: list[Tensor], along: Sequence[Tensor | None], by: float) -> None:
        for weight, origin, part in zip(weights, start, along, strict=True):
            weight.copy_(origin if part is None else origin + by * part)

    def _adam(self, name: str, gradient: Tensor, count: int) -> None:
        value = getattr(self.searched, name)
        mean, square = getattr(self, f"{name}_mean"), getattr(self, f"{name}_square")
        gradient = gradient + self.config.alpha_decay * value
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        step = mean / (1 - BETAS[0] ** count) / ((square / (1 - BETAS[1] ** count)).sqrt() + 1e-8)
        value.sub_(self.config.alpha_lr * step)
