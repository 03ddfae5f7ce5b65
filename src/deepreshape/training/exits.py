"""How networks with exits are trained (Kouris et al., ECCV 2022, MESS): with their trunk, then the heads alone.

:class:`ExitAware` trains trunk, end and exits as one. :class:`HeadTraining` trains heads on a trunk that stays as it
is, under :class:`HeadLosses`, which may let the network's own end teach them where it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, cast, final, get_args

import torch
from torch import Tensor, nn

from deepreshape.data import Dataset
from deepreshape.data.augment import VOID, Moves
from deepreshape.training.distill import distillation_loss
from deepreshape.training.loop import Progress, Trained, TrainingRun
from deepreshape.training.objective import Objective, objective_of, upsampled
from deepreshape.training.recipe import Recipe, recipe_of

__all__ = [
    "DISTILLATIONS",
    "Distillation",
    "ExitAware",
    "ExitTraining",
    "HeadLosses",
    "HeadTraining",
    "heads_recipe",
    "train_exits",
]

Distillation = Literal["pfd", "kd", "none"]
"""What teaches heads beside the labels: the network's end where it is right (positive filtering), everywhere, or no."""
DISTILLATIONS: tuple[str, ...] = get_args(Distillation)


class Exits(Protocol):
    """What heads are trained on: a network with exits, of which ``models.exits.MultiExitNetwork`` is the one here."""

    @property
    def exits(self) -> nn.ModuleDict:
        """The heads, by stage; the end's is the submodule ``head``."""
        ...

    def maps(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """For each head by its path, front to back, the map that it takes."""
        ...

    def get_submodule(self, target: str) -> nn.Module:
        """A part by its path."""
        ...


@final
class ExitAware:
    """Objective of exit-aware training: the sum of the losses of all exits and of the end, at every step.

    The metric is the end's. To train exit i at every i-th step only, as MESS is said to do, was no better
    (docs/exits.md: one seed of small networks).

    Args:
        of: the objective of every single exit.
    """

    def __init__(self, of: Objective) -> None:
        self.of = of

    @property
    def measures(self) -> str:
        """The word for the metric."""
        return self.of.measures

    def target(self, labels: Tensor, moves: Moves) -> Tensor:
        """That of every exit."""
        return self.of.target(labels, moves)

    def loss(
        self, outputs: Sequence[Tensor], target: Tensor, teacher: Sequence[Tensor] | None, recipe: Recipe
    ) -> Tensor:
        """The sum over exits, of whose teacher's logits each has its own."""
        taught = teacher or (None,) * len(outputs)
        losses = [self.of.loss(logits, target, soft, recipe) for logits, soft in zip(outputs, taught, strict=True)]
        return torch.stack(losses).sum()

    def metric(self, batches: Iterable[tuple[Sequence[Tensor], Tensor]]) -> float:
        """The end's, in percent."""
        return self.of.metric((outputs[-1], labels) for outputs, labels in batches)


@final
class HeadTraining(nn.Module):
    """The heads of a network as all that there is to train: its trunk and end give maps and logits, and stay.

    Their batch norms keep their statistics too. The heads are the network's own, so that it has them trained.
    """

    def __init__(self, network: Exits) -> None:
        super().__init__()
        self.exits = network.exits
        self._still = (network,)  # in a tuple, so that it is no part of what is trained, saved and put in a mode

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits by exit, front to back; the end's, which are last, without gradient."""
        network = self._still[0]
        with torch.no_grad():
            maps = dict(network.maps(x))
            end = network.get_submodule("head")(maps["head"])
        return *(head(maps[f"exits.{point}"]) for point, head in self.exits.items()), end


@final
class HeadLosses:
    """Objective of :class:`HeadTraining`: the sum over heads of what each loses.

    Args:
        distillation: ``"kd"`` is the recipe's distillation from the end, ``"pfd"`` the same where the end is right and
            the labels alone where it is wrong, ``"none"`` the labels alone everywhere.
        of: the objective of every single exit.
    """

    def __init__(self, distillation: Distillation, of: Objective) -> None:
        if distillation not in DISTILLATIONS:
            raise ValueError(f"unknown distillation {distillation!r}; known are {', '.join(DISTILLATIONS)}")
        self.distillation, self.of = distillation, of

    @property
    def measures(self) -> str:
        """The word for the metric."""
        return self.of.measures

    def target(self, labels: Tensor, moves: Moves) -> Tensor:
        """That of every exit."""
        return self.of.target(labels, moves)

    def loss(self, outputs: Sequence[Tensor], target: Tensor, teacher: None, recipe: Recipe) -> Tensor:
        """The sum of the heads' losses; outputs are those of :class:`HeadTraining`."""
        *exits, end = outputs
        if self.distillation == "pfd":
            losses = [_filtered(logits, end, target, recipe) for logits in exits]
        else:
            losses = [self.of.loss(x, target, end if self.distillation == "kd" else None, recipe) for x in exits]
        return torch.stack(losses).sum()

    def metric(self, batches: Iterable[tuple[Sequence[Tensor], Tensor]]) -> float:
        """The first exit's, in percent."""
        return self.of.metric((outputs[0], labels) for outputs, labels in batches)


def _filtered(logits: Tensor, end: Tensor, target: Tensor, recipe: Recipe) -> Tensor:
    """The mean over inputs, or over pixels whose class is known, of what an exit loses.

    Where the end is right it teaches (:func:`distillation_loss`), elsewhere the labels do alone.

    Args:
        logits: (N, classes), or maps of them (N, classes, h, w).
        end: as ``logits``, maybe of another size.
        target: (N,), or (N, H, W), to whose size maps are brought.
        recipe: with smoothing, temperature and weight.
    """
    if logits.dim() == 4:
        known = target != VOID
        logits, end = (upsampled(each.float(), target.shape[1:]).movedim(1, -1)[known] for each in (logits, end))
        target = target[known].long()
    right = end.argmax(1) == target
    loss = logits.sum() * 0.0
    for where, taught in ((right, True), (~right, False)):
        if where.any():
            part = distillation_loss(
                logits[where].float(),
                target[where],
                end[where].float() if taught else None,
                temperature=recipe.temperature,
                weight=recipe.distill,
                smoothing=recipe.smoothing,
            )
            loss = loss + part * where.float().mean()
    return loss


@dataclass(frozen=True)
class ExitTraining:
    """How a network with exits is trained.

    Attributes:
        trunk: recipe of the first step, which trains trunk, end and exits as one; None leaves trunk and end as they
            came.
        heads: recipe of the second, which trains the heads alone.
        distillation: what teaches the heads in the second step.
    """

    trunk: Recipe | None
    heads: Recipe
    distillation: Distillation = "none"


def heads_recipe(data: str) -> Recipe:
    """How heads are trained by default on a data set by name: as networks are there, in larger steps and for 2 epochs.

    A linear layer on the means of maps has small gradients: on the digits, two epochs at 0.1 leave the heads of a
    trained trunk at 18, 43 and 84 %, at 1.5 at 42, 73 and 89 %. Where the end teaches, it does so at temperature 1 and
    with half of the weight: of one seed on the shapes, a head fitted logits softened by 4 badly (docs/exits.md).
    """
    return replace(recipe_of(data), optimizer="sgd", lr=1.0, lr_other=1.0, epochs=2, temperature=1.0, distill=0.5)


def train_exits(
    network: nn.Module,
    data: Dataset,
    how: ExitTraining,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[str, Progress], None] | None = None,
) -> tuple[Trained, ...]:
    """Train a network with exits in place: its trunk with them, then its heads alone on what came of it.

    Args:
        network: with exits (:class:`Exits`).
        data: its test split is not touched.
        how: recipes of both steps.
        seed: of both steps.
        folder: for checkpoints; a run that was cut there goes on.
        progress: told the step ("trunk" or "heads") and where it is.

    Returns:
        What each step came to; its metric is the end's, then the first exit's.

    Raises:
        ValueError: as :func:`~deepreshape.training.train`.
    """

    def told(step: str) -> Callable[[Progress], None]:
        return lambda at: progress(step, at) if progress else None

    done: list[Trained] = []
    of = objective_of(data)
    if how.trunk:
        run = TrainingRun(network, data, how.trunk, seed=seed, objective=ExitAware(of))
        done.append(run.complete(folder / "trunk" if folder else None, told("trunk")))
    network.eval()
    losses = HeadLosses(how.distillation, of)
    run = TrainingRun(HeadTraining(cast(Exits, network)), data, how.heads, seed=seed, objective=losses)
    done.append(run.complete(folder / "heads" if folder else None, told("heads")))
    network.eval()
    return tuple(done)
