"""SNL, selective network linearization (Cho et al., ICML 2022): trained gates under a growing L1 penalty.

Every ReLU gets a gate c, so that it gives c relu(x) + (1 - c) x; weights and gates are trained together on the loss
plus lambda |c|_1, and lambda may grow until few enough gates are left. Unlike the published code, gates stay in [0, 1],
the count then follows a schedule, the last part of the search moves the forward pass from the gates to the mask they
stand for, so that nothing jumps at its end, and the mask is the best ``budget`` gates, so that the budget is met
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deepreshape.nn import GatedReLU
from deepreshape.removal.mask_search import GateSearch, SearchMethod, remaining, rounds_done, weighed
from deepreshape.removal.method import Reduced, Task
from deepreshape.removal.sites import Masks, keep_best, unit_shape
from deepreshape.training import check_ranges

__all__ = ["SNL"]

UPDATES = 100
"""How often in a search lambda may grow."""


@dataclass(frozen=True)
class SNL(SearchMethod):
    """Settings of SNL.

    Attributes:
        gate_lr: peak learning rate of the gates.
        strength: lambda at first.
        growth: factor by which lambda grows at each of 100 looks at which more gates are open than the schedule wants.
            By default it does not: in a search of an epoch a larger lambda moves all gates alike, faster than the
            loss can tell them apart. ``zoo:digits`` was searched for five epochs with 1.2.
        soft: share of the search after which the forward pass starts to move to the binary mask.
    """

    search_lr: float = 1e-3
    search_optimizer: Literal["sgd", "adamw"] = "adamw"
    gate_lr: float = 0.02
    strength: float = 1e-5
    growth: float = 1.0
    soft: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, gate_lr=(1e-9, 100), strength=(0, 1e6), growth=(1, 100), soft=(0, 1))

    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        return self.find(_Search(self, network, task), task)


class _Search(GateSearch):
    def __init__(self, method: SNL, network: nn.Module, task: Task) -> None:
        super().__init__(network, task, method.gate_lr)
        self.method = method
        for path, mask in task.masks.items():
            network.set_submodule(path, GatedReLU(mask, unit_shape(mask, method.granularity)))
        self.register_buffer("strength", torch.tensor(method.strength, dtype=torch.float64))

    def before(self, step: int, steps: int) -> None:
        share = (step / steps - self.method.soft) / (1 - self.method.soft) if self.method.soft < 1 else 0.0
        if share > 0:
            for path, mask in self.masks().items():
                self.layer(path).pull(share, mask.to(self.layer(path).gate))

    def penalty(self) -> Tensor:
        sizes = ((self.layer(path), mask, self.prices[path]) for path, mask in self.where.items())
        parts = [price * (layer.gate * layer.mask).sum() for layer, mask, price in sizes]
        return self.get_buffer("strength").float() * torch.stack(parts).sum()

    @torch.no_grad()
    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        for gate in self.gates():
            gate.clamp_(0, 1)
        if rounds_done(step + 1, steps, UPDATES) > rounds_done(step, steps, UPDATES) and self.method.soft:
            done = (step + 1) / steps / self.method.soft
            opened = sum(int(((layer.gate > 0.5) & layer.mask).sum()) for layer in map(self.layer, self.where))
            if opened > remaining(self.total, self.method.budget, done):
                self.get_buffer("strength").mul_(self.method.growth)

    def masks(self) -> Masks:
        worth = weighed({path: self.layer(path).gate for path in self.where}, self.prices)
        return keep_best(worth, self.where, self.method.budget, self.seed)
