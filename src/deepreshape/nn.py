"""The waist of the package: every activation it knows, and the only code that knows how a mask is stored.

A network has *ReLU sites*. What sits at a site is one of ``torch.nn.ReLU`` (kept whole), ``torch.nn.Identity``
(removed), :class:`MaskedReLU` (kept at some positions), :class:`PolynomialReLU` (kept at some, a polynomial elsewhere)
or, with the convolution before it, :class:`ReuseConv`. For a while, :func:`faulty` puts a :class:`StochasticReLU`
there, and a search for a mask a :class:`GatedReLU`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, library, nn

__all__ = [
    "MASKED",
    "Faults",
    "GatedReLU",
    "MaskedReLU",
    "PolynomialReLU",
    "ReuseConv",
    "ReuseForm",
    "StochasticReLU",
    "faulty",
    "masked_relu",
    "reuse_widths",
]


@library.custom_op("deepreshape::masked_relu", mutates_args=())
def masked_relu(x: Tensor, mask: Tensor) -> Tensor:
    """ReLU where ``mask`` is true, the identity elsewhere.

    One operator of its own, so that a trace sees the mask and counts what is kept.

    Args:
        x: any floating dtype, shape (N, C, H, W).
        mask: bool, shape (C, H, W).

    Returns:
        A new tensor of the shape and dtype of ``x``.
    """
    return torch.maximum(x, _floor(x, mask))


@masked_relu.register_fake
def _(x: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    # the next layer keeps its input anyway, so that keeping the output takes no memory
    ctx.save_for_backward(inputs[1], output)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    mask, out = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    return grad * (out > _floor(out, mask)), None


masked_relu.register_autograd(_backward, setup_context=_save)


def _floor(x: Tensor, mask: Tensor) -> Tensor:
    """What a masked ReLU lets nothing fall below: 0 where the ReLU stays, minus infinity elsewhere."""
    return _laid_out_like(x, torch.where(mask, 0.0, -torch.inf))


def _laid_out_like(x: Tensor, positions: Tensor) -> Tensor:
    """A tensor over the positions of a map, in the dtype and memory layout of a batch of maps."""
    batch_of_one = positions.to(x.dtype)[None]
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return batch_of_one.contiguous(memory_format=torch.channels_last) if last else batch_of_one


class MaskedReLU(nn.Module):
    """A ReLU that is kept at some positions of its map only.

    The mask is a buffer: never trained, saved with the weights, the same for every input.

    Args:
        mask: bool, shape (C, H, W); true where the ReLU stays.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool or mask.dim() != 3:
            raise ValueError(f"a mask is a bool tensor of shape (C, H, W), not {mask.dtype} of {tuple(mask.shape)}")
        self.register_buffer("mask", mask.clone())

    def forward(self, x: Tensor) -> Tensor:
        return masked_relu(x, self.mask)

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {self.mask.numel()} kept"


def _polynomial(x: Tensor, coefficients: Tensor) -> Tensor:
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
        return torch.where(self.mask, masked_relu(x, self.mask), _polynomial(x, self.coefficients))

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {self.mask.numel()} kept"


MASKED = (MaskedReLU, PolynomialReLU)
"""What holds a mask where a search is over."""


class _Gate(torch.autograd.Function):
    """x + g relu(-x), keeping only x and g for the way back."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate)
        return torch.addcmul(x, _laid_out_like(x, gate), (-x).clamp(min=0))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, gate = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        (grad,) = grads
        through = torch.addcmul(grad, _laid_out_like(x, gate).neg(), grad * (x < 0))
        at_gate = (grad * x.clamp(max=0)).sum(0, dtype=gate.dtype).neg()
        return through, at_gate.sum_to_size(gate.shape)


class GatedReLU(nn.Module):
    """A ReLU with a trained gate g at each position: g relu(x) + (1 - g) x (SNL, equation 3).

    It stands at a site while a mask is searched for; a :class:`MaskedReLU` takes its place afterwards.

    Args:
        mask: bool, shape (C, H, W); where it is false there is no ReLU to begin with.
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
        line = _polynomial(x, self.coefficients)
        return line + _laid_out_like(x, gate) * (x.relu() - line)


