"""Stochastic ReLUs (Circa) in training and evaluation."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deepreshape.nn.masks import MaskedReLU
from deepreshape.nn.polynomial import PolynomialReLU
from deepreshape.nn.swap import swap

__all__ = ["Faults", "StochasticReLU", "faulty"]


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
            raise ValueError(f"unknown mode {self.mode!r}; known are pos-zero and neg-pass")

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
            raise ValueError(f"cannot read {text!r} as a stochastic ReLU; write stochastic:drop=12,fraction=20")
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
        values = exact + wrong
        return values if self.mask is None else torch.where(self.mask, values, x)

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
    if any(isinstance(module, PolynomialReLU) for module in model.modules()):
        raise ValueError(f"{faults} is for ReLUs that run privately, and polynomials in their place do not")

    def stochastic(_: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.ReLU | MaskedReLU):
            return StochasticReLU(faults, module.mask if isinstance(module, MaskedReLU) else None, generator)
        return None

    with swap(model, stochastic):
        yield
