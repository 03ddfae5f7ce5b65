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

__all__ = ["backward_slope"]


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

    def __init__(self, site: nn.Module, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self._site = [site]  # in a list: no part of this module, so that its state is not named twice
        if isinstance(site, MaskedReLU):
            self.register_buffer("mask", site.mask)

    def forward(self, x: Tensor) -> Tensor:
        return _Sloped.apply(x, self._site[0], self.slope)  # pyright: ignore[reportReturnType]


@contextmanager
def backward_slope(model: nn.Module, slope: float) -> Generator[None]:
    """Inside, gradients pass ReLUs that are off times ``slope``; outputs stay what they are, bit for bit.

    A unit that is off for all inputs has no gradient and stays off; with a slope it has one. What is on is decided by
    the true forward pass (the paper's proxy network has the slope in its forward pass too).

    Args:
        model: changed in place, for a while; ReLU, leaky ReLU and masked ReLU modules are reached, in-place ones too.
        slope: 0 gives a ReLU's own gradient, 1 a straight-through one.

    Raises:
        ValueError: if the slope does not fit, or nothing is reached.
    """
    if not 0 <= slope <= 1:
        raise ValueError(f"a backward slope is from 0 to 1, not {slope}")
    if any(isinstance(module, PolynomialReLU) for module in model.modules()):
        raise ValueError("the network has polynomials in place of ReLUs, which are never off")
    rectifiers = nn.ReLU | nn.LeakyReLU | MaskedReLU
    if not any(isinstance(module, rectifiers) for module in model.modules()):
        raise ValueError("no ReLU of the network is a module (torch.nn.ReLU); a slope cannot reach functions")
    with swap(model, lambda _, module: _SlopedSite(module, slope) if isinstance(module, rectifiers) else None):
        yield
