"""Parameters of BFV: how large they must be, and what travels under them. ``bfv.py`` derives the bounds.

They are public, and both parties choose them alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from deepreshape.private.crypto.he.residues import Buffer, largest_error, residue_bytes, width
from deepreshape.private.crypto.he.seal_container import SEED_BYTES, seal
from deepreshape.private.errors import ProtocolError

DEGREE = 8192
STATISTICAL_BITS = 40
"""The flooded noise of one layer's responses is within 2^-40 of a distribution that is independent of the weights."""
FAILURE_BITS = 64
"""Low bits that c1 of responses is sent without make a layer decrypt wrongly with probability 2^-64 at most."""
ERROR_BOUND = 21
"""Largest error coefficient: the difference of two sums of 21 bits."""
SPECIAL_BITS = 60
"""Of the prime that SEAL sets aside for key switching, where the table of security leaves so many."""
LEAST_SPECIAL_BITS = 20
"""Of it, where nothing is packed."""
MOST_GALOIS_KEYS = 6
"""Packing more than 64 responses in one saves less than its key costs."""
# Data primes by size in bits, cheapest on the wire first; the first of a tuple is the modulus responses are sent in.
_CHOICES = (
    *((60, bits) for bits in (44, 48, 52, 56, 60)),
    *((56, 40, 40), (60, 44, 44), (60, 48, 48), (60, 56, 56), (60, 60, 60)),
)


@dataclass(frozen=True)
class ResponseFormat:
    """How one response is flooded and sent.

    Attributes:
        flood_bits: 2^flood_bits bounds the flood.
        c0_bits: bits a residue of c0.
        c1_bits: bits a residue of c1.
        interleave: T of ``galois.py``, how many sums of products are packed in it at most.
    """

    flood_bits: int
    c0_bits: int
    c1_bits: int
    interleave: int = 1


