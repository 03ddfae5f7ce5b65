"""HerPN: a quadratic in place of a ReLU that trains as well as one (AESPA: Park et al., arXiv 2201.06699)."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, library, nn
from torch.nn.functional import softshrink

from deepreshape.nn.chunks import chunks, parts
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


def _rows(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) or vectors (N, C) as (values, C); a view where channels are last in memory."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_rows`, channels last in memory."""
    return rows.view(len(like), *like.shape[2:], like.shape[1]).movedim(-1, 1)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance by channel, float64, (2, C), of the bases x and (x^2 - 1) / sqrt(2) over rows (values, C).

    In two passes: the mean of squares less the square of the mean would lose the variance of what lies far from 0.
    """
    sums = torch.zeros(2, rows.shape[1], dtype=torch.float64, device=rows.device)
    for (values,) in chunks(rows):
        sums += torch.stack([values.sum(0), values.square().sum(0)])
    first, second = sums / len(rows)
    apart = torch.zeros_like(sums)
    for (values,) in chunks(rows):
        square = values.square().sub_(second.to(values.dtype)).square_().sum(0)
        apart += torch.stack([(values - first.to(values.dtype)).square_().sum(0), square])
    halved = torch.tensor([[1.0], [0.5]], dtype=torch.float64, device=rows.device)
    return torch.stack([first, (second - 1) / math.sqrt(2)]), apart * halved / len(rows)


class _BatchHerPN(torch.autograd.Function):
    """scale (f1 N(h1) + f2 N(h2)) + shift, each basis normalised by these moments, which are those of ``x``.

    Given the moments it is one quadratic a channel; the gradient of ``x`` is g (a + b x) + k0 + k1 x + k3 x^3, whose
    coefficients follow from the sums of g, g x and g x^2. So a step is a few passes over chunks that stay in the
    cache; two batch norms and their sum take some fifteen over memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, means: Tensor, variances: Tensor) -> Tensor:
        rows = _rows(x)
        out = torch.empty_like(rows)
        coefficients = quadratic(scale.double(), shift.double(), means, variances)
        for (values,), part in zip(chunks(rows), parts(out), strict=True):
            constant, linear, square = coefficients.to(values.dtype).unbind(1)
            part.copy_(torch.addcmul(constant, values, torch.addcmul(linear, values, square)))
        ctx.save_for_backward(x, scale, means, variances)
        return _maps(out, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scale, means, variances = ctx.saved_tensors
        rows, outer = _rows(x), _rows(grads[0])
        sums = torch.zeros(3, x.shape[1], dtype=torch.float64, device=x.device)
        for values, g in chunks(rows, outer):
            first = g * values
            sums += torch.stack([g.sum(0), first.sum(0), first.mul_(values).sum(0)])
        total = sums[0]
        by_basis = torch.stack([sums[1], (sums[2] - total) / math.sqrt(2)]) - means * total
        inverse = (variances + EPSILON).rsqrt()
        to_scale = (torch.tensor([[LINEAR], [SQUARE]]).to(inverse) * inverse * by_basis).sum(0)
        # d/d basis = rate (g - mean(g) - N(basis) mean(g N(basis))), and the second basis has the slope sqrt(2) x
        rates = scale.double() * torch.tensor([[LINEAR], [SQUARE * math.sqrt(2)]]).to(inverse) * inverse
        shares = by_basis * inverse.square() / len(rows)
        constants = -rates * (total / len(rows) - means * shares)
        third = -rates[1] * shares[1] / math.sqrt(2)
        first = constants[1] - rates[0] * shares[0] - third
        terms = torch.stack([rates[0], rates[1], constants[0], first, third])
        to_x = torch.empty_like(rows)
        for (values, g), part in zip(chunks(rows, outer), parts(to_x), strict=True):
            a, b, k0, k1, k3 = terms.to(values.dtype)
            slope = torch.addcmul(k1, values.square(), k3).addcmul_(g, b)
            part.copy_(torch.addcmul(k0, g, a).addcmul_(values, slope))
        return _maps(to_x, x), to_scale.to(scale.dtype), total.to(scale.dtype), None, None


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
    watch: Escape | None = None
    """What looks at the inputs in training (:func:`escape`)."""

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
        rows = _rows(x.detach())
        with torch.no_grad():
            means, variances = _moments(rows)
            self.means.lerp_(means.to(self.means), MOMENTUM)
            self.variances.lerp_((variances * (len(rows) / max(1, len(rows) - 1))).to(self.variances), MOMENTUM)
        if self.watch:
            self.watch.see(x, means[0], variances[0])
        return _BatchHerPN.apply(x, self.scale, self.shift, means, variances)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        return f"{len(self.scale)} channels"


def _beyond(x: Tensor, mean: Tensor, inverse: Tensor, limit: float) -> Iterator[Tensor]:
    """By chunk of values (values, C), the deviations beyond the limit, with their sign."""
    for (values,) in chunks(_rows(x)):
        yield softshrink((values - mean.to(values.dtype)).mul_(inverse.to(values.dtype)), limit)


class _Excess(torch.autograd.Function):
    """The mean of (|x - mean| / deviation - limit)^2 where it is beyond; mean and deviation have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, limit: float) -> Tensor:
        ctx.limit, inverse = limit, (variance + EPSILON).rsqrt()
        ctx.save_for_backward(x, mean, inverse)
        total = torch.stack([part.square_().sum() for part in _beyond(x, mean, inverse, limit)]).sum()
        return total.float() / x.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, mean, inverse = ctx.saved_tensors
        to_x = torch.empty_like(_rows(x))
        for part, beyond in zip(parts(to_x), _beyond(x, mean, inverse, ctx.limit), strict=True):
            part.copy_(beyond.mul_((2 * grads[0] / x.numel() * inverse).to(beyond.dtype)))
        return _maps(to_x, x), None, None, None


class Escape:
    """How far inputs of squares were from their channel's mean in the forward passes since it was last read."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._sites: list[Tensor] = []

    def see(self, x: Tensor, mean: Tensor, variance: Tensor) -> None:
        """A site's input, with its mean and variance by channel in this batch, (C,)."""
        self._sites.append(_Excess.apply(x, mean, variance, self.limit))  # pyright: ignore[reportArgumentType]

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
    sites = [site for site in model.modules() if isinstance(site, HerPN)]
    try:
        for site in sites:
            site.watch = seen
        yield seen
    finally:
        for site in sites:
            site.watch = None
