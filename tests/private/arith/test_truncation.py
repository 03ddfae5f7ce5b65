"""Truncation in the clear: the floor or one unit beside it, for every share of every value."""

from __future__ import annotations

import numpy as np
import pytest

from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.arith.truncation import ShareTruncation


@pytest.mark.parametrize("modulus", [Ring(8), Ring(9), Field(251), Field(257)], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 3, 5])
@pytest.mark.parametrize("reach", [0, 7, 60])
def test_truncation_is_the_floor_or_one_unit_beside(modulus: Ring | Field, shift: int, reach: int) -> None:
    truncation = ShareTruncation(modulus, shift, reach)
    values = np.arange(-reach, (modulus.order - 1) // 2 - truncation.addend + 1)
    x, client = (grid.reshape(-1) for grid in np.meshgrid(values, np.arange(modulus.order, dtype=np.uint64)))
    result = truncation.rounded(x, client)
    off = result - (x >> shift)
    wraps = client.astype(np.int64) > x + truncation.addend
    assert off.max() <= 1
    assert off.min() >= (0 if shift == 0 or isinstance(modulus, Ring) else -1)
    if shift == 0:
        assert not off.any()
        return
    usual = wraps | isinstance(modulus, Ring)
    assert set(off[usual].tolist()) <= {0, 1}
    assert not off[usual & (x % (1 << shift) == 0)].any()
    assert reach or result[x >= 0].min() >= 0
    if isinstance(modulus, Ring):
        assert np.array_equal(result.reshape(modulus.order, -1).sum(0) << shift, values * modulus.order)
