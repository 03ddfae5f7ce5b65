"""Small sign tests of every kind, and every share of every value that one takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.drelu import MODES, Sign, Window, Wrap
from deepreshape.private.arith.ring import Bits, Field, Ring, Words

WINDOWS = [
    Window(Ring(bits), low, high, mode)
    for bits in (2, 3, 6)
    for high in range(2, bits + 1)
    for low in range(high - 1)
    for mode in MODES
]
PRIMES = [Field(p) for p in (3, 5, 7, 13, 31, 61)]
WRAPS = [Wrap(field, low, mode) for field in PRIMES for low in range(field.bits - 1) for mode in MODES]


def every_share(sign: Sign) -> tuple[NDArray[np.int64], Words, Bits]:
    """x, the client's share, and the sign that the words give."""
    modulus = sign.modulus
    values = np.arange(-sign.max_input, sign.max_input + 1)
    x, client = (grid.reshape(-1) for grid in np.meshgrid(values, np.arange(modulus.order, dtype=np.uint64)))
    server = modulus.sub(modulus.encode(x), client)
    return x, client, sign.positive(sign.client_word(client), sign.server_word(server))
