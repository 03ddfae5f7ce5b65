"""Additive shares over Z_{2^l} and Z_p, and their bytes on the wire.

A value x is held as x = x_client + x_server in a :class:`Ring` or a :class:`Field`; one share alone is uniform, so it
says nothing about x. That is perfect secrecy given uniform blinds, and these come from the streams of ``rng.py``.

Every array of shares is uint64 and holds canonical representatives, 0 <= share < order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.errors import ProtocolError

Words = NDArray[np.uint64]
Bits = NDArray[np.uint8]

CIRCA_PRIME = 2138816513
"""31 bits; Circa (Ghodsi et al., NeurIPS 2021)."""

PRIME_32 = 2**32 - 2**20 + 1
"""32 bits; the prime that the garbling benchmarks of this package use."""

DELPHI_PRIME = 2061584302081
"""41 bits; DELPHI (Mishra et al., USENIX Security 2020)."""


class Modulus(Protocol):
    """Arithmetic modulo ``order``, and how its elements travel.

    ``a`` and ``b`` are uint64 arrays of canonical representatives, results too. On the wire an element takes
    ``element_bytes`` whole bytes, little-endian.
    """

    @property
    def order(self) -> int:
        """How many elements there are."""
        ...

    @property
    def bits(self) -> int:
        """Bits of the largest element."""
        ...

    @property
    def element_bytes(self) -> int:
        """Bytes of one element on the wire."""
        ...

    def add(self, a: Words, b: Words) -> Words: ...

    def sub(self, a: Words, b: Words) -> Words: ...

    def neg(self, a: Words) -> Words: ...

    def scale(self, a: Words, factor: int) -> Words:
        """``a`` times a public integer of either sign."""
        ...

    def random(self, shape: int | tuple[int, ...], rng: Randomness) -> Words:
        """Uniform elements."""
        ...

    def encode(self, values: NDArray[np.int64]) -> Words:
        """Signed integers in [-(order // 2), (order - 1) // 2] to elements.

        Raises:
            OverflowError: if a value does not fit.
        """
        ...

    def decode(self, a: Words) -> NDArray[np.int64]:
        """Elements to signed integers; the inverse of :meth:`encode`."""
        ...

    def pack(self, a: Words) -> bytes:
        """The wire form of ``a``, in C order: ``a.size * element_bytes`` bytes."""
        ...

    def unpack(self, data: memoryview, count: int) -> Words:
        """``count`` elements from their wire form, of shape (count,).

        Raises:
            ProtocolError: if the length is wrong or an element is not canonical.
        """
        ...


@dataclass(frozen=True)
class Ring:
    """Z_{2^bits}, signed values in two's complement.

    Raises:
        ValueError: unless 2 <= bits <= 63.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 63:
            raise ValueError(f"a ring of {self.bits} bits is not supported; use 2 to 63")

    @property
    def order(self) -> int:
        return 1 << self.bits

    @property
    def element_bytes(self) -> int:
        return -(-self.bits // 8)

    @property
    def _ones(self) -> np.uint64:
        return np.uint64(self.order - 1)

    def add(self, a: Words, b: Words) -> Words:
        return (a + b) & self._ones

    def sub(self, a: Words, b: Words) -> Words:
        return (a - b) & self._ones

    def neg(self, a: Words) -> Words:
        return (~a + np.uint64(1)) & self._ones

    def scale(self, a: Words, factor: int) -> Words:
        return (a * np.uint64(factor % self.order)) & self._ones

    def random(self, shape: int | tuple[int, ...], rng: Randomness) -> Words:
        return rng.words(int(np.prod(shape))).reshape(shape) & self._ones

    def encode(self, values: NDArray[np.int64]) -> Words:
        half = 1 << (self.bits - 1)
        _refuse_outside(values, -half, half - 1, self)
        return values.astype(np.int64).view(np.uint64) & self._ones

    def decode(self, a: Words) -> NDArray[np.int64]:
        drop = np.int64(64 - self.bits)
        return (a.view(np.int64) << drop) >> drop

    def pack(self, a: Words) -> bytes:
        return _pack(a, self)

    def unpack(self, data: memoryview, count: int) -> Words:
        return _unpack(data, count, self)


@dataclass(frozen=True)
class Field:
    """Z_p for an odd prime p below 2^63, signed values centred: -(p-1)/2 to (p-1)/2.

    Raises:
        ValueError: if ``prime`` is not an odd prime below 2^63.
    """

    prime: int

    def __post_init__(self) -> None:
        if not (2 < self.prime < 2**63 and _is_prime(self.prime)):
            raise ValueError(f"{self.prime} is not an odd prime below 2^63; try {CIRCA_PRIME} or {DELPHI_PRIME}")

    @property
    def order(self) -> int:
        return self.prime

    @property
    def bits(self) -> int:
        return self.prime.bit_length()

    @property
    def element_bytes(self) -> int:
        return -(-self.bits // 8)

    def add(self, a: Words, b: Words) -> Words:
        total = a + b
        return np.minimum(total, total - np.uint64(self.prime))  # the wrong candidate wraps past 2^63

    def sub(self, a: Words, b: Words) -> Words:
        difference = a - b
        return np.minimum(difference, difference + np.uint64(self.prime))

    def neg(self, a: Words) -> Words:
        return self.sub(np.zeros_like(a), a)

    def scale(self, a: Words, factor: int) -> Words:
        result = np.zeros_like(a)
        for bit in bin(factor % self.prime)[2:]:
            result = self.add(result, result)
            if bit == "1":
                result = self.add(result, a)
        return result

    def random(self, shape: int | tuple[int, ...], rng: Randomness) -> Words:
        count = int(np.prod(shape))
        drawn = np.empty(0, np.uint64)
        while drawn.size < count:
            # rejection keeps it uniform; every draw is kept with probability over one half
            draw = rng.words(count - drawn.size + 16) >> np.uint64(64 - self.bits)
            drawn = np.concatenate([drawn, draw[draw < self.prime]])
        return drawn[:count].reshape(shape)

    def encode(self, values: NDArray[np.int64]) -> Words:
        half = self.prime // 2
        _refuse_outside(values, -half, half, self)
        return np.where(values < 0, values + self.prime, values).astype(np.uint64)

    def decode(self, a: Words) -> NDArray[np.int64]:
        signed = a.astype(np.int64)
        return np.where(signed > self.prime // 2, signed - self.prime, signed)

    def pack(self, a: Words) -> bytes:
        return _pack(a, self)

    def unpack(self, data: memoryview, count: int) -> Words:
        return _unpack(data, count, self)


def to_bits(values: Words, bits: int) -> Bits:
    """The ``bits`` low bits of ``values`` (n,), least significant first: uint8 of shape (bits, n), zeros and ones."""
    octets = np.ascontiguousarray(values, np.uint64).view(np.uint8).reshape(-1, 8)
    return np.ascontiguousarray(np.unpackbits(octets, axis=1, count=bits, bitorder="little").T)


def from_bits(planes: Bits) -> Words:
    """The inverse of :func:`to_bits`: (bits, n) zeros and ones to uint64 (n,)."""
    words = np.zeros(planes.shape[1], np.uint64)
    for plane in planes[::-1]:
        words <<= np.uint64(1)
        words |= plane
    return words


def _refuse_outside(values: NDArray[np.int64], low: int, high: int, modulus: Modulus) -> None:
    if values.size and not (low <= int(values.min()) and int(values.max()) <= high):
        raise OverflowError(
            f"values from {values.min()} to {values.max()} do not fit {modulus}, which holds {low} to {high}; "
            "use a wider modulus or fewer fraction bits"
        )


def _pack(a: Words, modulus: Modulus) -> bytes:
    octets = np.ascontiguousarray(a).view(np.uint8).reshape(-1, 8)
    return octets[:, : modulus.element_bytes].tobytes()


def _unpack(data: memoryview, count: int, modulus: Modulus) -> Words:
    if data.nbytes != count * modulus.element_bytes:
        raise ProtocolError(f"{count} elements of {modulus} take {count * modulus.element_bytes} B, got {data.nbytes}")
    octets = np.zeros((count, 8), np.uint8)
    octets[:, : modulus.element_bytes] = np.frombuffer(data, np.uint8).reshape(count, modulus.element_bytes)
    words = octets.view(np.uint64).reshape(-1)
    if count and int(words.max()) >= modulus.order:
        raise ProtocolError(f"the peer sent a value that is not an element of {modulus}")
    return words


def _is_prime(n: int) -> bool:
    """Miller-Rabin with the bases that decide every n below 2^64."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if n in bases or any(n % p == 0 for p in bases):
        return n in bases
    twos = ((n - 1) & -(n - 1)).bit_length() - 1
    odd = (n - 1) >> twos
    return all(pow(base, odd, n) == 1 or any(pow(base, odd << i, n) == n - 1 for i in range(twos)) for base in bases)
