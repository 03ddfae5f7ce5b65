"""Every ReLU of a trained network as a HerPN (AESPA: Park et al., arXiv 2201.06699): no ReLU is left, only squares.

A HerPN normalises its bases 1, x and x^2 by channel, so what there is to choose at a site is a scale and a shift. They
are the least-squares fit to the ReLU on training images, one site after the other, each seeing what the quadratics
before it give. The fine-tuning distils the network that came into the one of squares, with the recipe's penalty on what
escapes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepreshape.models.staged import Staged
from deepreshape.nn import HerPN
from deepreshape.removal.method import Method, Reduced, Task
from deepreshape.removal.sites import Granularity, Masks

__all__ = ["Herpn"]

IMAGES = 500
"""Training images on which the quadratics are fitted."""
SMALLEST = 1e-2
"""Least scale of a fitted HerPN."""


@dataclass(frozen=True)
class Herpn(Method):
    """Settings of the replacement; there is nothing to choose, as no ReLU is left."""

    masked: ClassVar[bool] = False

    granularity: Granularity = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget or self.granularity != "layer":
            raise ValueError(
                f"herpn leaves no ReLU (budget=0, granularity=layer), not budget={self.budget}, "
                f"granularity={self.granularity}; autorep with polynomial=true keeps some beside quadratics"
            )

    def see_fits(self, network: nn.Module, input: Sequence[int], masks: Masks, teacher: nn.Module) -> None:
        partial = next((path for path, mask in masks.items() if not mask.all()), None)
        if partial is not None:
            raise ValueError(
                f"{partial} has no ReLU at some places, and a HerPN has a square at all; start from a network whose "
                "ReLUs are whole"
            )

    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        device = next(network.parameters()).device
        for path, mask in task.masks.items():
            network.set_submodule(path, HerPN(len(mask)).to(device))
        with _fitted(network, list(task.masks)), torch.no_grad():
            network.eval()(task.data.normalize(task.data.train.images[:IMAGES].to(device)))
        shape: Any = getattr(network, "architecture", None)
        if isinstance(shape, Staged):
            network.architecture = replace(shape, activation="herpn")  # pyright: ignore[reportArgumentType]
            network.__dict__.pop("manifest", None)  # it says what the network was before
        return Reduced(network)


@contextmanager
def _fitted(network: nn.Module, sites: list[str]) -> Generator[None]:
    """Inside, each site is fitted to what comes to it, before it answers."""
    handles = [
        network.get_submodule(path).register_forward_pre_hook(lambda site, inputs: _fit(site, inputs[0]))
        for path in sites
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fit(site: nn.Module, x: Tensor) -> None:
    """Statistics, scale and shift of a HerPN that make it the ReLU's least-squares fit on ``x``, by channel."""
    assert isinstance(site, HerPN)  # noqa: S101 - put there by the method
    values = x.float().transpose(0, 1).flatten(1)
    bases = torch.stack([values, (values.square() - 1) / 2**0.5])
    site.means.copy_(bases.mean(2))
    site.variances.copy_(bases.var(2, correction=0))
    site.scale.fill_(1.0)
    site.shift.zero_()
    constant, linear, square = site.coefficients.unsqueeze(2).unbind(1)
    quadratic, relu = constant + linear * values + square * values.square(), values.relu()
    spread = (quadratic - quadratic.mean(1, keepdim=True)).square().mean(1)
    slope = ((quadratic - quadratic.mean(1, keepdim=True)) * relu).mean(1) / spread.clamp(min=1e-12)
    # a channel that is constant here, or always off, keeps a small square: without one it could not learn to have any
    site.scale.copy_(torch.where((spread > 1e-6) & (slope.abs() > SMALLEST), slope, torch.full_like(slope, SMALLEST)))
    site.shift.copy_(relu.mean(1))
