"""Gates that a search for a mask trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepreshape.nn.masks import laid_out_like
from deepreshape.nn.polynomial import polynomial

__all__ = ["GatedReLU"]


class _Gate(torch.autograd.Function):
    """x + g relu(-x), keeping only x and g for the way back."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate)
        return torch.addcmul(x, laid_out_like(x, gate), (-x).clamp(min=0))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, gate = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        (grad,) = grads
        through = torch.addcmul(grad, laid_out_like(x, gate).neg(), grad * (x < 0))
        at_gate = (grad * x.clamp(max=0)).sum(0, dtype=gate.dtype).neg()
        return through, at_gate.sum_to_size(gate.shape)


class GatedReLU(nn.Module):
    """A ReLU with a trained gate g at each position: g relu(x) + (1 - g) x (SNL, equation 3).

    It stands at a site while a mask is searched for; a :class:`MaskedReLU` takes its place afterwards.

    Args:
        mask: bool, shape of one output, (C, H, W) or (C,); where it is false there is no ReLU to begin with.
        shape: of the gates, all 1 at first: (C, H, W), or 1 where they are shared along a dimension.
        coefficients: float, shape (C, 3), of a polynomial in place of the identity; trained.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, shape: tuple[int, ...], coefficients: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())
        self.gate = nn.Parameter(torch.ones(shape, device=mask.device))
        self.coefficients = None if coefficients is None else nn.Parameter(coefficients.clone())
        self.pulled: tuple[float, Tensor] | None = None

    def pull(self, share: float, towards: Tensor) -> None:
        """Take the forward pass this share of the way from the gates to ``towards``; gradients stay the gates' own."""
        self.pulled = share, towards

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate * self.mask
        if self.pulled:
            share, towards = self.pulled
            gate = gate + share * (towards - gate).detach()
        if self.coefficients is None:
            return _Gate.apply(x, gate)  # pyright: ignore[reportReturnType]
        line = polynomial(x, self.coefficients)
        return line + laid_out_like(x, gate) * (x.relu() - line)
