"""ReLUs that are kept at some positions: the only code that knows how a mask is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, library

from deepreshape.nn.nonlinearity import Nonlinearity

__all__ = ["MaskedReLU", "floor", "laid_out_like", "masked_relu"]


@library.custom_op("deepreshape::masked_relu", mutates_args=())
def masked_relu(x: Tensor, mask: Tensor) -> Tensor:
    """ReLU where ``mask`` is true, the identity elsewhere.

    One operator of its own, so that a trace sees the mask and counts what is kept.

    Args:
        x: any floating dtype, shape (N, C, H, W), or (N, C) behind a linear layer.
        mask: bool, shape (C, H, W), or (C,).

    Returns:
        A new tensor of the shape and dtype of ``x``.
    """
    return torch.maximum(x, floor(x, mask))


@masked_relu.register_fake
def _(x: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    # the next layer keeps its input anyway, so that keeping the output takes no memory
    ctx.save_for_backward(inputs[1], output)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    mask, out = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    return grad * (out > floor(out, mask)), None


masked_relu.register_autograd(_backward, setup_context=_save)


def floor(x: Tensor, mask: Tensor) -> Tensor:
    """What a masked ReLU lets nothing fall below: 0 where the ReLU stays, minus infinity elsewhere."""
    return laid_out_like(x, torch.where(mask, 0.0, -torch.inf))


def laid_out_like(x: Tensor, positions: Tensor) -> Tensor:
    """A tensor over the positions of a map, in the dtype and memory layout of a batch of maps."""
    batch_of_one = positions.to(x.dtype)[None]
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return batch_of_one.contiguous(memory_format=torch.channels_last) if last else batch_of_one


class MaskedReLU(Nonlinearity):
    """A ReLU that is kept at some positions of its map only.

    The mask is a buffer: never trained, saved with the weights, the same for every input.

    Args:
        mask: bool, shape of one output, (C, H, W) or (C,); true where the ReLU stays.
    """

    kind = "masked-relu"
    mask: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool or not mask.dim():
            raise ValueError(f"a mask is a bool tensor of shape (C, H, W), not {mask.dtype} of {tuple(mask.shape)}")
        self.register_buffer("mask", mask.clone())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["mask"])

    def forward(self, x: Tensor) -> Tensor:
        return masked_relu(x, self.mask)

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {self.mask.numel()} kept"
