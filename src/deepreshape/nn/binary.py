"""One bit: signs with learned thresholds, PReLUs with learned shifts, and convolutions with weights of one bit.

ReActNet (Liu et al., ECCV 2020): RSign and RPReLU; Bi-Real Net (Liu et al., ECCV 2018): the gradient of a sign as that
of a piecewise quadratic, and weights that keep their size by channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, library, nn
from torch.nn import functional

from deepreshape.nn.chunks import chunks, parts
from deepreshape.nn.nonlinearity import Nonlinearity

__all__ = ["BinaryConv2d", "RPReLU", "RSign", "ShiftedReLU", "SignConv2d", "binary_weight", "fused_threshold", "sign"]


@library.custom_op("deepreshape::sign", mutates_args=())
def sign(x: Tensor, threshold: Tensor) -> Tensor:
    """+1 where ``x`` is above ``threshold``, -1 elsewhere, so never 0; one operator, so that a trace counts its signs.

    Compared in float32 at least: in bfloat16, values near a threshold would fall on it.

    Args:
        x: any floating dtype, shape (N, C, H, W) or (N, C).
        threshold: float, shape (C,).

    Returns:
        A new tensor of the shape and dtype of ``x``.
    """
    out = torch.empty_like(x)
    for (values,), part in zip(chunks(x), parts(out), strict=True):
        part.copy_(_above(values, threshold).gt_(0).mul_(2).sub_(1))
    return out


@sign.register_fake
def _(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.empty_like(x)


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values (C,) or (C, 1, 1) as ``x``, (N, C, ...), takes them, in its dtype."""
    return values.to(x.dtype).view(-1, *(1,) * (x.dim() - 2))


def _sum(x: Tensor) -> Tensor:
    """Over all but channels, (C,)."""
    return x.sum([axis for axis in range(x.dim()) if axis != 1])


def _above(x: Tensor, threshold: Tensor) -> Tensor:
    return x - _by_channel(threshold, x)


