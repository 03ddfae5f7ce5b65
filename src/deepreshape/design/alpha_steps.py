"""Steps of architecture weights (alpha) in turns with those of a network's weights: DARTS (Liu et al., ICLR 2019).

Weights learn from one half of the training split, alpha from the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deepreshape.data import Dataset, Split
from deepreshape.data.augment import augment
from deepreshape.models.saved import weights_digest
from deepreshape.training import Hook, Progress, Recipe, TrainingRun, check_ranges
from deepreshape.training.runs import claim_folder

__all__ = ["AlphaConfig", "AlphaSteps", "Searched", "train_with_alpha"]

BETAS = 0.5, 0.999
"""Of Adam's averages for alpha, as published for Sphynx."""


@dataclass(frozen=True)
class AlphaConfig:
    """Settings of alpha's steps.

    Attributes:
        order: 1 takes alpha's gradient at the weights as they are; 2 at the weights after a step (its second term by a
            finite difference), for about three times the work.
        alpha_lr, alpha_decay: of Adam on alpha.
        batch: images a step, of either half.
    """

    order: int = 1
    alpha_lr: float = 3e-4
    alpha_decay: float = 1e-3
    batch: int = 64

    def __post_init__(self) -> None:
        check_ranges(self, order=(1, 2), alpha_lr=(1e-9, 10), alpha_decay=(0, 1), batch=(1, 100_000))


class Searched(nn.Module):
    """A network with alpha in buffers; ``forward`` also takes values to stand for them."""

    alphas: ClassVar[tuple[str, ...]]

    def begin(self, step: int, steps: int, seed: int) -> None:
        """Called before each step."""


def train_with_alpha(
    steps: Callable[[tuple[Split, Split], Recipe], AlphaSteps],
    data: Dataset,
    config: AlphaConfig,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path | None,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Train on a data set's training split, cut in halves; validation and test are not looked at.

    Args:
        steps: gives the hook for the halves and the recipe as it is used.
        data: that the network takes.
        config: of alpha's steps.
        recipe: of the weights; it takes its batch from ``config``.
        seed: of the halves and the training.
        folder: for checkpoints; a run that was cut there continues to the same end.
        progress: called after every step.

    Raises:
        ValueError: if there are too few images, they have maps for labels, or the folder holds another run.
    """
    if data.maps:
        raise ValueError(f"{data.name} has a class for each pixel, and networks of cells give one for each image")
    if len(data.train) < 2:
        raise ValueError(f"a search needs two images at least to learn from, and {data.name} has {len(data.train)}")
    half = len(data.train) // 2
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    first, second = (Split(data.train.images[part], data.train.labels[part]) for part in (order[:half], order[half:]))
    recipe = replace(recipe, batch=config.batch, holdout=True, ema=0.0, mismatch=0.0, grow=0.0)
    hook = steps((first, second), recipe)
    run = TrainingRun(hook, replace(data, train=first), recipe, seed=seed, hook=hook)
    if folder:
        settings = {"search": asdict(config), "recipe": asdict(recipe), "seed": seed, "data": data.name}
        claim_folder(folder, settings | {"network": weights_digest(hook)})
    run.complete(folder, progress)


class AlphaSteps(nn.Module, Hook):
    """The hook of a search: before each step of the weights, one of alpha by Adam, whose averages are buffers.

    Args:
        searched: the network; its buffers of the names in ``alphas`` are what is searched.
        config: of alpha's steps.
        recipe: of the weights.
        data: that both halves are of.
        halves: what the weights learn from, and what alpha does.
        seed: of alpha's batches.
    """

    def __init__(
        self,
        searched: Searched,
        config: AlphaConfig,
        recipe: Recipe,
        data: Dataset,
        halves: tuple[Split, Split],
        seed: int,
    ) -> None:
        super().__init__()
        self.searched, self.config, self.recipe = searched, config, recipe
        self.data, self.halves, self.seed = data, halves, seed
        for name in searched.alphas:
            for moment in ("mean", "square"):
                self.register_buffer(f"{name}_{moment}", torch.zeros_like(getattr(searched, name)))

    def forward(self, x: Tensor) -> Tensor:
        return self.searched(x)

    def before(self, step: int, steps: int) -> None:
        """One step of alpha, on images of the half that the weights do not see."""
        self.searched.begin(step, steps, self.seed)
        names = self.searched.alphas
        alpha = tuple(getattr(self.searched, name).detach().clone().requires_grad_() for name in names)
        gradients = self._second_order(alpha, step) if self.config.order == 2 else self._gradients(alpha, step, 1)
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                self._adam(name, gradient, step + 1)

    def _loss(self, alpha: tuple[Tensor, ...], step: int, half: int) -> Tensor:
        """Of a batch of a half, which follows from the step alone."""
        split, recipe = self.halves[half], self.recipe
        generator = torch.Generator().manual_seed((2 * step + half + 1_000_003 * self.seed + 77) % 2**32)
        drawn = torch.randint(0, len(split), (min(recipe.batch, len(split)),), generator=generator)
        images = augment(split.images[drawn], generator, crop=recipe.crop, flip=recipe.flip, cutout=recipe.cutout)
        device = getattr(self.searched, self.searched.alphas[0]).device
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
                     zip(weights, outer[len(alpha):], strict=True)]  # fmt: skip
        eps = 0.01 / float(torch.stack([part.square().sum() for part in direction]).sum().sqrt().clamp(min=1e-12))
        ends = []
        for sign in (1, -1):
            self._move(weights, before, direction, sign * eps)
            ends.append(self._gradients(alpha, step, 0))
        self._move(weights, before, direction, 0.0)
        return tuple(
            part - xi * (plus - minus) / (2 * eps) for part, plus, minus in zip(outer[: len(alpha)], *ends, strict=True)
        )

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
