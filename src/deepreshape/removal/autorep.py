"""AutoReP (Peng et al., ICCV 2023): trained indicators with hysteresis, and polynomials in place of ReLUs.

An indicator w starts anywhere in (0, 1). The ReLU it stands for goes when w falls below -t and comes back when it rises
above t; in between nothing changes. The gradient to the binary state goes to w times softplus(w). The loss charges the
density of ReLUs above the one wanted. A removed ReLU becomes the identity or, with ``polynomial``, the quadratic that
is nearest to the ReLU for normally distributed inputs of its channel's mean and deviation (distribution-aware
approximation, section 3.3), whose coefficients then train. The mask at the end is the best ``budget`` indicators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from deepreshape.nn import GatedReLU, PolynomialReLU
from deepreshape.removal.mask_search import GateSearch, SearchMethod
from deepreshape.removal.method import Reduced, Task
from deepreshape.removal.sites import Masks, keep_best, unit_shape
from deepreshape.training import check_ranges

__all__ = ["AutoReP", "nearest_quadratic"]

IMAGES = 500
"""Training images on which means and deviations of the channels are taken."""


@dataclass(frozen=True)
class AutoReP(SearchMethod):
    """Settings of AutoReP.

    Attributes:
        gate_lr: peak learning rate of the indicators.
        hysteresis: t.
        strength: weight of the density above the one wanted.
        polynomial: whether a removed ReLU becomes a quadratic, which costs a square, instead of the identity.
    """

    search_lr: float = 1e-3
    search_optimizer: Literal["sgd", "adamw"] = "adamw"
    gate_lr: float = 0.02
    hysteresis: float = 0.003
    strength: float = 100.0
    polynomial: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, gate_lr=(1e-9, 100), hysteresis=(0, 1), strength=(0, 1e9))

    def see_fits(self, network: nn.Module, input: Sequence[int], masks: Masks, teacher: nn.Module) -> None:
        if self.polynomial and not all(mask.all() for mask in masks.values()):
            raise ValueError(
                "polynomial=True puts a quadratic wherever there is no ReLU, and this network has the identity at some "
                "places; start from one whose ReLUs are whole"
            )

    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        return self.find(_Search(self, network, task), task)


class _Search(GateSearch):
    def __init__(self, method: AutoReP, network: nn.Module, task: Task) -> None:
        super().__init__(network, task, method.gate_lr)
        self.method = method
        lines = _quadratics(network, task) if method.polynomial else {}
        generator = torch.Generator().manual_seed(task.seed)
        for path, mask in task.masks.items():
            layer = GatedReLU(mask, unit_shape(mask, method.granularity), lines.get(path))
            # Adam makes steps of one size whatever the price, so that a dear ReLU starts nearer to where it goes
            layer.gate.data = torch.rand(layer.gate.shape, generator=generator) / max(task.prices[path], 1.0)
            layer.gate.register_hook(lambda grad, gate=layer.gate: grad * softplus(gate.detach()))
            layer.register_buffer("state", torch.ones(layer.gate.shape, dtype=torch.bool))
            network.set_submodule(path, layer)

    def before(self, step: int, steps: int) -> None:
        for layer in map(self.layer, self.where):
            state = layer.get_buffer("state")
            state.copy_(torch.where(state, layer.gate >= -self.method.hysteresis, layer.gate > self.method.hysteresis))
            layer.pull(1.0, (state & layer.mask).float())

    def penalty(self) -> Tensor:
        kept = []
        for path in self.where:
            layer = self.layer(path)
            state = layer.gate + (layer.get_buffer("state").float() - layer.gate).detach()
            kept.append(self.prices[path] * (state * layer.mask).sum())
        return self.method.strength / self.total * (torch.stack(kept).sum() - self.method.budget).clamp(min=0)

    def masks(self) -> Masks:
        # states that differ from their indicator's sign are inside the band, and there the state decides
        scores = {path: self.layer(path).gate + self.layer(path).get_buffer("state") for path in self.where}
        return keep_best(scores, self.where, self.method.budget, self.seed)

    def finished(self, masks: Masks) -> nn.Module:
        if not self.method.polynomial:
            return super().finished(masks)
        for path, mask in masks.items():
            line = self.layer(path).coefficients
            assert line is not None  # noqa: S101 - given above
            self.network.set_submodule(path, PolynomialReLU(mask, line.detach()))
        return self.network


@torch.no_grad()
def _quadratics(network: nn.Module, task: Task) -> Masks:
    """By site, the coefficients for the inputs it has on some training images."""
    lines: dict[str, Tensor] = {}

    def look(path: str, x: Tensor) -> None:
        by_channel = x.transpose(0, 1).flatten(1)
        lines[path] = nearest_quadratic(by_channel.mean(1), by_channel.std(1))

    handles = [
        network.get_submodule(path).register_forward_pre_hook(lambda *got, at=path: look(at, got[1][0]))
        for path in task.masks
    ]
    device = next(network.parameters()).device
    network.eval()(task.data.normalize(task.data.train.images[:IMAGES].to(device)))
    for handle in handles:
        handle.remove()
    return lines


def nearest_quadratic(mean: Tensor, deviation: Tensor) -> Tensor:
    """Coefficients of 1, x and x squared, shape (C, 3), of the quadratic nearest to relu(x) for normal x.

    In the Hermite basis of z = (x - mean) / deviation, the k-th coefficient of the best approximation is
    E[relu He_k] / k!.
    """
    s = deviation.clamp(min=1e-3)
    a = mean / s
    density = torch.exp(-a.square() / 2) / (2 * pi) ** 0.5
    below = torch.special.ndtr(a)
    return torch.stack([s * density * (a.square() + 1) / 2, below - a * density, density / (2 * s)], dim=1)