def _save_sign(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sign_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, threshold = ctx.saved_tensors
    to_x, to_threshold = torch.empty_like(x), torch.zeros_like(threshold)
    for (values, g), part in zip(chunks(x, grad), parts(to_x), strict=True):
        # of -1, 2v + v^2, 2v - v^2, 1 on the four pieces of the line
        through = _above(values, threshold).abs_().mul_(-2).add_(2).clamp_(min=0).mul_(g)
        part.copy_(through)
        to_threshold -= _sum(through)
    return to_x, to_threshold


sign.register_autograd(_sign_backward, setup_context=_save_sign)


@library.custom_op("deepreshape::binary_weight", mutates_args=())
def binary_weight(weight: Tensor) -> Tensor:
    """Weights of one bit: plus or minus the mean absolute weight of their output channel; minus at 0.

    Args:
        weight: float, shape (out, in / groups, k, k).
    """
    size = weight.abs().flatten(1).mean(1).view(-1, *(1,) * (weight.dim() - 1))
    return torch.where(weight > 0, size, -size)


@binary_weight.register_fake
def _(weight: Tensor) -> Tensor:
    return torch.empty_like(weight)


def _save_weight(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _weight_backward(ctx: Any, grad: Tensor) -> Tensor:
    (weight,) = ctx.saved_tensors
    return grad * (weight.abs() <= 1)


binary_weight.register_autograd(_weight_backward, setup_context=_save_weight)


class RSign(Nonlinearity):
    """A sign with a learned threshold for each channel (ReActNet, equation 1).

    Its gradient is that of a piecewise quadratic: 2 - 2 |x - threshold| within 1 of the threshold, 0 beyond.

    Args:
        channels: of maps (N, C, H, W) or vectors (N, C).
    """

    kind = "sign"
    mask = None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(channels))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        module = cls(len(tensors["threshold"]))
        module.load_state_dict({"threshold": tensors["threshold"]})
        return module

    def forward(self, x: Tensor) -> Tensor:
        return sign(x, self.threshold)

    def extra_repr(self) -> str:
        return f"{len(self.threshold)} channels"


class _ShiftedPReLU(torch.autograd.Function):
    """PReLU(x - before) + after in training, in the dtype of ``x``.

    Its terms by themselves are float32 under autocast, as their parameters are, and so would be all behind them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor, slope: Tensor, after: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for (values,), part in zip(chunks(x), parts(out), strict=True):
            shifted = _above(values, before)
            below = shifted.clamp(max=0).mul_(_by_channel(slope, values))
            part.copy_(shifted.clamp_(min=0).add_(below).add_(_by_channel(after, values)))
        ctx.save_for_backward(x, before, slope)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, before, slope = ctx.saved_tensors
        to_x, sums = torch.empty_like(x), torch.zeros(3, len(slope), dtype=slope.dtype, device=x.device)
        for (values, g), part in zip(chunks(x, grads[0]), parts(to_x), strict=True):
            shifted = _above(values, before)
            to_slope = shifted.clamp(max=0).mul_(g)
            below = _by_channel(slope, values)
            through = torch.addcmul(below, shifted.gt_(0), 1 - below).mul_(g)  # `where` is twenty times an addition
            part.copy_(through)
            sums += torch.stack([_sum(through), _sum(to_slope), _sum(g)]).to(slope.dtype)
        return to_x, -sums[0].view_as(before), sums[1], sums[2].view_as(before)


class RPReLU(Nonlinearity):
    """A PReLU between two learned shifts, all by channel (ReActNet, equation 2): PReLU(x - before) + after.

    Args:
        channels: of maps (N, C, H, W).
    """

    kind = "rprelu"
    mask = None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.after = (nn.Parameter(torch.zeros(channels, 1, 1)) for _ in range(2))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        module = cls(len(tensors["slope"]))
        module.load_state_dict({name: tensors[name] for name in ("before", "after", "slope")})
        return module

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            return _ShiftedPReLU.apply(x, self.before, self.slope, self.after)  # pyright: ignore[reportReturnType]
        return functional.prelu(x - self.before, self.slope) + self.after

    def extra_repr(self) -> str:
        return f"{len(self.slope)} channels"


class ShiftedReLU(nn.Module):
    """A ReLU between two learned shifts, by channel: an :class:`RPReLU` of slope 0, whose part ``relu`` takes masks.

    Args:
        channels: of maps (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.after = (nn.Parameter(torch.zeros(channels, 1, 1)) for _ in range(2))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x - self.before) + self.after


class BinaryConv2d(nn.Conv2d):
    """A convolution without bias whose weights are used as :func:`binary_weight` has them; it trains the real ones.

    Gradients pass to real weights within -1 and 1 as they are (straight through).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        with torch.no_grad():
            self.weight.uniform_(-0.001, 0.001)  # small, so that signs change early

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, binary_weight(self.weight), None)


class SignConv2d(Nonlinearity):
    """A convolution of signs, in place of a convolution of a trained network.

    Args:
        threshold: of the signs, float, shape (in,).
        weight: float, shape (out, in, k, k).
        geometry: int64: stride, padding, and 1 where the weights have one bit too.
    """

    kind = "sign-conv"
    mask = None
    geometry: Tensor

    def __init__(self, threshold: Tensor, weight: Tensor, geometry: Tensor) -> None:
        super().__init__()
        self.sign = RSign(len(threshold))
        self.sign.threshold = nn.Parameter(threshold.detach().clone())
        self.weight = nn.Parameter(weight.detach().clone())
        self.register_buffer("geometry", geometry.clone())
        self.stride, self.padding, self.binary = (int(value) for value in geometry)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["sign.threshold"], tensors["weight"], tensors["geometry"])

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Self:
        """Signs before the convolution ``layer``, whose weights stay real."""
        geometry = torch.tensor([layer.stride[0], layer.padding[0], 0])  # pyright: ignore[reportArgumentType]
        return cls(torch.zeros(layer.in_channels).to(layer.weight), layer.weight, geometry)

    def one_bit(self) -> Self:
        """The same with weights of one bit."""
        geometry = torch.tensor([self.stride, self.padding, 1])
        return type(self)(self.sign.threshold, self.weight, geometry)

    def forward(self, x: Tensor) -> Tensor:
        weight = binary_weight(self.weight) if self.binary else self.weight
        return functional.conv2d(self.sign(x), weight, None, self.stride, self.padding)

    def extra_repr(self) -> str:
        bits = "one-bit" if self.binary else "real"
        return f"{tuple(self.weight.shape)}, {bits} weights, stride {self.stride}, padding {self.padding}"


@torch.no_grad()
def fused_threshold(activation: RPReLU, threshold: Tensor) -> Tensor:
    """The threshold t' with sign(x, t') = sign(activation(x), threshold) for every x, bit for bit.

    Rounding is monotone, so that the activation as computed in float32 is too, and a bisection over all finite float32
    numbers gives the largest x whose value is not above the threshold; the smallest of all where every other is.

    Args:
        activation: with slopes of 0 or above.
        threshold: float, shape (C,).

    Raises:
        ValueError: if a slope is below 0, or no number: then the activation is not monotone.
    """
    if not (activation.slope >= 0).all():
        raise ValueError(f"a slope of {float(activation.slope.min()):g} is below 0, so no one threshold is enough")
    ends = _order(torch.tensor([torch.finfo(torch.float32).min, torch.inf])).tolist()
    low, high = (torch.full(threshold.shape, end, dtype=torch.int64) for end in ends)
    while (high - low > 1).any():
        middle = (low + high) // 2
        above = activation(_unordered(middle).view(1, -1, 1, 1)).view(-1) > threshold.float()
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return _unordered(low)


def _order(x: Tensor) -> Tensor:
    """Float32 numbers as integers of the same order, int64."""
    bits = x.view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _unordered(order: Tensor) -> Tensor:
    """The inverse of :func:`_order`."""
    bits = torch.where(order < 0, -order - 2**31, order)
    return bits.int().view(torch.float32)
