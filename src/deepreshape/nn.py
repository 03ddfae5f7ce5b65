"""The waist of the package: every activation it knows, and the only code that knows how a mask is stored.

A network has *ReLU sites*. What sits at a site is one of ``torch.nn.ReLU`` (kept whole), ``torch.nn.Identity``
(removed), :class:`MaskedReLU` (kept at some positions) or, with the convolution before it, :class:`ReuseConv`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["MaskedReLU", "ReuseConv", "ReuseForm", "masked_relu"]


@torch.library.custom_op("deepreshape::masked_relu", mutates_args=())
def masked_relu(x: Tensor, mask: Tensor) -> Tensor:
    """ReLU where ``mask`` is true, the identity elsewhere.

    One operator of its own, so that a trace sees the mask and counts what is kept.

    Args:
        x: any floating dtype, shape (N, C, H, W).
        mask: bool, shape (C, H, W).

    Returns:
        A new tensor of the shape and dtype of ``x``.
    """
    return torch.where(mask, x.clamp(min=0), x)


@masked_relu.register_fake
def _(x: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, mask = inputs
    ctx.save_for_backward(mask & (x <= 0))


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    (blocked,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    return grad.masked_fill(blocked, 0), None


masked_relu.register_autograd(_backward, setup_context=_save)


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
        kept = out_channels // factor
        if factor < 2 or kept < 1:
            raise ValueError(
                f"cannot reuse ReLUs {factor} times over {out_channels} channels; 2 to {out_channels} works"
            )
        # a shape change leaves nothing that could be passed on unchanged
        same = stride == 1 and in_channels == out_channels
        widths = _group_widths(out_channels, kept, factor, form, same)
        self.passed = widths[1] if same and form.kind == "fixed" else 0
        self.out_widths = widths
        self.in_widths = widths if same else _split_like(in_channels, widths)
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
        pieces: list[Tensor] = []
        for part, group in zip(x.split(self.in_widths, dim=1), self.groups, strict=True):
            if self.chained and pieces:
                shared = min(part.shape[1], pieces[-1].shape[1])
                part = part + nn.functional.pad(pieces[-1][:, :shared], (0, 0, 0, 0, 0, part.shape[1] - shared))
            pieces.append(group(part))
        return self.mix(torch.cat(pieces, dim=1))


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
