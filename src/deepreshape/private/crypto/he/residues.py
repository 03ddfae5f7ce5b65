"""Residues of polynomials: drawn at random, and packed for the wire.

The samplers' distributions are exact: uniform by rejection, never by reduction. On the wire a residue takes whole
half-bytes, as many as its prime or fewer; low bits that are left out come back as the middle of what they may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.errors import ProtocolError

Residues = NDArray[np.uint64]
Buffer = bytes | bytearray | memoryview


def uniform(rng: Randomness, count: int, modulus: int) -> Residues:
    """``count`` residues, uniform modulo ``modulus`` (by rejection), of at most 63 bits."""
    bits = (modulus - 1).bit_length()
    keep = np.uint64((1 << bits) - 1)
    residues = np.zeros(0, np.uint64)
    while len(residues) < count:
        words = np.frombuffer(rng.bytes(8 * (count - len(residues))), np.uint64) & keep
        residues = np.concatenate([residues, words[words < modulus]])
    return residues


def ternary(rng: Randomness, count: int) -> NDArray[np.int64]:
    """``count`` integers, uniform in {-1, 0, 1}."""
    # 255 = 3 * 85, so a byte below 255 modulo 3 is uniform
    digits = np.zeros(0, np.uint8)
    while len(digits) < count:
        draw = np.frombuffer(rng.bytes(count - len(digits)), np.uint8)
        digits = np.concatenate([digits, draw[draw < 255] % 3])
    return digits.astype(np.int64) - 1


_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.int8)


def centred_binomial(rng: Randomness, count: int) -> NDArray[np.int64]:
    """``count`` integers, each the difference of two sums of 21 bits: variance 10.5, as SEAL's own errors."""
    words = np.frombuffer(rng.bytes(6 * count), np.uint8).reshape(2, 3, count).copy()
    words[:, 2] &= 31  # 8 + 8 + 5 = 21 bits
    plus, minus = _ONES[words].sum(1, dtype=np.int64)
    return plus - minus


def flood(rng: Randomness, count: int, bits: int, primes: Sequence[int]) -> Residues:
    """Uniform integers in [-2^bits, 2^bits), as (primes, count) residues."""
    steps = max(0, -(-(bits + 1 - 56) // 4))
    top = np.frombuffer(rng.bytes(8 * count), np.uint64) & np.uint64((1 << (bits + 1 - 4 * steps)) - 1)
    nibbles = np.frombuffer(rng.bytes(steps * count), np.uint8).reshape(steps, count) & 15
    rows: list[Residues] = []
    for prime in primes:
        row = top % np.uint64(prime)
        for nibble in nibbles:  # primes stay below 2^60, so four more bits fit in a word
            row = ((row << np.uint64(4)) | nibble) % np.uint64(prime)
        rows.append((row + np.uint64(prime - pow(2, bits, prime))) % np.uint64(prime))
    return np.stack(rows)


def signed_residues(values: NDArray[np.int64], primes: Sequence[int]) -> Residues:
    """(count,) integers of absolute value below each prime, as (primes, count) residues."""
    return np.stack([np.where(values < 0, values + prime, values) for prime in primes]).astype(np.uint64)


def width(prime: int) -> int:
    """Bits that a residue takes on the wire: whole half-bytes."""
    return -(-prime.bit_length() // 4) * 4


def dropped_bits(prime: int, bits: int) -> np.uint64:
    """How many low bits a residue loses that is sent in ``bits``."""
    return np.uint64(max(0, prime.bit_length() - bits))


@cache
def largest_error(prime: int, bits: int) -> int:
    """Largest error of a residue sent in that many bits: half of what the dropped ones are worth."""
    return (1 << int(dropped_bits(prime, bits))) >> 1


def restore(values: Residues, prime: int, bits: int) -> Residues:
    """Residues from what is left of them, at most :func:`largest_error` off.

    Raises:
        ProtocolError: if one cannot have been below its prime.
    """
    shift = dropped_bits(prime, bits)
    if values.size and int(values.max()) > (prime - 1) >> int(shift):
        raise ProtocolError(f"response holds a residue that is not below its prime {prime}")
    return np.minimum((values << shift) + np.uint64(largest_error(prime, bits)), np.uint64(prime - 1))


def residue_bytes(count: int, bits: int) -> int:
    """Length of ``count`` packed values."""
    return count * (bits // 8) + (-(-count // 2) if bits % 8 else 0)


def pack_residues(values: Residues, bits: int) -> bytes:
    """The low whole bytes of every value, then the half-byte above them, two to a byte."""
    whole = bits // 8
    octets = np.ascontiguousarray(values, "<u8").view(np.uint8).reshape(-1, 8)
    low = octets[:, :whole].tobytes()
    if bits % 8 == 0:
        return low
    top = np.zeros(len(values) + len(values) % 2, np.uint8)
    top[: len(values)] = octets[:, whole]
    return low + (top[::2] | top[1::2] << 4).tobytes()


def unpack_below(view: memoryview, at: int, count: int, prime: int, what: str) -> tuple[Residues, int]:
    """``count`` residues that start at byte ``at``, and where the next thing starts.

    Raises:
        ProtocolError: if one is not below its prime.
    """
    end = at + residue_bytes(count, width(prime))
    row = unpack_residues(view[at:end], count, width(prime))
    if int(row.max()) >= prime:
        raise ProtocolError(f"{what} holds a residue that is not below its prime {prime}")
    return row, end


def unpack_residues(data: Buffer, count: int, bits: int) -> Residues:
    """``count`` values from the bytes that :func:`pack_residues` made of them."""
    whole = bits // 8
    octets = np.zeros((count, 8), np.uint8)
    packed = np.frombuffer(data, np.uint8)
    octets[:, :whole] = packed[: count * whole].reshape(count, whole)
    if bits % 8:
        top = packed[count * whole :]
        octets[0::2, whole] = top & 15
        octets[1::2, whole] = top[: count // 2] >> 4
    return octets.view("<u8").reshape(-1).astype(np.uint64, copy=False)
