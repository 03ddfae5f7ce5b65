"""Values of few bits in few bytes, for wire and store: a stream of bits for each field, one after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.crypto.backend import engine

Field = tuple[Words, int]
"""Values, uint64 (n,), and how many of their low bits count, 1 to 64."""


def pack(fields: Iterable[Field]) -> Bits:
    """The streams of all fields: uint8 of :func:`packed_bytes`."""
    return np.concatenate([engine().pack(values, bits) for values, bits in fields])


def unpack(data: memoryview | Bits, widths: Sequence[int], count: int) -> list[Words]:
    """The inverse, for ``count`` values a field; ``data`` has the length that :func:`packed_bytes` says."""
    octets, at, fields = np.frombuffer(data, np.uint8), 0, list[Words]()
    for bits in widths:
        size = packed_bytes([bits], count)
        fields.append(engine().unpack(octets[at : at + size], bits, count))
        at += size
    return fields


def packed_bytes(widths: Iterable[int], count: int) -> int:
    """Bytes of fields of these widths."""
    return sum(-(-bits * count // 8) for bits in widths)
