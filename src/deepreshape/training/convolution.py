"""Convolutions that a processor computes in another way than torch would choose.

Small maps as matrix products, which is what a processor with matrix units (AMX) does best.
The convolution kernels that torch has for processors fill those units where maps are large. On the 4x4 maps at the end
of a CIFAR network, whose convolutions are the widest, their weight gradient takes much longer than the same sum
written as one matrix product of the gradient and the windows (im2col); ``benchmarks/convolution.py`` times whole steps.

Strided 1x1 convolutions of few channels read every stride-th pixel first: with AVX2, oneDNN's weight gradient for them
(torch 2.13, channels last, fewer than 16 input channels) writes past its buffer, which ends in a crash or worse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

__all__ = ["MatrixConvolutions", "matrix_convolution"]

SMALL_MAP = 16
"""Pixels up to which the windows, which repeat an input nine times, are still cheap beside the product."""
WIDE_WINDOW = 1024
"""Values of a window from which the product is worth it."""

FEW_CHANNELS = 16
"""Input channels below which the strided 1x1 weight gradient overruns: of 231 shapes tried with 8 to 48 channels, on
maps of 48x48 to 96x120, it crashed for 50, all of them with fewer."""

Pair = tuple[int, int]


def _windows(x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """The window under each output pixel: (N * height * width, kernel * kernel * C) for x of (N, C, H, W)."""
    x = pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
    n, height, width, channels = x.shape
    image, row, column, channel = x.stride()
    rows, columns = (height - kernel[0]) // stride[0] + 1, (width - kernel[1]) // stride[1] + 1
    return x.as_strided(
        (n, rows, columns, *kernel, channels),
        (image, row * stride[0], column * stride[1], row, column, channel),
    ).reshape(n * rows * columns, -1)


class _MatrixConvolution(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        kernel: Pair = weight.shape[2], weight.shape[3]
        windows = _windows(x, kernel, stride, padding)
        ctx.save_for_backward(windows, weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        rows = (x.shape[2] + 2 * padding[0] - kernel[0]) // stride[0] + 1
        out = windows @ weight.permute(2, 3, 1, 0).reshape(-1, len(weight))
        return out.view(len(x), rows, -1, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        windows, weight = ctx.saved_tensors
        outs, ins, *_ = weight.shape
        kernel: Pair = weight.shape[2], weight.shape[3]
        to_x = to_weight = None
        if ctx.needs_input_grad[0] and ctx.stride == (1, 1):
            # a convolution with the kernel turned round
            around = kernel[0] - 1 - ctx.padding[0], kernel[1] - 1 - ctx.padding[1]
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, ins)
            n, _, height, width = ctx.shape
            to_x = (_windows(grad, kernel, (1, 1), around) @ turned).view(n, height, width, ins).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[0]:
            to_x = conv2d_input(ctx.shape, weight, grad, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            by_channel = grad.transpose(0, 1).reshape(outs, -1)
            to_weight = (by_channel @ windows).view(outs, *kernel, ins).permute(0, 3, 1, 2)
        return to_x, to_weight, None, None


def matrix_convolution(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """The convolution of x, (N, C, H, W), with weight, (K, C, kernel, kernel), without a bias; (N, K, height, width).

    Under autocast it computes in bfloat16. Padding is less than the kernel.
    """
    return _MatrixConvolution.apply(x, weight, stride, padding)  # pyright: ignore[reportReturnType]


class MatrixConvolutions(TorchFunctionMode):
    """While this is on, wide convolutions of small maps under autocast are matrix products, where there is AMX.

    Strided 1x1 convolutions of few channels become a selection of pixels and a 1x1 convolution, everywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self._worth = bool(torch.cpu.get_capabilities().get("amx_bf16"))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # as modules call it; a network's own calls may leave arguments out, or give numbers for pairs
        called = func is torch.conv2d and not kwargs and len(args) == 7 and isinstance(args[3], tuple)
        if called and self._worth and torch.is_autocast_enabled("cpu"):
            x, weight, bias, stride, padding, dilation, groups = args
            if (
                x.device.type == "cpu"
                and bias is None
                and groups == 1
                and dilation == (1, 1)
                and not isinstance(padding, str)
                and weight[0].numel() >= WIDE_WINDOW
                and x.shape[2] * x.shape[3] <= SMALL_MAP * stride[0] * stride[1]
            ):
                return matrix_convolution(x, weight, stride, padding)
        if called:
            x, weight, bias, stride, padding, dilation, groups = args
            if weight.shape[2:] == (1, 1) and weight.shape[1] < FEW_CHANNELS and padding == (0, 0) and max(stride) > 1:
                return func(x[:, :, :: stride[0], :: stride[1]], weight, bias, (1, 1), padding, dilation, groups)
        return func(*args, **(kwargs or {}))