@dataclass(frozen=True)
class Faults:
    """How a stochastic ReLU is wrong (Circa: Ghodsi et al., NeurIPS 2021), of values in fixed point.

    Attributes:
        drop: low bits that the sign test leaves out: k in the paper.
        fraction: bits behind the binary point of a ReLU's input, that is of the accumulators of an integer program.
        mode: ``"pos-zero"`` zeroes small positives with probability (2^k - x) / 2^k, ``"neg-pass"`` passes small
            negatives with probability (2^k - |x|) / 2^k; x in units of the last place.
        order: the prime of a field, where signs are also wrong with probability |x| / order; 0 for a ring.
    """

    drop: int
    fraction: int
    mode: Literal["pos-zero", "neg-pass"] = "pos-zero"
    order: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 40 or not 0 <= self.fraction <= 60 or self.order < 0:
            raise ValueError(f"{self}: it can drop 0 to 40 bits of values with 0 to 60 fraction bits")
        if self.mode not in ("pos-zero", "neg-pass"):
            raise ValueError(f"{self.mode!r} is no mode; known are pos-zero and neg-pass")

    @classmethod
    def parse(cls, text: str) -> Faults:
        """From a word like ``stochastic:drop=12,fraction=20,neg-pass``; only the mode and the order may be left out.

        Raises:
            ValueError: with the text, if it is none.
        """
        name, _, rest = text.partition(":")
        words = [word.partition("=") for word in rest.split(",")]
        numbers = {key: int(value) for key, _, value in words if value.isdecimal()}
        modes = [key for key, _, value in words if not value]
        if name != "stochastic" or not {"drop", "fraction"} <= set(numbers) <= {"drop", "fraction", "order"}:
            raise ValueError(f"{text!r} is no stochastic ReLU; write stochastic:drop=12,fraction=20")
        if len(numbers) + len(modes) < len(words) or len(modes) > 1:
            raise ValueError(f"{text!r} has settings that are not known; write stochastic:drop=12,fraction=20,neg-pass")
        return cls(numbers["drop"], numbers["fraction"], *modes, order=numbers.get("order", 0))  # pyright: ignore[reportArgumentType]


class StochasticReLU(nn.Module):
    """A ReLU whose sign is sometimes wrong, in training and evaluation; its gradient is that of the ReLU.

    Args:
        faults: how wrong it is; the same model as ``private/stochastic.py``.
        mask: bool, shape (C, H, W); true where there is a ReLU. Left out, it is everywhere.
        generator: draws the faults; by default the global one.
    """

    mask: Tensor | None

    def __init__(self, faults: Faults, mask: Tensor | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.faults = faults
        self.generator = generator
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        exact = x.clamp(min=0)
        with torch.no_grad():
            wrong = torch.where(self.positive(x), x, 0) - exact
        found = exact + wrong
        return found if self.mask is None else torch.where(self.mask, found, x)

    def positive(self, x: Tensor) -> Tensor:
        """Whether each element counts as positive this time; bool."""
        faults, block = self.faults, 1 << self.faults.drop
        units = torch.round(torch.ldexp(x.double(), torch.tensor(faults.fraction, device=x.device)))
        drawn = torch.randint(block, x.shape, generator=self.generator, device=x.device)
        counts = units > drawn if faults.mode == "pos-zero" else units + block > drawn
        if not faults.order:
            return counts
        chance = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=torch.float64)
        return torch.where(chance * faults.order < units.abs(), units < 0, counts)

    def extra_repr(self) -> str:
        return str(self.faults)


@contextmanager
def faulty(model: nn.Module, faults: Faults, generator: torch.Generator | None = None) -> Generator[None]:
    """Inside, every ReLU of ``model`` is stochastic, and afterwards as it was. Parameters and buffers keep their names.

    Args:
        model: changed in place, for a while.
        faults: how wrong the signs are.
        generator: draws them; on the model's device.

    Raises:
        ValueError: if it has polynomials, which no protocol of ours computes.
    """
    if any(isinstance(site, PolynomialReLU) for site in model.modules()):
        raise ValueError(f"{faults} is for ReLUs that run privately, and polynomials in their place do not")
    sites = {name: site for name, site in model.named_modules() if isinstance(site, nn.ReLU | MaskedReLU)}
    for name, site in sites.items():
        mask = site.mask if isinstance(site, MaskedReLU) else None
        model.set_submodule(name, StochasticReLU(faults, mask, generator))
    try:
        yield
    finally:
        for name, site in sites.items():
            model.set_submodule(name, site)


