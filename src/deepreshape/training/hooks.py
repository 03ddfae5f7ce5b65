"""What may watch and steer a training run from outside: a search for masks, for one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

__all__ = ["Hook"]


class Hook(Protocol):
    """What something adds to the training of the network it is in; a subclass overrides what it needs.

    Whatever it knows lies in parameters and buffers of that network, so that a checkpoint holds all of it.
    """

    def gates(self) -> list[nn.Parameter]:
        """Parameters of their own kind: trained without decay, at ``gate_lr``."""
        return []

    @property
    def gate_lr(self) -> float:
        """Peak learning rate of the gates, on the recipe's schedule."""
        return 0.0

    def before(self, step: int, steps: int) -> None:
        """Called before each step's forward pass, with the number of steps done."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss."""
        return None

    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        """Called after each step with this process's part of the batch, normalised, and its labels."""

    def over(self) -> bool:
        """Whether the run ends before the recipe does."""
        return False
