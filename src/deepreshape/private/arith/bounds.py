"""Sizes that several rooms keep to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SUM_BITS = 52
"""Absolute weights of one output may sum to 2^52: what products of integers in double precision can add up."""


def largest_sum(weight: NDArray[np.integer]) -> int:
    """The largest sum of the absolute weights of one output, (outputs, ...)."""
    return int(np.abs(weight.reshape(len(weight), -1)).sum(1, dtype=np.int64).max())
