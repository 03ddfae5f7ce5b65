"""Gates on a row of numbers: the public half of a gated ReLU network, which a client computes on its own row.

A gated ReLU network is f(x) = sum_j 1[g_j'x >= 0] x'u_j with fixed gates g_j (Dwaraknath, Ergen and Pilanci, NeurIPS
2023, section 2). Written over the products of gates and features, 1[g_j'x >= 0] x_i for all j and i, it is linear: who
knows the gates and the row makes the products, and what is left for the weights is one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gates"]

Real = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gates:
    """Gates, and the scaling of the rows that they look at.

    Attributes:
        mean, scale: float64 (features,); a row is standardised to (row - mean) / scale.
        directions: float64 (gates, features + 1), over the standardised row with a constant 1 behind it.
    """

    mean: Real
    scale: Real
    directions: Real

    def __post_init__(self) -> None:
        features = len(self.mean)
        if self.scale.shape != (features,) or self.directions.shape[1:] != (features + 1,):
            shapes = f"{self.mean.shape}, {self.scale.shape} and {self.directions.shape}"
            raise ValueError(f"mean, scale and directions of shapes {shapes} do not belong to one table")
        if not np.isfinite(self.directions).all() or not (self.scale > 0).all() or not np.isfinite(self.mean).all():
            raise ValueError("gates and scaling must be finite, and scales positive")

    def __len__(self) -> int:
        return len(self.directions)

    def standardise(self, rows: NDArray[np.floating]) -> Real:
        """(N, features) as standardised rows with a constant 1 behind them, (N, features + 1).

        Raises:
            ValueError: if the rows have another number of features, or values that are not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(f"rows of shape {rows.shape}; the gates take (N, {len(self.mean)})")
        if not np.isfinite(rows).all():
            raise ValueError(f"row {int(np.argmin(np.isfinite(rows).all(1)))} has a value that is not finite")
        return np.c_[(rows - self.mean) / self.scale, np.ones(len(rows))]

    def open(self, standard: Real) -> NDArray[np.bool_]:
        """Which gates are open for standardised rows, (N, gates); one whose product is exactly 0 is."""
        return standard @ self.directions.T >= 0

    def expand(self, rows: NDArray[np.floating]) -> Real:
        """The products of gates and features, (N, gates * (features + 1)), the features of one gate side by side."""
        standard = self.standardise(rows)
        return (self.open(standard)[:, :, None] * standard[:, None, :]).reshape(len(rows), -1)
