"""ReLU reuse (DeepReShape, section 4): the convolution and the ReLUs that its channels share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["ReuseConv", "ReuseForm", "reuse_widths"]


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
    """

    kind: Literal["fixed", "proportional"] = "fixed"
    passed: float = 0.5
    mix: bool = True


class ReuseConv(nn.Module):
    """A convolution, its batch norm and its ReLU with only every ``factor``-th ReLU left.

    Replaces conv-batchnorm-ReLU of ``in_channels`` to ``out_channels``. The channels are split in groups, each
    convolved on its own; the first group, ``out_channels // factor`` wide, keeps its ReLU. MACs fall with the groups,
    before the 1x1 convolution that mixes them.

    Args:
        in_channels, out_channels, kernel, stride: of the convolution replaced; padding keeps the size at stride 1.
        factor: by how much the ReLU count is divided; at least 2.
        form: the wiring.
        dilation: of the convolution replaced.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        factor: int,
        form: ReuseForm,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.in_widths, self.out_widths, self.passed = reuse_widths(in_channels, out_channels, stride, factor, form)
        self.groups = nn.ModuleList()
        for index, (wide_in, wide_out) in enumerate(zip(self.in_widths, self.out_widths, strict=True)):
            if index == 1 and self.passed:
                self.groups.append(nn.Identity())
                continue
            layers: list[nn.Module] = [
                nn.Conv2d(wide_in, wide_out, kernel, stride, dilation * (kernel // 2), dilation, bias=False),
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
        return self.mix(torch.cat([group(part) for group, part in zip(self.groups, parts, strict=True)], dim=1))


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
