"""Coarse removal behind the same call as the fine methods: DeepReDuce's or DeepReShape's steps, cut to a budget.

Plans end at a few counts only. The one that ends just above the budget is taken, and the next step done in part: ReLUs
go layer by layer, those before a residual add first and front stages first, and of the last layer by whole channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from deepreshape.design.plan import apply, coarse_plans
from deepreshape.models import Staged
from deepreshape.removal.method import Method, Reduced, Task
from deepreshape.removal.sites import Granularity, Masks, keep_best, masks_of, put_masks

__all__ = ["Coarse"]


@dataclass(frozen=True)
class Coarse(Method):
    """Settings of coarse removal.

    Attributes:
        shrink: what comes after thinning: ReLU reuse (DeepReShape), or scaling channels and resolution (DeepReDuce).
    """

    granularity: Granularity = "layer"
    shrink: Literal["reuse", "reshape"] = "reuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity != "layer":
            raise ValueError(f"coarse removal goes by layer, not by {self.granularity}; another method does")

    def see_fits(self, network: nn.Module, input: Sequence[int], masks: Masks, teacher: nn.Module) -> None:
        if not isinstance(getattr(network, "architecture", None), Staged):
            raise ValueError(
                "coarse removal needs a network of the package, which knows its stages; try another method"
            )

    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        architecture = cast(Staged, network.architecture)
        device = next(network.parameters()).device
        for plan in sorted(coarse_plans(architecture, self.shrink), key=lambda plan: plan.relus):
            if plan.relus < self.budget:
                continue
            try:
                planned, _ = apply(plan, network, seed=task.seed)
            except ValueError:  # a plan that has no place for a mask; the empty one always has
                continue
            masks = masks_of(planned, task.data.shape)
            if sum(int(mask.sum()) for mask in masks.values()) >= self.budget:
                break
        return Reduced(put_masks(planned, _cut(architecture, masks, self.budget, task.seed)).to(device))


def _cut(architecture: Staged, masks: Masks, budget: int, seed: int) -> Masks:
    last = {site.name for site in architecture.sites() if site.last}
    order = sorted(masks, key=lambda path: path.removesuffix(".relu") in last)  # a site with zeros has its ReLUs inside
    scores = {path: torch.full((masks[path].shape[0], 1, 1), float(order.index(path))) for path in masks}
    return keep_best(scores, masks, budget, seed)
