"""Block coordinate descent on the binary mask (Bornfeld and Avidan's coordinate descent for linearization, 2025).

The mask is binary all along, so that nothing has to be thresholded. In each move, several random blocks of the ReLUs
that are left are tried, and the one that raises the loss least is removed; between moves the network trains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deepreshape.removal.mask_search import ChosenMasks, SearchMethod, rounds_done, weighed
from deepreshape.removal.method import Reduced, Task
from deepreshape.removal.sites import Masks, keep_best, unit_shape
from deepreshape.training import check_ranges
from deepreshape.training.parallel import add_up

__all__ = ["Descent"]


@dataclass(frozen=True)
class Descent(SearchMethod):
    """Settings of block coordinate descent.

    Attributes:
        moves: in how many blocks the ReLUs above the budget are removed; at most one a training step.
        tries: blocks looked at in each move.
        until: share of the search after which all have been removed.
    """

    moves: int = 100
    tries: int = 4
    until: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, moves=(1, 100_000), tries=(1, 1000), until=(0, 1))

    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        return self.find(_Search(self, network, task), task)


class _Search(ChosenMasks):
    def __init__(self, method: Descent, network: nn.Module, task: Task) -> None:
        super().__init__(network, task, task.masks)
        self.method, self.objective = method, task.objective
        self.plain = replace(task.recipe, smoothing=0.0)
        self.total = sum(int(mask.sum()) for mask in task.masks.values())

    @torch.no_grad()
    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        until = max(1, round(steps * self.method.until))
        moved, last = (rounds_done(at, until, self.method.moves) for at in (step + 1, step))
        if moved == last:
            return
        left = self.method.budget + (self.total - self.method.budget) * (self.method.moves - moved) // self.method.moves
        kept = {path: mask.clone() for path, mask in self.masks().items()}
        candidates = [
            self._without_a_block(kept, left, step * self.method.tries + at) for at in range(self.method.tries)
        ]
        losses = []
        self.network.eval()
        for candidate in candidates:
            self.choose(candidate)
            losses.append(len(labels) * self.objective.loss(self.network(batch), labels, None, self.plain))
        self.network.train()
        self.choose(candidates[int(add_up(torch.stack(losses)).argmin())])

    def _without_a_block(self, kept: Masks, left: int, number: int) -> Masks:
        """The masks with a random block of units fewer; dear units are likelier to be in it."""
        generator = torch.Generator().manual_seed((number + 1_000_003 * self.seed) % 2**32)
        scores = {
            path: torch.rand(unit_shape(mask, self.method.granularity), generator=generator)
            for path, mask in kept.items()
        }
        last_move = left == self.method.budget
        return keep_best(weighed(scores, self.prices), kept, left, self.seed, whole_units=not last_move)
