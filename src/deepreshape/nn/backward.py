"""ReLUs whose gradient has a slope where they are off (ProxyGrad: Linse, Barth and Martinetz, IJCNN 2024)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deepreshape.nn.masks import MaskedReLU, floor, masked_relu
from deepreshape.nn.polynomial import PolynomialReLU
from deepreshape.nn.swap import swap

__all__ = ["RECTIFIERS", "backward_slope", "leaky"]

RECTIFIERS = nn.ReLU | nn.LeakyReLU | MaskedReLU
"""Modules that a slope reaches."""


class _Sloped(torch.autograd.Function):
    """A rectifier's output as it is, and on the way back ``slope`` times the gradient where it is off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: nn.Module, slope: float) -> Tensor:
        if isinstance(site, MaskedReLU):
            out = masked_relu(x, site.mask)
            on = out > floor(out, site.mask)
        elif isinstance(site, nn.LeakyReLU):
            out = nn.functional.leaky_relu(x, site.negative_slope)
            on = x > 0
        else:
            out = torch.relu(x)
            on = out > 0
        ctx.save_for_backward(on)
        ctx.slope = slope
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (on,) = ctx.saved_tensors
        return torch.where(on, grads[0], grads[0] * ctx.slope), None, None


class _SlopedSite(nn.Module):
    """Stands at a site for a while; the site's buffers keep their names."""

    def __init__(self, site: nn.Module, slope: float, *, forward: bool) -> None:
        super().__init__()
        self.slope, self.leaks = slope, forward
        self._site = [site]  # in a list: no part of this module, so that its state is not named twice
        if isinstance(site, MaskedReLU):
            self.register_buffer("mask", site.mask)

    def forward(self, x: Tensor) -> Tensor:
        (site,) = self._site
        if not self.leaks:
            return _Sloped.apply(x, site, self.slope)  # pyright: ignore[reportReturnType]
        leaking = nn.functional.leaky_relu(x, self.slope)
        return torch.where(site.mask, leaking, x) if isinstance(site, MaskedReLU) else leaking


@contextmanager
def backward_slope(model: nn.Module, slope: float) -> Generator[None]:
    """Inside, gradients pass ReLUs that are off times ``slope``; outputs stay what they are, bit for bit.

    A unit that is off for all inputs has no gradient and stays off; with a slope it has one. What is on is decided by
    the true forward pass; :func:`leaky` has the slope in the forward pass too.

    Args:
        model: changed in place, for a while; ReLU, leaky ReLU and masked ReLU modules are reached, in-place ones too.
        slope: 0 gives a ReLU's own gradient, 1 a straight-through one.

    Raises:
        ValueError: if the slope does not fit, or nothing is reached.
    """
    with _swapped(model, slope, forward=False):
        yield


@contextmanager
def leaky(model: nn.Module, slope: float) -> Generator[None]:
    """Inside, ReLUs that are off have a slope in both passes: the paper's proxy network, whose outputs differ.

    Args:
        model: changed in place, for a while; as for :func:`backward_slope`.
        slope: 0 gives ReLUs, 1 a linear network.

    Raises:
        ValueError: if the slope does not fit, or nothing is reached.
    """
    with _swapped(model, slope, forward=True):
        yield


@contextmanager
def _swapped(model: nn.Module, slope: float, *, forward: bool) -> Generator[None]:
    if not 0 <= slope <= 1:
        raise ValueError(f"a backward slope is from 0 to 1, not {slope}")
    if any(isinstance(module, PolynomialReLU) for module in model.modules()):
        raise ValueError("the network has polynomials in place of ReLUs, which are never off")
    if not any(isinstance(module, RECTIFIERS) for module in model.modules()):
        raise ValueError("no ReLU of the network is a module (torch.nn.ReLU); a slope cannot reach functions")
    with swap(
        model, lambda _, module: _SlopedSite(module, slope, forward=forward) if isinstance(module, RECTIFIERS) else None
    ):
        yield
