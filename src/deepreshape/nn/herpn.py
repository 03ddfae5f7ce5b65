"""HerPN: a quadratic in place of a ReLU that trains as well as one (AESPA: Park et al., arXiv 2201.06699)."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, library, nn
from torch.nn.functional import batch_norm

from deepreshape.nn.nonlinearity import Nonlinearity
from deepreshape.nn.polynomial import polynomial

__all__ = ["ESCAPE", "LINEAR", "SQUARE", "Escape", "HerPN", "escape", "herpn", "quadratic"]

LINEAR, SQUARE = 0.5, 1 / math.sqrt(4 * math.pi)
"""Coefficients of a ReLU under Hermite's orthonormal polynomials h1 = x and h2 = (x^2 - 1) / sqrt(2)."""
MOMENTUM, EPSILON = 0.1, 1e-5
ESCAPE = 4.0
"""Deviations from the mean beyond which an input of a square is penalised."""


def quadratic(scale: Tensor, shift: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """The coefficients of 1, x and x squared, (C, 3), of a HerPN with these parameters and statistics."""
    first, second = torch.tensor([[LINEAR], [SQUARE]]).to(means) / (variances + EPSILON).sqrt()
    constant = -first * means[0] - second * (1 / math.sqrt(2) + means[1])
    return torch.stack([scale * constant + shift, scale * first, scale * second / math.sqrt(2)], dim=1)


@library.custom_op("deepreshape::herpn", mutates_args=())
def herpn(x: Tensor, scale: Tensor, shift: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """A HerPN in evaluation, as one operator that a trace sees.

    Args:
        x: any floating dtype, shape (N, C, H, W) or (N, C).
        scale: float, shape (C,).
        shift: float, shape (C,).
        means: of both bases, float, shape (2, C).
        variances: likewise.
    """
    return polynomial(x, quadratic(scale, shift, means, variances))


@herpn.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    return torch.empty_like(x)


class HerPN(Nonlinearity):
    """The first Hermite terms of a ReLU by channel, each normalised (N) by itself: scale (f1 N(h1) + f2 N(h2)) + shift.

    Normalising each basis by its own batch statistics, without parameters of its own, is what keeps a network of
    squares trainable. In evaluation it is one quadratic a channel, computed by one operator that a trace sees. It takes
    the place of a batch norm and the ReLU behind it. Computed in float32 at least: in bfloat16 squares lose what is
    small.

    Args:
        channels: of maps (N, C, H, W) or vectors (N, C).
    """

    kind = "herpn"
    mask = None
    means: Tensor
    variances: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("means", torch.zeros(2, channels))
        self.register_buffer("variances", torch.ones(2, channels))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        module = cls(len(tensors["scale"]))
        module.load_state_dict({name: tensors[name] for name in ("scale", "shift", "means", "variances")})
        return module

    @property
    def coefficients(self) -> Tensor:
        """Shape (C, 3), of 1, x and x squared, in evaluation."""
        return quadratic(self.scale, self.shift, self.means, self.variances)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            if torch.is_grad_enabled():
                return polynomial(x, self.coefficients)
            return herpn(x, self.scale, self.shift, self.means, self.variances)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise RuntimeError("HerPN is normalised by the batch of one process; train it in one")
        with torch.autocast(x.device.type, enabled=False):
            value = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            bases = value, (value * value - 1) / math.sqrt(2)
            first, second = (
                batch_norm(basis, mean, variance, training=True, momentum=MOMENTUM, eps=EPSILON)
                for basis, mean, variance in zip(bases, self.means, self.variances, strict=True)
            )
            shape = -1, *[1] * (x.dim() - 2)
            out = self.scale.view(shape) * (LINEAR * first + SQUARE * second) + self.shift.view(shape)
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.scale)} channels"


class Escape:
    """How far inputs of squares were from their channel's mean in the forward passes since it was last read."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._sites: list[Tensor] = []

    def see(self, x: Tensor) -> None:
        x = x.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        with torch.no_grad():
            variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
            deviation = (variance + EPSILON).sqrt()
        self._sites.append((((x - mean) / deviation).abs() - self.limit).clamp(min=0).square().mean())

    def take(self) -> Tensor:
        """The sum over sites of the mean of (|x - mean| / deviation - limit)^2 where it is beyond; of none it is 0."""
        sites, self._sites = self._sites, []
        return torch.stack(sites).sum() if sites else torch.zeros(())


@contextmanager
def escape(model: nn.Module, limit: float = ESCAPE) -> Generator[Escape]:
    """Inside, inputs of the HerPNs of a network in training are watched.

    A square grows what is large: without a penalty on what escapes, single images of a trained network end in NaN, and
    in a ring they would wrap in silence. Distances are in deviations of the channel in the batch, since a HerPN
    normalises: a limit on the values themselves would be met by smaller weights.
    """
    seen = Escape(limit)

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            seen.see(inputs[0])

    handles = [site.register_forward_pre_hook(watch) for site in model.modules() if isinstance(site, HerPN)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
