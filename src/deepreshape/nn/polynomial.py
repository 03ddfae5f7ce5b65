"""A ReLU at some positions, a polynomial at the others (AutoReP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepreshape.nn.masks import masked_relu


def polynomial(x: Tensor, coefficients: Tensor) -> Tensor:
    """c0 + c1 x + c2 x^2 with coefficients of shape (C, 3) for maps of shape (N, C, H, W)."""
    constant, linear, square = coefficients.to(x.dtype)[:, :, None, None].unbind(1)
    return constant + x * (linear + square * x)


class PolynomialReLU(nn.Module):
    """A ReLU at some positions of its map, a polynomial of degree two by channel at the others (AutoReP, section 3.3).

    Not free where the identity is: each position without ReLU costs a square under cryptography.

    Args:
        mask: bool, shape (C, H, W); true where the ReLU stays.
        coefficients: float, shape (C, 3), of 1, x and x squared; trained with the weights.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, coefficients: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())
        self.coefficients = nn.Parameter(coefficients.clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, masked_relu(x, self.mask), polynomial(x, self.coefficients))

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {self.mask.numel()} kept"
