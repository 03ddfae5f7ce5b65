"""Ring degree and prime sizes for a circuit of known depth, within two tables of secure moduli."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LIMITS", "CkksParameters", "choose_modulus"]

LIMITS = {8192: 214, 16384: 430, 32768: 868}
"""Bits of all primes at 128 bits of security, ternary secret, by ring degree: the smaller of the 2018 table of
homomorphicencryption.org (218, 438, 881), which the library enforces, and that of Bossuat et al. (ePrint 2024/463)."""
MOST_BITS, LEAST_BITS, LARGEST_PRIME = 50, 24, 60
END_BITS = 8
"""By how much the first prime is larger: an answer stays below 2^(END_BITS - 1) in magnitude."""
PRECISION = 1e-3
"""Error of an answer, of the largest output, from which it is not good."""
MARGIN = 2.5
"""How many times less has to be expected. Of 28 random networks of one to five squares the error was 0.19 to 1.2 times
the expected one, in powers of two -0.8 on average with a deviation of 0.6, and three deviations above that are a factor
of 2.1 (``benchmarks/results/ckks-errors.jsonl``); of the trained networks of the zoo it was 0.15 and 0.03."""


@dataclass(frozen=True)
class CkksParameters:
    """A CKKS modulus.

    Attributes:
        degree: N; a ciphertext holds N / 2 values.
        bits: size of a level's prime, and of the scale.
        levels: how many of them: products in a row.
        special: size of the prime for key switching.
        squares: in a row, of the circuit that the modulus is for.
    """

    degree: int
    bits: int
    levels: int
    special: int
    squares: int

    def check(self) -> None:
        """Refuse what is outside the tables, as a stranger's file may be.

        Raises:
            ValueError: if the modulus is not secure, or not one that this package chooses.
        """
        if self.degree not in LIMITS or sum(self.primes) > LIMITS[self.degree]:
            raise ValueError(f"{self} is not within the tables of moduli that are secure at 128 bits")
        if not (LEAST_BITS <= self.bits <= MOST_BITS and self.bits <= self.special <= LARGEST_PRIME):
            raise ValueError(f"{self} has primes of other sizes than this package chooses")

    @property
    def slots(self) -> int:
        return self.degree // 2

    @property
    def first(self) -> int:
        return self.bits + END_BITS

    @property
    def primes(self) -> tuple[int, ...]:
        """Sizes in bits: the first, one a level, and the special one."""
        return (self.first, *[self.bits] * self.levels, self.special)

    @property
    def largest_answer(self) -> float:
        """Magnitude below which an answer must stay to be read from the first prime."""
        return 2.0 ** (END_BITS - 1)

    @property
    def expected_error(self) -> float:
        """Of an answer, of the largest output: measured noise and a fit for values of about one. **Not a bound**.

        One rescaling leaves about N / scale and one rotation N^1.5 2^(first - special) / (2 scale) (the largest of all
        slots, measured for N = 2^13 and 2^15 at 30, 36 and 50 bits); a square widens an error by about the root of two
        (fitted on three trained networks of five and seven squares). :data:`MARGIN` is for what the fit leaves over.
        """
        size = math.log2(self.degree)
        rescaling, rotation = size, 1.5 * size - 1 + self.first - self.special
        return 2.0 ** (max(rescaling, rotation) + self.squares / 2 - self.bits)

    def __str__(self) -> str:
        return f"N = {self.degree}, {self.levels} levels of {self.bits} bits, {sum(self.primes)} bits in all"


def choose_modulus(levels: int, squares: int, slots: int) -> CkksParameters:
    """The smallest degree whose modulus holds the circuit with a usable error, and in it the sizes with the least.

    Args:
        levels: products in a row on the longest path, squares and linear layers alike.
        squares: squares in a row on the longest path.
        slots: values that one ciphertext has to hold.

    Raises:
        ValueError: if none does, saying how deep a network would fit.
    """
    for degree in LIMITS:
        best = _best(degree, levels, squares)
        if slots <= degree // 2 and best is not None:
            return best
    largest = max(LIMITS)
    if slots > largest // 2:
        raise ValueError(f"a ciphertext holds {largest // 2:,} values, this network's largest map {slots:,}")
    fits = max(count for count in range(1, 40) if _best(largest, 2 * count + 1, count))
    raise ValueError(
        f"{squares} squares in a row ({levels} levels) are too deep for CKKS without bootstrapping, where {fits} fit; "
        "run it between two parties (`deepreshape private local`), or take a shallower network"
    )


def _best(degree: int, levels: int, squares: int) -> CkksParameters | None:
    candidates: list[CkksParameters] = []
    for bits in range(LEAST_BITS, MOST_BITS + 1):
        special = min(LARGEST_PRIME, LIMITS[degree] - levels * bits - bits - END_BITS)
        if special >= bits:
            candidates.append(CkksParameters(degree, bits, levels, special, squares))
    best = min(candidates, key=lambda each: each.expected_error, default=None)
    return best if best is not None and best.expected_error * MARGIN <= PRECISION else None
