"""The stochastic ReLU of Circa (Ghodsi et al., NeurIPS 2021) in the clear: what it gives, and how often it is wrong.

The faults come from the client's share, which is uniform; here it is drawn. Over the ring only the dropped bits are to
blame; over a field also a wrap of the two shares, with probability |x| / p. ``sign.py`` states the tests; the two
parties of ``relu_sign.py`` run them, and ``nn.StochasticReLU`` is the same model for training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.drelu import Mode, Window, Wrap
from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.arith.rng import Randomness


def stochastic_relu(
    x: NDArray[np.int64], modulus: Ring | Field, drop: int, mode: Mode = "pos-zero", *, rng: Randomness | None = None
) -> NDArray[np.int64]:
    """``x`` where it counts as positive, else zero.

    Args:
        x: integers of any shape.
        modulus: where they are shared.
        drop: low bits that the sign test leaves out: k in the paper.
        mode: which small values it may be wrong about.
        rng: draws the shares; by default from the operating system.

    Raises:
        ValueError: if fewer than two bits are left.
        OverflowError: if a value does not fit the test.
    """
    sign = _sign(modulus, drop, mode)
    if x.size and int(np.abs(x).max()) > sign.max_input:
        raise OverflowError(
            f"values up to {np.abs(x).max()} exceed what {sign} can test: {sign.max_input}; widen the modulus"
        )
    client = modulus.random(x.shape, rng or Randomness())
    server = modulus.sub(modulus.encode(x), client)
    return np.where(sign.positive(sign.client_word(client), sign.server_word(server)), x, 0)


def fault_probability(
    x: NDArray[np.int64], modulus: Ring | Field, drop: int, mode: Mode = "pos-zero"
) -> NDArray[np.float64]:
    """How often :func:`stochastic_relu` differs from max(x, 0): exact, by counting shares; of the shape of ``x``.

    Over the ring (2^k - |x|) / 2^k for small x of the mode's sign. Over a field |x| shares of p wrap, and of the others
    about as many in 2^k are wrong; how many exactly depends on where the last block of 2^k shares ends.
    """
    sign = _sign(modulus, drop, mode)
    block, size = 1 << drop, np.abs(x)
    small = (x > 0 if mode == "pos-zero" else x < 0) & (size < block)
    if isinstance(sign, Window):
        return np.where(small, (block - size) / block, 0.0)
    p = sign.modulus.order
    # of t: below p - x for pos-zero, where t mod 2^k < 2^k - x; up to p for neg-pass, where t mod 2^k >= |x|
    shares = p - size if mode == "pos-zero" else np.full_like(size, p)
    blocks, rest = shares // block, shares % block
    last = np.minimum(rest, block - size) if mode == "pos-zero" else np.maximum(rest - size, 0)
    return (size + np.where(small, blocks * (block - size) + last, 0)) / p


def _sign(modulus: Ring | Field, drop: int, mode: Mode) -> Window | Wrap:
    if isinstance(modulus, Ring):
        return Window(modulus, drop, modulus.bits, mode)
    return Wrap(modulus, drop, mode)
