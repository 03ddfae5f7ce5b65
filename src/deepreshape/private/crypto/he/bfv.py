"""BFV with noise flooding, as the offline phase needs it: encrypt, multiply and accumulate, respond, decrypt.

This is the only module that knows an HE library (Microsoft SEAL, through ``tenseal.sealapi``). Polynomials go in and
come out as NumPy residues; ciphertexts travel as packed residues whose lengths follow from :class:`Parameters`. What
the coefficients mean is the business of ``linear.py``.

*Scheme.* BFV (Fan and Vercauteren, 2012) over Z_q[X]/(X^N + 1) with plaintext modulus t, which may be a power of two,
so that additive shares in Z_{2^l} are plaintexts as they are. Semi-honest parties. The client's privacy is the IND-CPA
security of BFV: ring-LWE with uniform ternary secret and centred binomial error, at 128 bits by SEAL's own table of
the largest modulus for N (checked in :class:`Parameters`, and again by SEAL).

*What the server returns.* With client ciphertexts ct_g, server plaintexts w_g, and the client's public key pk (a fresh
encryption of zero), the server computes::

    sum_g w_g ct_g  +  u pk  +  (f, e')  +  (scaled mask, 0)

with u uniform ternary, e' centred binomial in every coefficient, and in each coefficient that will be revealed a
flood f uniform in [-2^b, 2^b) and a mask -s uniform modulo t. It then switches down to the first prime, drops low
bits, and sends all of c1 but only the revealed coefficients of c0.

*Why that hides the weights from the holder of the secret key* (circuit privacy by flooding, Gentry 2009). Its view is
c1 and, through the secret key, the message and the noise of each revealed coefficient; the rest is a deterministic
public function of those. (1) Before flooding, the noise of a revealed coefficient is at most

    V = (21 + 1/2) ||w||_1  +  2 * 21 * N  +  1/2

where 21 bounds every error coefficient, 1/2 is the rounding of q m / t (for odd t SEAL may be 1 / (2 t) further off,
which changes the distance below by one part in 40 t at most), ||w||_1 bounds the sum of all absolute weights of all the
w_g (errors are dense: every weight of a plaintext meets an error in every coefficient; the bound comes from the layer's
public facts: its shape, the bit width of its weights, and the power of two that no output channel's sum of absolute
weights exceeds), and 2 * 21 * N bounds e u + e' s of the re-randomisation. Shifting a uniform interval of length
2^(b+1) by at most V changes it by a statistical distance of at most V / 2^(b+1), so over the n coefficients that a
layer reveals the flooded noise is within n V / 2^(b+1) <= 2^-40 of one that depends on nothing. (2) With the noise
independent of u and e', c1 = (known to the client) + u p1 + e' is a ring-LWE sample with secret u, hence pseudorandom
also to the client. (3) The message is masked: W r - s is uniform. The distance is for one layer of one inference; over
many it adds up linearly.

*Why it decrypts.* A coefficient decrypts while its noise stays below q / (2 t). Before the switch it is at most
V + 2^b, modulo all primes. Leaving a prime p out divides it by p, and rounds: by 1/2 in c0 and by 1/2 in each of N
coefficients of c1, each of which meets a secret coefficient of at most 1. With k primes left out, whose product is P,
and the low bits of c0 and c1 that do not travel worth errors of at most d0 and d1, it ends at

    (V + 2^b) / P  +  k (1 + N) / 2  +  d0  +  N d1

or less, and :meth:`Parameters.response_format` keeps that below q / (4 t) for the one prime q that is left, so that a
bit is to spare. V is an upper bound and not an estimate: no weights within the public bounds, no mask and no flood can
make a response decrypt wrongly. Weights beyond the bounds could, and would be flooded too little: the server refuses
them when it loads the program, and again when it encodes them.

*What this does not cover.* A client that deviates, say with ciphertexts noisier than fresh ones, voids V; it cannot
choose the structure of p1, which the server expands from a 64-byte seed. SEAL's products are not constant-time in the
plaintext, and a plaintext whose weights are all zero is skipped: the peer sees the time that a layer takes.

*Loaders.* SEAL's ``load`` never sees a peer's bytes. What arrives is residues and one seed of fixed length; each
residue is compared with its prime, and the container around them is written here. It goes through an anonymous
memory file, since the binding loads from paths only. Where the system has none, ciphertexts go through a private
temporary folder, and plaintexts, which are secrets, through SEAL's text form instead (slow, but never on disk). The
server's floods are added as a ciphertext, so there they pass through that folder too: it must be as private as the
weights themselves. Secret keys never leave SEAL's objects. SEAL draws keys and the client's errors itself, from the
operating system's entropy; masks, floods and re-randomisation are a stream of ``shares.py``, AES-256 under a seed of
that entropy, so that what is said to be uniform above is pseudorandom.
"""

