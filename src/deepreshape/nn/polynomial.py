"""A ReLU at some positions, a polynomial at the others (AutoReP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, library, nn

from deepreshape.nn.masks import laid_out_like
from deepreshape.nn.nonlinearity import Nonlinearity

__all__ = ["PolynomialReLU", "polynomial", "polynomial_relu"]


def polynomial(x: Tensor, coefficients: Tensor) -> Tensor:
    """c0 + c1 x + c2 x^2 with coefficients of shape (C, 3) for maps of shape (N, C, H, W) or (N, C)."""
    constant, linear, square = _by_channel(coefficients, x).unbind(1)
    return constant + x * (linear + square * x)


def _by_channel(coefficients: Tensor, x: Tensor) -> Tensor:
    """Shape (C, 3, 1, 1) for maps, (C, 3) for vectors, in the dtype of ``x``."""
    return coefficients.to(x.dtype).reshape(*coefficients.shape, *(1,) * (x.dim() - 2))


@library.custom_op("deepreshape::polynomial_relu", mutates_args=())
def polynomial_relu(x: Tensor, mask: Tensor, coefficients: Tensor) -> Tensor:
    """ReLU where ``mask`` is true, :func:`polynomial` elsewhere; one operator, so that a trace counts its squares.

    Args:
        x: any floating dtype, shape (N, C, H, W) or (N, C).
        mask: bool, shape (C, H, W) or (C,).
        coefficients: float, shape (C, 3), of 1, x and x squared.
    """
    return torch.where(mask, x.clamp(min=0), polynomial(x, coefficients))


@polynomial_relu.register_fake
def _(x: Tensor, mask: Tensor, coefficients: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, Tensor]:
    x, mask, coefficients = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    _, linear, square = _by_channel(coefficients, x).unbind(1)
    slope = torch.where(mask, (x > 0).to(x.dtype), linear + 2 * square * x)
    outside = grad * laid_out_like(x, ~mask)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    by_power = [(outside * power).sum(axes, dtype=coefficients.dtype) for power in (torch.ones_like(x), x, x * x)]
    return grad * slope, None, torch.stack(by_power, dim=1)


polynomial_relu.register_autograd(_backward, setup_context=_save)


class PolynomialReLU(Nonlinearity):
    """A ReLU at some positions of its map, a polynomial of degree two by channel at the others (AutoReP, section 3.3).

    Not free where the identity is: each position without ReLU costs a square under cryptography.

    Args:
        mask: bool, shape of one output, (C, H, W) or (C,); true where the ReLU stays.
        coefficients: float, shape (C, 3), of 1, x and x squared; trained with the weights.
    """

    kind = "polynomial-relu"
    mask: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, mask: Tensor, coefficients: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())
        self.coefficients = nn.Parameter(coefficients.clone())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["mask"], tensors["coefficients"])

    def forward(self, x: Tensor) -> Tensor:
        return polynomial_relu(x, self.mask, self.coefficients)

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {self.mask.numel()} kept"
