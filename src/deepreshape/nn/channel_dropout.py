"""Channel dropout: whole channels of a layer's output lose their value at random, each image its own."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["MOST", "channel_dropout"]

MOST = 0.5
"""The largest rate that is drawn."""

Noise = Literal["gaussian", "bernoulli"]


@contextmanager
def channel_dropout(
    model: nn.Module, rates: Mapping[str, float], generator: torch.Generator, noise: Noise = "gaussian"
) -> Generator[None]:
    """While this lasts, the outputs of some modules are multiplied by noise of mean 1, by image and channel.

    Args:
        model: its modules are looked up by path.
        rates: p by path, read at each forward pass; 0 leaves a layer alone.
        generator: of the noise, on the CPU.
        noise: ``"gaussian"``, of variance p / (1 - p), or ``"bernoulli"``: 0 with probability p, else 1 / (1 - p).

    Raises:
        AttributeError: if the model has no module of a path.
    """

    def drop(path: str, out: Tensor) -> Tensor | None:
        rate = min(rates[path], MOST)
        if not rate:
            return None
        shape = out.shape[:2]
        if noise == "gaussian":
            factor = 1 + (rate / (1 - rate)) ** 0.5 * torch.randn(shape, generator=generator)
        else:
            factor = (torch.rand(shape, generator=generator) >= rate) / (1 - rate)
        return out * factor.to(out.device, out.dtype)[:, :, None, None]

    handles = [
        model.get_submodule(path).register_forward_hook(lambda *call, at=path: drop(at, call[2])) for path in rates
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
