"""Which bits of x + t a sign test reads, and what two parties make of them; whatever finds the carry of the two words.

All that x + t is proven to need, and so exactly, unless the config reads calibrated windows and the operation has one.
A window's upper end is exact while x keeps to its limit; past it, the bits that are left may say either sign. Its lower
end, which ``gc-stochastic`` and ``ot`` read, has the faults of :class:`~deepreshape.private.arith.drelu.Window`: values
within 2^low of the threshold may count as being on its other side, the nearer the likelier, in the mode's direction.
Fixed numbers of low bits (``drop``) are for ReLUs: they know nothing of how fine a sign's input is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deepreshape.private.arith.drelu import MODES, Window
from deepreshape.private.arith.drelu import Sign as SignTest
from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.program.ops import Integers, Sign
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig

__all__ = ["replayed", "thresholds_of", "window_of"]


def window_of(modulus: Ring | Field, op: Sign, config: ReluConfig) -> Window:
    """The sign test of an operation.

    Raises:
        ValueError: over a field.
    """
    if isinstance(modulus, Field):
        raise ValueError(f"signs are computed over a ring, not over {modulus}; use Ring(bits)")
    if not (config.window and op.calibrated):
        return Window(modulus, 0, op.high or modulus.bits)
    low = 0 if config.protocol == "gc-sign" else op.low
    # without low bits the modes differ at 0 alone, whose sign is -1
    return Window(modulus, low, op.calibrated, config.mode if low else MODES[0])


def replayed(test: SignTest, x: Integers, client: Words) -> Integers:
    """+1 and -1 as both parties have them, for x + t = ``x`` of which the client's share is ``client``."""
    server = test.modulus.sub(test.modulus.encode(x), client)
    return np.where(test.positive(test.client_word(client), test.server_word(server)), 1, -1).astype(np.int64)


def thresholds_of(program: Program, counts: Mapping[str, int]) -> dict[str, Words]:
    """At the server: t of each element of layers of signs with so many, uint64 (count,), by the layer's name."""
    by_row = {name: program.weights[name].weight for name in counts}
    return {name: program.modulus.encode(np.repeat(row, counts[name] // len(row))) for name, row in by_row.items()}
