"""Elements of a modulus that hide a message, made of labels: a one-time pad under what one party may know."""

from __future__ import annotations

import numpy as np

from deepreshape.private.arith.ring import Modulus, Ring, Words
from deepreshape.private.crypto.gc.halfgates import Context, hash_labels


def pads(labels: Words, context: Context, tweak: str, modulus: Modulus) -> Words:
    """A pad for every label (n, 2): uint64 (n,). Context and tweak belong to this use alone (``hash_labels``).

    Over a ring pads are bits of the hash; over a field they are its 128 bits reduced, within 2^-65 of uniform.
    """
    hashed = hash_labels(labels, context, tweak)
    if isinstance(modulus, Ring):
        return hashed[:, 0] & np.uint64(modulus.order - 1)
    order = np.uint64(modulus.order)
    return modulus.add(hashed[:, 0] % order, modulus.scale(hashed[:, 1] % order, 1 << 64))