from __future__ import annotations

import math
import os
import struct
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from tenseal import sealapi  # pyright: ignore[reportMissingTypeStubs]

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.he.residues import (
    Buffer,
    Residues,
    centred_binomial,
    dropped_bits,
    flood,
    largest_error,
    pack,
    packed_bytes,
    restore,
    signed_residues,
    ternary,
    unpack,
    width,
)
from deepreshape.private.errors import ProtocolError

seal: Any = sealapi

DEGREE = 8192
STATISTICAL_BITS = 40
"""The flooded noise of one layer's responses is within 2^-40 of a distribution that is independent of the weights."""
ERROR_BOUND = 21
"""Largest error coefficient: the difference of two sums of 21 bits."""
_SEED_BYTES = 64
_SPECIAL_BITS = 20  # SEAL sets the last prime aside for key switching, which nothing here does: make it small
_SEAL_FORMAT = (4, 3)
_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, version, compression, reserved, size in all
_MAGIC = 0xA15E
_UNIT_SCALE = struct.pack("<d", 1.0)
_BLAKE2XB = 1
_HAS_MEMORY_FILES = hasattr(os, "memfd_create")
# Data primes by size in bits, cheapest on the wire first; the first of a tuple is the modulus responses are sent in.
_CHOICES = (
    *((60, bits) for bits in (44, 48, 52, 56, 60)),
    *((56, 40, 40), (60, 44, 44), (60, 48, 48), (60, 56, 56), (60, 60, 60)),
)


@dataclass(frozen=True)
class ResponseFormat:
    """How one response is flooded and sent: 2^flood_bits bounds the flood, the others are bits per residue."""

    flood_bits: int
    c0_bits: int
    c1_bits: int


