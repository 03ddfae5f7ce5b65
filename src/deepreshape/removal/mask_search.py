"""What searches for masks have in common: a network in training, and a rule that watches it and chooses.

A search is a module around the network. Whatever it knows lies in its parameters and buffers, so that the training
loop's checkpoints hold all of it, and a search that was killed continues as if nothing had happened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from deepreshape.nn import GatedReLU, MaskedReLU
from deepreshape.removal.method import Method, Reduced, Task
from deepreshape.removal.sites import Masks, put_masks
from deepreshape.training import Hook, TrainingRun, check_ranges

__all__ = ["ChosenMasks", "GateSearch", "MaskSearch", "SearchMethod", "remaining", "rounds_done", "weighed"]


@dataclass(frozen=True)
class SearchMethod(Method):
    """A method that looks for its masks while the network trains.

    Attributes:
        search_epochs: passes over the training split.
        search_lr: peak learning rate of the weights in them, on ``search_schedule``.
        search_optimizer: of weights and gates.
    """

    search_epochs: int = 1
    search_lr: float = 0.02
    search_optimizer: Literal["sgd", "adamw"] = "sgd"
    search_schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, search_epochs=(1, 100_000), search_lr=(1e-9, 100))

    def find(self, search: MaskSearch, task: Task) -> Reduced:
        """Run a search, and put the masks it ends with in its network."""
        recipe = replace(
            task.recipe,
            epochs=self.search_epochs,
            optimizer=self.search_optimizer,
            lr=self.search_lr,
            lr_other=1.0,
            schedule=self.search_schedule,
            weight_decay=task.recipe.weight_decay if self.search_optimizer == "sgd" else 0.0,
            ema=0.0,
            mismatch=0.0,
            relu="",
            backward_slope=0.0,
        )
        device = next(search.network.parameters()).device
        run = TrainingRun(
            search.to(device),
            task.data,
            recipe,
            seed=task.seed,
            teacher=task.teacher,
            hook=search,
            objective=task.objective,
        )
        trained = run.complete(task.folder, task.progress)
        network = search.finished(search.masks())
        return Reduced(network, self.search_epochs, trained.seconds)


class MaskSearch(nn.Module, Hook, ABC):
    """A network under a search; methods override what they need of the hook.

    Args:
        network: with modules of the search's own at the sites.
        task: what was asked.
    """

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network = network
        self.where = task.masks
        self.seed = task.seed

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    @abstractmethod
    def masks(self) -> Masks:
        """The masks as they would be chosen now, at exactly the budget."""

    def finished(self, masks: Masks) -> nn.Module:
        """The network with these masks in place of what the search had there."""
        return put_masks(self.network, masks)


class GateSearch(MaskSearch):
    """A search whose network has a trained gate in place of every ReLU; it puts them there.

    Args:
        network: that is searched.
        task: what was asked.
        gate_lr: peak learning rate of the gates.
    """

    def __init__(self, network: nn.Module, task: Task, gate_lr: float) -> None:
        super().__init__(network, task)
        self.peak = gate_lr
        self.prices = task.prices
        self.total = sum(int(mask.sum()) for mask in task.masks.values())

    def layer(self, path: str) -> GatedReLU:
        """The gates at a site."""
        module = self.network.get_submodule(path)
        assert isinstance(module, GatedReLU)  # noqa: S101 - put there by the search
        return module

    def gates(self) -> list[nn.Parameter]:
        return [self.layer(path).gate for path in self.where]

    @property
    def gate_lr(self) -> float:
        return self.peak


class ChosenMasks(MaskSearch):
    """A search whose network has masks all along, and changes them."""

    def __init__(self, network: nn.Module, task: Task, masks: Masks) -> None:
        super().__init__(put_masks(network, masks), task)
        self.prices = task.prices

    def layer(self, path: str) -> MaskedReLU:
        """The masked ReLU at a site."""
        module = self.network.get_submodule(path)
        assert isinstance(module, MaskedReLU)  # noqa: S101 - put there above
        return module

    def masks(self) -> Masks:
        return {path: self.layer(path).mask for path in self.where}

    def choose(self, masks: Masks) -> None:
        """Change the masks in place."""
        for path, mask in masks.items():
            self.layer(path).mask.copy_(mask)

    def statistic(self, path: str, name: str) -> Tensor:
        """A buffer of zeros over a site's positions, kept with its mask."""
        layer = self.layer(path)
        layer.register_buffer(name, torch.zeros_like(layer.mask, dtype=torch.float32))
        return layer.get_buffer(name)


def remaining(total: int, budget: int, done: float) -> int:
    """How many ReLUs are left when this share of the removal is done: fast at first, slow at the end (a cubic)."""
    return budget + round((total - budget) * (1 - min(1.0, done)) ** 3)


def rounds_done(step: int, steps: int, rounds: int) -> int:
    """Of rounds spread evenly over ``steps``, how many are due after ``step`` of them; all, once they are over."""
    return min(step, steps) * rounds // steps


Score = TypeVar("Score", float, Tensor)


def weighed(scores: Mapping[str, Score], prices: Mapping[str, float]) -> dict[str, Score]:
    """Scores per price, by site."""
    return {path: score / max(prices[path], 1e-9) for path, score in scores.items()}
