"""Constant zeros where a ReLU never fires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, library, nn

from deepreshape.nn.masks import MaskedReLU
from deepreshape.nn.nonlinearity import Nonlinearity

__all__ = ["Zeroed", "zeroed"]


@library.custom_op("deepreshape::zeroed", mutates_args=())
def zeroed(x: Tensor, keep: Tensor) -> Tensor:
    """``x`` where ``keep`` is true, 0 elsewhere; one operator, so that a trace sees where.

    Args:
        x: any floating dtype, shape (N, C, H, W) or (N, C).
        keep: bool, shape (C, H, W) or (C,).
    """
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype, device=x.device))


@zeroed.register_fake
def _(x: Tensor, keep: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    (keep,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    return zeroed(grad, keep), None


zeroed.register_autograd(_backward, setup_context=_save)


class Zeroed(Nonlinearity):
    """A site at some of whose positions there is a constant 0; at the others stands another module, as ever.

    What computes ReLUs is the part ``relu``, a site of its own: a search puts its masks there, and the zeros stay.

    Args:
        relu: what stands at the other positions.
        keep: bool, shape of one output, (C, H, W) or (C,); false where the output is 0.
    """

    kind = "zeroed"
    mask = None
    keep: Tensor

    def __init__(self, relu: nn.Module, keep: Tensor) -> None:
        super().__init__()
        self.relu = relu
        self.register_buffer("keep", keep.clone())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(MaskedReLU(tensors["relu.mask"]), tensors["keep"])

    def forward(self, x: Tensor) -> Tensor:
        return zeroed(self.relu(x), self.keep)

    def extra_repr(self) -> str:
        return f"{int((~self.keep).sum())} of {self.keep.numel()} zero"
