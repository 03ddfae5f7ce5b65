"""Positions whose value is a constant: zeros where a ReLU never fires, and pixels that a convolution leaves out.

A pixel that a convolution leaves out (semi-structured activation sparsity: Grimaldi et al., ICCV Workshops 2023) is 0
for all channels, or the bias: in the product of weights and windows (im2col) its column is dropped. Behind the batch
norm it is one constant a channel, and behind the ReLU another one, so that nothing is to be compared there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, library, nn
from torch.nn import functional

from deepreshape.nn.masks import MaskedReLU
from deepreshape.nn.nonlinearity import Nonlinearity

__all__ = ["KnownReLU", "MaskedConv2d", "Zeroed", "known_relu", "masked_conv2d", "zeroed"]


@library.custom_op("deepreshape::zeroed", mutates_args=())
def zeroed(x: Tensor, keep: Tensor) -> Tensor:
    """``x`` where ``keep`` is true, 0 elsewhere; one operator, so that a trace sees where.

    Args:
        x: any floating dtype, shape (N, C, H, W) or (N, C).
        keep: bool, of a shape that broadcasts to (C, H, W) or (C,).
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


class SiteAround(Nonlinearity):
    """A site at some of whose positions there is a constant; at the others stands another module, as ever.

    What computes ReLUs is the part ``relu``, a site of its own: a search puts its masks there, and the constants stay.

    Args:
        relu: what stands at the other positions.
        positions: bool; the buffer that :attr:`saved_as` names.
    """

    mask = None
    saved_as: ClassVar[str]

    def __init__(self, relu: nn.Module, positions: Tensor) -> None:
        super().__init__()
        self.relu = relu
        self.register_buffer(self.saved_as, positions.clone())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        # any other part is rebuilt behind this, in its place
        return cls(MaskedReLU(tensors["relu.mask"]) if "relu.mask" in tensors else nn.ReLU(), tensors[cls.saved_as])


class Zeroed(SiteAround):
    """Zeros where ``keep``, bool of the shape of one output, (C, H, W) or (C,), is false."""

    kind = "zeroed"
    saved_as = "keep"
    keep: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return zeroed(self.relu(x), self.keep)

    def extra_repr(self) -> str:
        return f"{int((~self.keep).sum())} of {self.keep.numel()} zero"


@library.custom_op("deepreshape::masked_conv2d", mutates_args=())
def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    columns: Tensor,
    geometry: Sequence[int],
) -> Tensor:
    """A convolution at the pixels where ``columns`` is true; elsewhere 0, or the bias.

    One operator, so that a trace counts what is computed.

    Args:
        x: any floating dtype, shape (N, C, H, W).
        weight: shape (K, C / groups, kernel, kernel).
        bias: shape (K,), or None.
        columns: bool, (H', W') of the result.
        geometry: groups, then stride, padding and dilation, along rows and along columns each.
    """
    groups, *pairs = geometry
    product = functional.conv2d(x, weight, None, pairs[:2], pairs[2:4], pairs[4:], groups)
    product = torch.where(columns, product, torch.zeros((), dtype=product.dtype, device=product.device))
    return product if bias is None else product + bias[:, None, None]


@masked_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    columns: Tensor,
    geometry: Sequence[int],
) -> Tensor:
    return x.new_empty(len(x), len(weight), *columns.shape)


class MaskedConv2d(nn.Conv2d, Nonlinearity):
    """A convolution that leaves pixels out, for all channels, the same for every input.

    Args:
        columns: bool, shape (H', W') of its result; true where it is computed.
        weight: float, shape (out, in / groups, rows, columns).
        bias: float, shape (out,), or None.
        geometry: int64: groups, then stride, padding and dilation, along rows and along columns each.
    """

    kind = "masked-conv"
    mask = None
    columns: Tensor
    geometry: Tensor

    def __init__(self, columns: Tensor, weight: Tensor, bias: Tensor | None, geometry: Tensor) -> None:
        numbers = [int(value) for value in geometry]
        groups, *pairs = numbers
        stride, padding, dilation = ((pairs[at], pairs[at + 1]) for at in (0, 2, 4))
        outs, ins, *kernel = weight.shape
        sizes = ins * groups, outs, (kernel[0], kernel[1])
        super().__init__(*sizes, stride, padding, dilation, groups, bias is not None, device="meta")
        self.weight = nn.Parameter(weight.detach().clone())
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().clone())
        self.register_buffer("columns", columns.clone())
        self.register_buffer("geometry", geometry.clone())
        self.numbers = numbers

    @classmethod
    def of(cls, layer: nn.Conv2d, columns: Tensor) -> Self:
        """The convolution ``layer`` with pixels left out.

        Raises:
            ValueError: if its padding is not of zeros, or given in words.
        """
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise ValueError(f"a convolution with padding {layer.padding} of {layer.padding_mode}; pad zeros by number")
        numbers = [layer.groups, *layer.stride, *layer.padding, *layer.dilation]
        return cls(columns, layer.weight, layer.bias, torch.tensor(numbers))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["columns"], tensors["weight"], tensors.get("bias"), tensors["geometry"])

    def forward(self, input: Tensor) -> Tensor:
        self._see_size(input.shape[2:])
        if not self.training and not torch.is_grad_enabled():
            return masked_conv2d(input, self.weight, self.bias, self.columns, self.numbers)
        product = zeroed(self._conv_forward(input, self.weight, None), self.columns)
        return product if self.bias is None else product + self.bias[:, None, None]

    def _see_size(self, size: Sequence[int]) -> None:
        """Refuse an input whose result has another size than the mask."""
        kernel, spread, padding = self.kernel_size, self.dilation, self.padding
        reach = [int(padding[at]) * 2 - spread[at] * (kernel[at] - 1) - 1 for at in (0, 1)]
        gives = tuple((size[at] + reach[at]) // self.stride[at] + 1 for at in (0, 1))
        if gives != tuple(self.columns.shape):
            raise ValueError(
                f"the convolution leaves out pixels of a {tuple(self.columns.shape)} map, and an input of "
                f"{tuple(size)} gives one of {gives}; take inputs of the size it was made for"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {int(self.columns.sum())} of {self.columns.numel()} pixels"


@library.custom_op("deepreshape::known_relu", mutates_args=())
def known_relu(x: Tensor, known: Tensor) -> Tensor:
    """max(x, 0) where ``known`` is true, ``x`` elsewhere; x is a constant there, so that it costs no comparison.

    Args:
        x: any floating dtype, shape (N, C, H, W).
        known: bool, shape (H, W).
    """
    return torch.where(known, x.clamp(min=0), x)


@known_relu.register_fake
def _(x: Tensor, known: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save_known(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_known(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    x, known = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    return grad * ((x > 0) | ~known), None


known_relu.register_autograd(_backward_known, setup_context=_save_known)


class KnownReLU(SiteAround):
    """A site behind a :class:`MaskedConv2d`: the ReLU of a constant where that leaves pixels out.

    They are where ``known``, bool (H, W), is true; the mask of the part ``relu`` is false there.
    """

    kind = "known-relu"
    saved_as = "known"
    known: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return known_relu(self.relu(x), self.known)

    def extra_repr(self) -> str:
        return f"{int(self.known.sum())} of {self.known.numel()} positions known"
