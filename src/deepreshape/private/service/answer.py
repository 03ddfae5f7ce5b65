"""What every private answer says beside what it answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PrivateAnswer"]


@dataclass(frozen=True, kw_only=True)
class PrivateAnswer:
    """The answer to one image.

    Attributes:
        seconds, bytes: of the inference, ``{"offline", "online"}``, or ``{"online"}`` where the rest was done before.
        agree: whether the private result equals the plain program's, bit for bit; None where nobody can compare them.
        logits: float64, (classes,), or (classes, h, w) of the coarser map.
        done: what was done to the image to fit the network, in words.
    """

    seconds: dict[str, float]
    bytes: dict[str, int]
    agree: bool | None
    logits: NDArray[np.float64]
    done: str = ""

    @property
    def took(self) -> str:
        """Its cost, and whether it came out right, in words."""
        cost = ", ".join(
            f"{phase} {seconds:.2f} s and {self.bytes[phase] / 1e6:.2f} MB" for phase, seconds in self.seconds.items()
        )
        agrees = {True: "; equals the plain program bit for bit", False: "; DIFFERS from the plain program", None: ""}
        return f"{cost}{agrees[self.agree]}"
