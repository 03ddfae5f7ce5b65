"""Tensors worked on a few samples at a time, as a training step of sums and products is bound by memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["chunks", "parts"]

CHUNK = 1 << 16
"""Values worked on at a time, few enough for a cache."""


def parts(x: Tensor) -> tuple[Tensor, ...]:
    """Views of a tensor (N, ...), each of some samples and about :data:`CHUNK` values."""
    return x.split(max(1, CHUNK * len(x) // x.numel())) if x.numel() else (x,)


def chunks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The same samples of each tensor, a few at a time, in float32 at least."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    for few in zip(*map(parts, tensors), strict=True):
        yield [part.to(dtype) for part in few]
