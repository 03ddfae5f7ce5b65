"""Parameters with which nothing can be computed: values that are not finite, and negative variances."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["require_finite"]


@torch.no_grad()
def require_finite(model: nn.Module) -> None:
    """See that every parameter and buffer of ``model`` is a finite number, and every running variance at least 0.

    Raises:
        ValueError: naming the tensor by its path, and how many of its values are at fault.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or not tensor.is_floating_point() or isinstance(tensor, nn.UninitializedParameter):
            continue
        if wrong := int((~torch.isfinite(tensor)).sum()):
            raise ValueError(
                f"{name}: {wrong:,} of its {tensor.numel():,} values are NaN or infinite; the training that made it "
                "diverged, take an earlier checkpoint"
            )
        if name.rpartition(".")[2] == "running_var" and (wrong := int((tensor < 0).sum())):
            raise ValueError(
                f"{name}: {wrong:,} of its {tensor.numel():,} variances are negative, the least is "
                f"{float(tensor.min()):.3g}; a batch norm takes the square root of them"
            )