@dataclass(frozen=True)
class ReuseForm:
    """How a reused ReLU is wired (DeepReShape section 4, "ReLU-reuse"); what the paper leaves open is an option.

    Attributes:
        kind: ``"fixed"``: always three groups of channels, of which one has the ReLU, one is passed on unchanged and
            one is convolved without ReLU. ``"proportional"``: as many equal groups as the reuse factor, each with a
            convolution of its own, the first with the ReLU.
        passed: share of the channels outside the ReLU group that is passed on unchanged (``"fixed"`` only).
        mix: whether a 1x1 convolution mixes the groups afterwards (not after a 1x1, where it would cost more than it
            joins, and the next convolution sees all groups anyway).
        chained: whether a group's input gets the previous group's output added (as in Res2Net).
    """

    kind: Literal["fixed", "proportional"] = "fixed"
    passed: float = 0.5
    mix: bool = True
    chained: bool = False


class ReuseConv(nn.Module):
    """A convolution, its batch norm and its ReLU with only every ``factor``-th ReLU left.

    Replaces conv-batchnorm-ReLU of ``in_channels`` to ``out_channels``. The channels are split in groups, each
    convolved on its own; the first group, ``out_channels // factor`` wide, keeps its ReLU. MACs fall with the groups.

    Args:
        in_channels, out_channels, kernel, stride: of the convolution replaced; padding is ``kernel // 2``.
        factor: by how much the ReLU count is divided; at least 2.
        form: the wiring.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, factor: int, form: ReuseForm
    ) -> None:
        super().__init__()
        self.in_widths, self.out_widths, self.passed = reuse_widths(in_channels, out_channels, stride, factor, form)
        same = stride == 1 and in_channels == out_channels
        self.chained = form.chained and same
        self.groups = nn.ModuleList()
        for index, (wide_in, wide_out) in enumerate(zip(self.in_widths, self.out_widths, strict=True)):
            if index == 1 and self.passed:
                self.groups.append(nn.Identity())
                continue
            layers: list[nn.Module] = [
                nn.Conv2d(wide_in, wide_out, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(wide_out),
            ]
            if index == 0:
                layers.append(nn.ReLU(inplace=True))
            self.groups.append(nn.Sequential(*layers))
        self.mix: nn.Module = nn.Identity()
        if form.mix and kernel > 1:
            self.mix = nn.Sequential(nn.Conv2d(out_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.in_widths, dim=1)
        pieces: list[Tensor] = []
        for index, group in enumerate(self.groups):
            part = parts[index]
            if self.chained and pieces:
                wide, shared = self.in_widths[index], min(self.in_widths[index], self.out_widths[index - 1])
                part = part + nn.functional.pad(pieces[-1][:, :shared], (0, 0, 0, 0, 0, wide - shared))
            pieces.append(group(part))
        return self.mix(torch.cat(pieces, dim=1))


def reuse_widths(
    in_channels: int, out_channels: int, stride: int, factor: int, form: ReuseForm
) -> tuple[list[int], list[int], int]:
    """How :class:`ReuseConv` splits its channels: widths of the groups' inputs and outputs, and what is passed on.

    Raises:
        ValueError: if the channels cannot be split so often.
    """
    kept = out_channels // factor
    if factor < 2 or kept < 1:
        raise ValueError(f"cannot reuse ReLUs {factor} times over {out_channels} channels; 2 to {out_channels} works")
    # a shape change leaves nothing that could be passed on unchanged
    same = stride == 1 and in_channels == out_channels
    widths = _group_widths(out_channels, kept, factor, form, same)
    passed = widths[1] if same and form.kind == "fixed" else 0
    return widths if same else _split_like(in_channels, widths), widths, passed


def _group_widths(channels: int, kept: int, factor: int, form: ReuseForm, same: bool) -> list[int]:
    if form.kind == "proportional":
        return [kept + (channels - kept * factor if group == factor - 1 else 0) for group in range(factor)]
    passed = min(int((channels - kept) * form.passed), channels - kept - 1) if same else 0
    return [width for width in (kept, passed, channels - kept - passed) if width > 0]


def _split_like(channels: int, widths: list[int]) -> list[int]:
    """``channels`` split in the proportions of ``widths``, each part at least one wide, adding up exactly."""
    if channels < len(widths):
        raise ValueError(f"{channels} input channels cannot be split in {len(widths)} groups")
    total, parts, left = sum(widths), [], channels
    for index, width in enumerate(widths[:-1]):
        part = max(1, min(channels * width // total, left - (len(widths) - 1 - index)))
        parts.append(part)
        left -= part
    return [*parts, left]
