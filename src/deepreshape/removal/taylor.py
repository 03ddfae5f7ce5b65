"""Taylor gates (the importance of ReLUPruner, AAAI 2026): remove what the loss misses least, a little at a time.

A gate g at a ReLU gives x + g relu(-x). What the loss changes by if g goes from 1 to 0 is, to second order and with the
squared gradients of the images in place of the curvature, |sum_n d_n| + N/2 sum_n d_n^2, where d_n is image n's part of
the gradient to g. It is multiplied by how often the input is negative and by the layer's importance, the length of its
gradient times the root mean square of its values, and averaged over steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepreshape.removal.mask_search import ChosenMasks, SearchMethod, remaining, rounds_done, weighed
from deepreshape.removal.method import Reduced, Task
from deepreshape.removal.sites import keep_best, unit_shape
from deepreshape.training import check_ranges
from deepreshape.training.parallel import add_up

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor(SearchMethod):
    """Settings of Taylor gates.

    Attributes:
        rounds: how often ReLUs are removed.
        until: share of the search after which all have been.
        momentum: of the average of the importance over steps.
    """

    mismatch: float | None = 10.0
    rounds: int = 50
    until: float = 0.8
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, rounds=(1, 100_000), until=(0, 1), momentum=(0, 1))

    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        return self.find(_Search(self, network, task), task)


class _Search(ChosenMasks):
    def __init__(self, method: Taylor, network: nn.Module, task: Task) -> None:
        super().__init__(network, task, task.masks)
        self.method = method
        self.total = sum(int(mask.sum()) for mask in task.masks.values())
        self.seen: dict[str, Tensor] = {}
        for path in self.where:
            self.statistic(path, "importance")
            self.layer(path).register_forward_hook(lambda *got, at=path: self._watch(at, got[1][0], got[2]))

    def _watch(self, path: str, x: Tensor, out: Tensor) -> None:
        if torch.is_grad_enabled():
            # behind frozen weights nothing has a gradient yet, and what a ReLU matters there is asked all the same
            out.requires_grad_()
            out.register_hook(lambda grad: self.seen.update({path: self._sums(x.detach(), grad)}))

    def _sums(self, x: Tensor, grad: Tensor) -> Tensor:
        """First order, second order, how often negative (each by position), then sums of squares of gradient and x."""
        change = (grad * x.clamp(max=0)).float()
        by_position = torch.stack([change.sum(0), change.square().sum(0), (x < 0).float().sum(0)])
        squares = torch.stack([grad.float().square().sum(), x.float().square().sum()])
        return torch.cat([by_position.flatten(), squares, squares.new_tensor([len(x)])])

    @torch.no_grad()
    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        for path in self.where:
            self._learn(path, add_up(self.seen.pop(path)))
        until = max(1, round(steps * self.method.until))
        now, last = (rounds_done(at, until, self.method.rounds) for at in (step + 1, step))
        if now > last:
            kept = self.masks()
            scores = {path: self._score(path) for path in self.where}
            left = remaining(self.total, self.method.budget, now / self.method.rounds)
            last_round = now == self.method.rounds
            self.choose(keep_best(weighed(scores, self.prices), kept, left, self.seed, whole_units=not last_round))

    def _learn(self, path: str, sums: Tensor) -> None:
        average = self.layer(path).get_buffer("importance")
        *positions, n = *sums[:-3].view(3, *average.shape), sums[-1]
        first, second, negative = positions
        slope, size = (sums[-3] / average.numel()).sqrt(), (sums[-2] / (n * average.numel())).sqrt()
        now = (first.abs() + n / 2 * second) * (negative / n) * slope * size
        average.lerp_(now, 1 - self.method.momentum)

    def _score(self, path: str) -> Tensor:
        layer = self.layer(path)
        shape = unit_shape(layer.mask, self.method.granularity)
        kept = layer.mask.float()
        return (layer.get_buffer("importance") * kept).sum_to_size(shape) / kept.sum_to_size(shape).clamp(min=1)