@dataclass(frozen=True)
class Parameters:
    """BFV parameters at 128-bit security.

    Args:
        modulus: plaintext modulus t, a power of two or a prime.
        prime_bits: sizes of the data primes; responses come back modulo the first one.
        degree: ring degree N.
        galois_keys: how many keys the client sends for packing responses, in powers of two up to 2^galois_keys.

    Raises:
        ValueError: if the primes and SEAL's reserved one exceed SEAL's table for N at 128 bits.
    """

    modulus: int
    prime_bits: tuple[int, ...]
    degree: int = DEGREE
    galois_keys: int = 0

    def __post_init__(self) -> None:
        limit = _largest_modulus(self.degree)
        total = sum(self.prime_bits) + LEAST_SPECIAL_BITS
        if total > limit:
            raise ValueError(
                f"primes of {self.prime_bits} bits and a reserved one of {LEAST_SPECIAL_BITS} make {total} bits; "
                f"degree {self.degree} allows {limit} at 128-bit security"
            )
        if not 3 <= self.modulus < 2 ** min(self.prime_bits):  # modulo 2 there is no ternary u
            raise ValueError(f"plaintext modulus {self.modulus} must lie in [3, 2^{min(self.prime_bits)})")

    @property
    def primes(self) -> tuple[int, ...]:
        """The data primes."""
        return self.all_primes[:-1]

    @property
    def special_bits(self) -> int:
        """Of the prime that is set aside for key switching."""
        return min(SPECIAL_BITS, _largest_modulus(self.degree) - sum(self.prime_bits))

    @property
    def all_primes(self) -> tuple[int, ...]:
        """The data primes and the one set aside."""
        return _all_primes(self.degree, (*self.prime_bits, self.special_bits))

    @property
    def fresh_bytes(self) -> int:
        """Length of a fresh ciphertext (or of the public key) on the wire: c0 and the seed of c1."""
        return sum(residue_bytes(self.degree, width(prime)) for prime in self.primes) + SEED_BYTES

    @property
    def switching_key_bytes(self) -> int:
        """Length of a key for packing on the wire: for every data prime residues modulo all primes, and a seed."""
        residues = sum(residue_bytes(self.degree, width(prime)) for prime in self.all_primes)
        return len(self.primes) * (residues + SEED_BYTES)

    @property
    def setup_bytes(self) -> int:
        """Of all keys that the client sends, once a session."""
        return self.fresh_bytes + self.galois_keys * self.switching_key_bytes

    @property
    def encoded_bytes(self) -> int:
        """Memory that one encoded server plaintext holds."""
        return self.degree * 8 * len(self.primes)

    @property
    def switch_noise(self) -> int:
        """What one switch of keys adds at most, rounded up."""
        *primes, special = self.all_primes
        return -(-ERROR_BOUND * self.degree * sum(primes) // special) + (self.degree + 1) // 2 + 1

    def noise_bound(self, weight_sum: int, interleave: int = 1) -> int:
        """V of ``bfv.py``, rounded up."""
        products = math.ceil((ERROR_BOUND + 0.5) * weight_sum) + 2 * ERROR_BOUND * self.degree + 1
        return products + (interleave - 1) * self.switch_noise

    @lru_cache(maxsize=4096)  # noqa: B019 - parameters are few, small and immutable
    def response_format(
        self, weight_sum: int, revealed: int, responses: int = 1, interleave: int = 1
    ) -> ResponseFormat:
        """The smallest responses that hide the weights and decrypt with at least one bit to spare.

        Args:
            weight_sum: bound on ||w||_1, the absolute weights of all plaintexts that one sum of products adds up.
            revealed: coefficients that the whole layer reveals.
            responses: how many carry them.
            interleave: how many such sums are packed in one response at most.

        Raises:
            ValueError: if the noise budget does not suffice; says by how many bits.
        """
        noise = self.noise_bound(weight_sum, interleave)
        flood_bits = (noise * revealed << STATISTICAL_BITS).bit_length() - 1
        kept, *dropped = self.primes
        # Each switch rounds c0 and c1: at most (1 + ||secret||_1) / 2 <= (1 + N) / 2 more.
        switched = -(-(noise + 2**flood_bits) // math.prod(dropped)) + len(dropped) * (self.degree + 1) // 2 + 1
        budget = kept // (4 * self.modulus)
        formats: list[ResponseFormat] = []
        for c1_bits in range(width(kept), 0, -4):
            room = budget - switched - self.largest_product(largest_error(kept, c1_bits), revealed)
            if room < 0:
                break
            c0_bits = next(bits for bits in range(4, width(kept) + 1, 4) if largest_error(kept, bits) <= room)
            formats.append(ResponseFormat(flood_bits, c0_bits, c1_bits, interleave))
        if not formats:
            short = switched.bit_length() - budget.bit_length() + 1
            raise ValueError(
                f"noise budget too small by about {short} bits: weights that sum to {weight_sum} need a flood of "
                f"{flood_bits} bits, and primes of {self.prime_bits} bits leave no room for it with a plaintext "
                f"modulus of {self.modulus.bit_length()} bits; use a narrower ring or narrower weights"
            )
        return min(formats, key=lambda f: revealed * f.c0_bits + responses * self.degree * f.c1_bits)

    def largest_product(self, error: int, revealed: int) -> int:
        """Bound on the coefficients of (errors of c1) times (the secret key), by Hoeffding's inequality.

        It holds in all ``revealed`` coefficients but for a probability of 2^-:data:`FAILURE_BITS`. The errors are
        independent of each other and of the key, and lie in (-error, error]; what their mean, 1/2 at most, adds is
        bounded in the worst case. The key is ternary.
        """
        if not error:
            return 0
        exponent = math.log(2) * (FAILURE_BITS + 1 + math.log2(revealed))
        typical = math.ceil(error * math.sqrt(2 * self.degree * exponent)) + self.degree // 2
        return min(typical, error * self.degree)

    def check_keys(self, wires: Sequence[Buffer]) -> None:
        """Raise ProtocolError unless these are as many keys for packing as the parameters say, and as long."""
        lengths = [len(wire) for wire in wires]
        if lengths != [self.switching_key_bytes] * self.galois_keys:
            expected = f"{self.galois_keys} of {self.switching_key_bytes}"
            raise ProtocolError(f"switching keys of {lengths} bytes; these parameters make it {expected}")

    def response_bytes(self, form: ResponseFormat, revealed: int) -> int:
        """Length on the wire of one response that reveals that many coefficients."""
        return residue_bytes(revealed, form.c0_bits) + residue_bytes(self.degree, form.c1_bits)


def known_parameters(modulus: int) -> list[Parameters]:
    """Parameters worth considering for a plaintext modulus, cheapest fresh ciphertext first."""
    return [Parameters(modulus, bits) for bits in _CHOICES if modulus < 2 ** min(bits)]


@lru_cache
def _largest_modulus(degree: int) -> int:
    """Bits of all primes together, by SEAL's table at 128 bits."""
    return seal.CoeffModulus.MaxBitCount(degree, seal.SEC_LEVEL_TYPE.TC128)


@lru_cache
def _all_primes(degree: int, bits: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prime.value() for prime in seal.CoeffModulus.Create(degree, list(bits)))