@dataclass(frozen=True)
class Parameters:
    """BFV parameters at 128-bit security.

    Args:
        modulus: plaintext modulus t, a power of two or a prime.
        prime_bits: sizes of the data primes; responses come back modulo the first one.
        degree: ring degree N.

    Raises:
        ValueError: if the primes and SEAL's reserved one exceed SEAL's table for N at 128 bits.
    """

    modulus: int
    prime_bits: tuple[int, ...]
    degree: int = DEGREE

    def __post_init__(self) -> None:
        limit = seal.CoeffModulus.MaxBitCount(self.degree, seal.SEC_LEVEL_TYPE.TC128)
        total = sum(self.prime_bits) + _SPECIAL_BITS
        if total > limit:
            raise ValueError(
                f"primes of {self.prime_bits} bits and a reserved one of {_SPECIAL_BITS} make {total} bits; "
                f"degree {self.degree} allows {limit} at 128-bit security"
            )
        if not 3 <= self.modulus < 2 ** min(self.prime_bits):  # modulo 2 there is no ternary u
            raise ValueError(f"plaintext modulus {self.modulus} must lie in [3, 2^{min(self.prime_bits)})")

    @property
    def primes(self) -> tuple[int, ...]:
        """The data primes."""
        return _all_primes(self.degree, self.prime_bits)[:-1]

    @property
    def fresh_bytes(self) -> int:
        """Length of a fresh ciphertext (or of the public key) on the wire: c0 and the seed of c1."""
        return sum(packed_bytes(self.degree, width(prime)) for prime in self.primes) + _SEED_BYTES

    @property
    def encoded_bytes(self) -> int:
        """Memory that one encoded server plaintext holds."""
        return self.degree * 8 * len(self.primes)

    def noise_bound(self, weight_sum: int) -> int:
        """V of the module's docstring, rounded up."""
        return math.ceil((ERROR_BOUND + 0.5) * weight_sum) + 2 * ERROR_BOUND * self.degree + 1

    @lru_cache(maxsize=4096)  # noqa: B019 - parameters are few, small and immutable
    def response_format(self, weight_sum: int, revealed: int, responses: int = 1) -> ResponseFormat:
        """The smallest responses that hide the weights and decrypt with at least one bit to spare, in the worst case.

        Args:
            weight_sum: bound on ||w||_1, the absolute weights of all plaintexts that one response adds up.
            revealed: coefficients that the whole layer reveals.
            responses: how many carry them.

        Raises:
            ValueError: if the noise budget does not suffice; says by how many bits.
        """
        noise = self.noise_bound(weight_sum)
        flood_bits = (noise * revealed << STATISTICAL_BITS).bit_length() - 1
        kept, *dropped = self.primes
        # Each switch rounds c0 and c1: at most (1 + ||secret||_1) / 2 <= (1 + N) / 2 more.
        switched = -(-(noise + 2**flood_bits) // math.prod(dropped)) + len(dropped) * (self.degree + 1) // 2 + 1
        budget = kept // (4 * self.modulus)
        # Dropped low bits are an error of half their worth, in c1 times the secret key.
        formats: list[ResponseFormat] = []
        for c1_bits in range(width(kept), 0, -4):
            room = budget - switched - self.degree * largest_error(kept, c1_bits)
            if room < 0:
                break
            c0_bits = next(bits for bits in range(4, width(kept) + 1, 4) if largest_error(kept, bits) <= room)
            formats.append(ResponseFormat(flood_bits, c0_bits, c1_bits))
        if not formats:
            short = switched.bit_length() - budget.bit_length() + 1
            raise ValueError(
                f"noise budget too small by about {short} bits: weights that sum to {weight_sum} need a flood of "
                f"{flood_bits} bits, and primes of {self.prime_bits} bits leave no room for it with a plaintext "
                f"modulus of {self.modulus.bit_length()} bits; use a narrower ring or narrower weights"
            )
        return min(formats, key=lambda f: revealed * f.c0_bits + responses * self.degree * f.c1_bits)

    def response_bytes(self, form: ResponseFormat, revealed: int) -> int:
        """Length on the wire of one response that reveals that many coefficients."""
        return packed_bytes(revealed, form.c0_bits) + packed_bytes(self.degree, form.c1_bits)


class ClientKey:
    """The client's keys of one session. The secret key never leaves this object. Not for use by two threads at once."""

    def __init__(self, parameters: Parameters) -> None:
        context = _context(parameters)
        secret = seal.KeyGenerator(context).secret_key()
        self.parameters = parameters
        self._encryptor: Any = seal.Encryptor(context, secret)
        self._decryptor: Any = seal.Decryptor(context, secret)

    def public_key(self) -> bytes:
        """A fresh encryption of zero, for the server to re-randomise with: ``fresh_bytes`` long, once a session."""
        return self._to_wire(self._encryptor.encrypt_zero_symmetric())

    def encrypt(self, polynomial: Residues) -> bytes:
        """Encrypt (N,) coefficients below t. Returns ``fresh_bytes`` bytes."""
        return self._to_wire(self._encryptor.encrypt_symmetric(_plaintext(self.parameters, polynomial)))

    def _to_wire(self, ciphertext: Any) -> bytes:
        parameters = self.parameters
        data = _saved(ciphertext)
        # SEAL keeps c1 as a seed in what it saves; everything around c0 and the seed must be what we would write.
        count = len(parameters.primes)
        head = _ciphertext_head(parameters, count, seeded=True)
        end = len(head) + 8 * parameters.degree * count
        if not data.startswith(head) or data[end:-_SEED_BYTES] != _GENERATOR:
            raise RuntimeError(_wrong_library("a seeded ciphertext of an unknown layout"))
        c0 = np.frombuffer(data, np.uint64, parameters.degree * count, len(head)).reshape(count, parameters.degree)
        parts = [pack(row, width(prime)) for row, prime in zip(c0, parameters.primes, strict=True)]
        return b"".join([*parts, data[-_SEED_BYTES:]])

    def decrypt(self, response: Buffer, form: ResponseFormat, positions: NDArray[np.intp]) -> Residues:
        """The plaintext coefficients at ``positions`` of one response.

        Raises:
            ProtocolError: if the length is wrong or a residue is not below its prime.
        """
        plain = seal.Plaintext()
        self._decryptor.decrypt(self._from_wire(response, form, positions), plain)
        return _coefficients(self.parameters, plain)[positions]

    def _from_wire(self, response: Buffer, form: ResponseFormat, positions: NDArray[np.intp]) -> Any:
        parameters = self.parameters
        _check_length("response", response, parameters.response_bytes(form, len(positions)))
        prime = parameters.primes[0]
        split = packed_bytes(len(positions), form.c0_bits)
        data = np.zeros((2, parameters.degree), np.uint64)
        view = memoryview(response)
        data[0, positions] = restore(unpack(view[:split], len(positions), form.c0_bits), prime, form.c0_bits)
        data[1] = restore(unpack(view[split:], parameters.degree, form.c1_bits), prime, form.c1_bits)
        return _ciphertext(parameters, data[:, None])


@dataclass(frozen=True, repr=False)
class Encoded:
    """One server plaintext in NTT form, or None for zero. It depends on the parameters only, not on a session."""

    plain: Any


def encode(parameters: Parameters, polynomial: NDArray[np.int64]) -> Encoded:
    """A (N,) polynomial of signed weights below t / 2, ready for products."""
    return Encoded(_ntt_plaintext(parameters, polynomial) if polynomial.any() else None)


class Responder:
    """The server's side of one session: the client's public key, and no secret. Not for use by two threads at once.

    Args:
        parameters: as agreed.
        public_key: the client's, as :meth:`ClientKey.public_key` wrote it.
        rng: masks, floods and re-randomisation.

    Raises:
        ProtocolError: if the public key is malformed.
    """

    def __init__(self, parameters: Parameters, public_key: Buffer, rng: Randomness | None = None) -> None:
        self.parameters = parameters
        self.rng = rng or Randomness()
        self.public_key = public_key
        self._zero = self.receive(public_key)

    def receive(self, data: Buffer) -> Any:
        """A client's fresh ciphertext, ready for products.

        Raises:
            ProtocolError: if the length is wrong or a residue is not below its prime.
        """
        ciphertext = _fresh(self.parameters, data)
        _evaluator(self.parameters).transform_to_ntt_inplace(ciphertext)
        return ciphertext

    def respond(
        self,
        pairs: Iterable[tuple[Any, Encoded]],
        mask: Residues,
        form: ResponseFormat,
        positions: NDArray[np.intp],
    ) -> bytes:
        """sum_g w_g ct_g + mask, flooded and re-randomised, as bytes for the client.

        Args:
            pairs: ciphertexts from :meth:`receive` with plaintexts from :func:`encode`.
            mask: (len(positions),) residues below t, uniform and fresh, to be added.
            form: from :meth:`Parameters.response_format`.
            positions: the coefficients to reveal.
        """
        parameters, evaluator, rng = self.parameters, _evaluator(self.parameters), self.rng
        total, product = seal.Ciphertext(), seal.Ciphertext()
        evaluator.multiply_plain(self._zero, _ntt_plaintext(parameters, ternary(rng, parameters.degree)), total)
        for ciphertext, weights in pairs:
            if weights.plain is not None:
                evaluator.multiply_plain(ciphertext, weights.plain, product)
                evaluator.add_inplace(total, product)
        evaluator.transform_from_ntt_inplace(total)

        noise = np.zeros((2, len(parameters.primes), parameters.degree), np.uint64)
        noise[0][:, positions] = flood(rng, len(positions), form.flood_bits, parameters.primes)
        noise[1] = signed_residues(centred_binomial(rng, parameters.degree), parameters.primes)
        evaluator.add_inplace(total, _ciphertext(parameters, noise))
        masks = np.zeros(parameters.degree, np.uint64)
        masks[positions] = mask
        evaluator.add_plain_inplace(total, _plaintext(parameters, masks))
        for _ in parameters.primes[1:]:
            evaluator.mod_switch_to_next_inplace(total)

        words = np.frombuffer(_saved(total)[-16 * parameters.degree :], np.uint64)
        c0, c1 = words.reshape(2, parameters.degree)
        prime = parameters.primes[0]
        sent = (c0[positions], form.c0_bits), (c1, form.c1_bits)
        return b"".join(pack(values >> dropped_bits(prime, bits), bits) for values, bits in sent)


def candidates(modulus: int) -> list[Parameters]:
    """Parameters worth considering for a plaintext modulus, cheapest fresh ciphertext first."""
    return [Parameters(modulus, bits) for bits in _CHOICES if modulus < 2 ** min(bits)]


def _check_length(what: str, data: Buffer, expected: int) -> None:
    if len(data) != expected:
        raise ProtocolError(f"{what} of {len(data)} bytes; these parameters make it {expected}")


# --- what follows writes and reads SEAL's containers, format 4.3 -----------------------------------------------------


@lru_cache
def _all_primes(degree: int, bits: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prime.value() for prime in seal.CoeffModulus.Create(degree, [*bits, _SPECIAL_BITS]))


@lru_cache
def _context(parameters: Parameters) -> Any:
    """SEAL's context; raises ImportError if the library is not the one that was tested."""
    _check_library()
    chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    chosen.set_poly_modulus_degree(parameters.degree)
    chosen.set_coeff_modulus(seal.CoeffModulus.Create(parameters.degree, [*parameters.prime_bits, _SPECIAL_BITS]))
    chosen.set_plain_modulus(seal.Modulus(parameters.modulus))
    context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise ValueError(f"SEAL refuses {parameters}: {context.parameters_error_message()}")
    return context


@lru_cache
def _evaluator(parameters: Parameters) -> Any:
    return seal.Evaluator(_context(parameters))


@lru_cache
def _check_library() -> None:
    if sys.byteorder != "little":
        raise ImportError("private inference needs a little-endian machine: SEAL's containers are native-endian")
    with _scratch() as path:
        seal.Plaintext("1").save(path)
        with open(path, "rb") as file:
            magic, _, *found, _, _, _ = _HEADER.unpack(file.read(_HEADER.size))
    if magic != _MAGIC or tuple(found) != _SEAL_FORMAT:
        raise ImportError(_wrong_library(f"serialisation format {'.'.join(map(str, found))}"))


def _wrong_library(found: str) -> str:
    return (
        f"tenseal {version('tenseal')} brings a SEAL with {found}; this release was tested with tenseal 0.3.18 "
        f"(SEAL serialisation format {_SEAL_FORMAT[0]}.{_SEAL_FORMAT[1]}): pip install tenseal==0.3.18"
    )


@contextmanager
def _scratch() -> Generator[str]:
    """Path of a file for SEAL to load from or save to: in memory where the system can, else in a private folder."""
    if _HAS_MEMORY_FILES:
        fd = os.memfd_create("seal", os.MFD_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.TemporaryDirectory(prefix="deepreshape-") as folder:
            yield os.path.join(folder, "ciphertext")


def _load(target: Any, parameters: Parameters, members: Sequence[Buffer]) -> Any:
    container = b"".join([_container_header(sum(map(len, members))), *members])
    with _scratch() as path:
        with open(path, "wb", buffering=0) as file:
            file.write(container)
        target.load(_context(parameters), path)
    return target


def _saved(source: Any) -> bytes:
    """What SEAL saves of an object, without its outer header and compression."""
    with _scratch() as path:
        source.save(path)
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    *_, compression, _, _ = _HEADER.unpack_from(data)
    body = memoryview(data)[_HEADER.size :]
    return zstandard.ZstdDecompressor().decompressobj().decompress(body) if compression else bytes(body)


def _container_header(nbytes: int) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, *_SEAL_FORMAT, 0, 0, _HEADER.size + nbytes)


_GENERATOR = _container_header(1 + _SEED_BYTES) + bytes([_BLAKE2XB])


def _array_header(words: int) -> bytes:
    return _container_header(8 + 8 * words) + struct.pack("<Q", words)


def _ciphertext_head(parameters: Parameters, primes: int, *, seeded: bool) -> bytes:
    """All that precedes the residues of a two-part ciphertext in coefficient form."""
    context = _context(parameters)
    parms_id = context.first_parms_id() if primes == len(parameters.primes) else context.last_parms_id()
    return (
        struct.pack("<4Q?3Q", *parms_id, False, 2, parameters.degree, primes)
        + _UNIT_SCALE
        + struct.pack("<Q", 1)
        + _array_header((1 if seeded else 2) * primes * parameters.degree)
    )


def _ciphertext(parameters: Parameters, residues: Residues) -> Any:
    """A ciphertext from (2, primes, N) residues below their primes; all primes, or the first only."""
    head = _ciphertext_head(parameters, residues.shape[1], seeded=False)
    return _load(seal.Ciphertext(), parameters, [head, np.ascontiguousarray(residues).data.cast("B")])


def _fresh(parameters: Parameters, data: Buffer) -> Any:
    """A ciphertext from a peer's c0 and seed, checked."""
    _check_length("ciphertext", data, parameters.fresh_bytes)
    view, at = memoryview(data), 0
    rows: list[Residues] = []
    for prime in parameters.primes:
        size = packed_bytes(parameters.degree, width(prime))
        row = unpack(view[at : at + size], parameters.degree, width(prime))
        if int(row.max()) >= prime:
            raise ProtocolError(f"ciphertext holds a residue that is not below its prime {prime}")
        rows.append(row)
        at += size
    head = _ciphertext_head(parameters, len(rows), seeded=True)
    return _load(
        seal.Ciphertext(), parameters, [head, *(row.data.cast("B") for row in rows), _GENERATOR, bytes(view[at:])]
    )


def _plaintext(parameters: Parameters, coefficients: Residues) -> Any:
    """A plaintext from (N,) residues below t."""
    if not _HAS_MEMORY_FILES:
        terms = (f"{int(c):x}x^{i}" for i, c in reversed(list(enumerate(coefficients))) if c)
        return seal.Plaintext(" + ".join(terms) or "0")
    head = struct.pack("<4QQ", 0, 0, 0, 0, parameters.degree) + _UNIT_SCALE + _array_header(parameters.degree)
    return _load(seal.Plaintext(), parameters, [head, np.ascontiguousarray(coefficients).data.cast("B")])


def _ntt_plaintext(parameters: Parameters, signed: NDArray[np.int64]) -> Any:
    plain = _plaintext(parameters, signed_residues(signed, [parameters.modulus])[0])
    _evaluator(parameters).transform_to_ntt_inplace(plain, _context(parameters).first_parms_id())
    return plain


def _coefficients(parameters: Parameters, plain: Any) -> Residues:
    found = np.zeros(parameters.degree, np.uint64)
    count = plain.coeff_count()
    if not _HAS_MEMORY_FILES:
        found[:count] = [plain.data(i) for i in range(count)]
    else:
        data = _saved(plain)
        found[:count] = np.frombuffer(data, np.uint64, count, len(data) - 8 * count)
    return found
