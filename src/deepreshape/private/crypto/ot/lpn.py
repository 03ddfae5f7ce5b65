"""Learning parity with regular noise: the sizes at which silent transfers rest on it, and how rounds of them follow.

A round has a table of ``secret`` correlated labels and ``trees`` trees of 2^``depth`` leaves with one hole each. Output
i is leaf i plus ten entries of the table. The receiver's choices are then A s + e over GF(2), where A has ten ones in a
row, s is secret and e has one one among every 2^depth: by the assumption, they look uniform to the sender. This is
Ferret's extension (Yang, Weng, Lan, Zhang and Wang, CCS 2020) without its check against malicious parties.

*Sizes.* Whoever finds s has all choices, also from a recorded transcript. The best attack known to us guesses that
certain outputs carry no noise, and solves for s. As rows are local it need not guess ``secret`` outputs: take a set S
of columns in which as many rows lie as it has columns, then |S| of them suffice. Random S of n columns has that where

    N (n / k)^10 >= n,

and removing, again and again, a column that few remaining rows use, finds smaller cores (:data:`CORE`, from
``benchmarks/lpn_cores.py``). One guess then is right with probability (1 - |S| / N)^t, and costs at least |S|^2
operations with a sparse solver. The sets of emp-ot of July 2026 (k = 2^16 to 2^19 at these t and depths), "about 128
bits" against attacks on codes without such structure, come out near 95 by this; so k is doubled here. SECURITY.md has
the estimates, their date and the rule by which they are renewed; a unit test holds both sets against this formula.

*Fewer trees.* A round may stop after any number of trees: the attacker then has fewer outputs of the same noise, which
it could also have by not looking at the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deepreshape.private.crypto.backend.numpy import LOCALITY

LABEL_BYTES = 16


@dataclass(frozen=True)
class Size:
    """Of a round: ``trees`` trees of 2^``depth`` leaves, and 2^``secret_bits`` secret bits."""

    trees: int
    secret_bits: int
    depth: int

    @property
    def secret(self) -> int:
        return 1 << self.secret_bits

    @property
    def outputs(self) -> int:
        return self.trees << self.depth


SMALL = Size(850, 17, 10)
LARGE = Size(1170, 18, 11)

CORE = 0.85
"""A peeled core's columns as a part of a random set's; ``benchmarks/lpn_cores.py`` finds 0.85 to 0.87."""


def random_set(size: Size) -> float:
    """Columns of a random set in which as many rows lie as it has columns."""
    return size.secret * (size.secret / size.outputs) ** (1 / (LOCALITY - 1))


def security_bits(size: Size) -> float:
    """log2 of the bit operations to find the secret by peeling a core, guessing and a sparse solver."""
    core = CORE * random_set(size)
    guesses = -size.trees * math.log2(1 - core / size.outputs)
    return guesses + 2 * math.log2(core)


@dataclass(frozen=True)
class Round:
    """The first ``trees`` trees of a round of ``size``."""

    size: Size
    trees: int

    @property
    def base(self) -> int:
        """Transfers that it consumes: the table, then one for each level of each tree."""
        return self.size.secret + self.trees * self.size.depth

    @property
    def outputs(self) -> int:
        return self.trees << self.size.depth

    @property
    def nbytes(self) -> int:
        """What its sender sends: one label for each level of each tree."""
        return LABEL_BYTES * self.trees * self.size.depth


@dataclass(frozen=True)
class Expansion:
    """How ``count`` transfers are made: ``base`` of another protocol, then ``rounds``, each from the one before."""

    count: int
    base: int
    rounds: tuple[Round, ...]

    @property
    def nbytes(self) -> int:
        """What the sender sends in all rounds."""
        return sum(step.nbytes for step in self.rounds)


def cheapest_expansion(count: int, base_bits: int, small: Size = SMALL, large: Size = LARGE) -> Expansion:
    """The schedule of the fewest bytes, where a transfer of the base costs ``base_bits`` bits."""
    most_small = -(-count // (small.outputs - small.secret - small.trees * small.depth)) + 1
    most_large = -(-count // (large.outputs - large.secret - large.trees * large.depth)) + 1
    chains = [(small,) * number for number in range(min(most_small, 8))]
    chains += [(small, *(large,) * number) for number in range(1, most_large + 1)]
    return min(
        (_scheduled(count, chain) for chain in chains), key=lambda round_: round_.nbytes + round_.base * base_bits / 8
    )


def _scheduled(count: int, chain: tuple[Size, ...]) -> Expansion:
    """The last rounds make as much as they can; what they leave, and their bases, come from those before."""
    wanted, rounds = count, list[Round]()
    for size in reversed(chain):
        round_ = Round(size, min(size.trees, -(-wanted >> size.depth)))
        rounds.insert(0, round_)
        wanted = max(0, wanted - round_.outputs) + round_.base
    return Expansion(count, wanted, tuple(rounds))
