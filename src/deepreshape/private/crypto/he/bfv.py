"""BFV with noise flooding, as the offline phase needs it: encrypt, multiply and accumulate, respond, decrypt.

Polynomials go in and come out as NumPy residues; ciphertexts travel as packed residues whose lengths follow from
:class:`Parameters`. Microsoft SEAL computes (``seal_container.py``). What the coefficients mean is the business of
``packing.py``.

*Scheme.* BFV (Fan and Vercauteren, 2012) over Z_q[X]/(X^N + 1) with plaintext modulus t, which may be a power of two,
so that additive shares in Z_{2^l} are plaintexts as they are. Semi-honest parties. The client's privacy is the IND-CPA
security of BFV: ring-LWE with uniform ternary secret and centred binomial error, at 128 bits by SEAL's own table of
the largest modulus for N (checked in :class:`Parameters`, and again by SEAL).

*What the server returns.* With client ciphertexts ct_g, server plaintexts w_g, and the client's public key pk (a fresh
encryption of zero), the server computes::

    sum_g w_g ct_g  +  u pk  +  (f, e')  +  (scaled blind, 0)

or, in place of the sum, up to T such sums packed in one ciphertext (``galois.py``). Here u is uniform ternary, e'
centred binomial in every coefficient, and in each coefficient that will be revealed a flood f uniform in [-2^b, 2^b)
and a blind -s uniform modulo t. It then switches down to the first prime, drops low bits, and sends all of c1 but only
the revealed coefficients of c0.

*Why that hides the weights from the holder of the secret key* (circuit privacy by flooding, Gentry 2009). Its view is
c1 and, through the secret key, the message and the noise of each revealed coefficient; the rest is a deterministic
public function of those. (1) Before flooding, the noise of a revealed coefficient is at most

    V = (21 + 1/2) ||w||_1  +  2 * 21 * N  +  1/2  +  (T - 1) E

where 21 bounds every error coefficient, 1/2 is the rounding of q m / t (for odd t SEAL may be 1 / (2 t) further off,
which changes the distance below by one part in 40 t at most), ||w||_1 bounds the sum of all absolute weights of all the
w_g (errors are dense: every weight of a plaintext meets an error in every coefficient; the bound comes from the layer's
public facts: its shape, the bit width of its weights, and the power of two that no output channel's sum of absolute
weights exceeds), 2 * 21 * N bounds e u + e' s of the re-randomisation, and E what one switch of keys adds. Packing
comes before the flood, so what it adds is flooded too; of the T sums one meets a coefficient, so ||w||_1 is that of
one; what else stood in the sums cancels exactly, and nothing of it is left to hide. Shifting a uniform interval of
length 2^(b+1) by at most V changes it by a statistical distance of at most V / 2^(b+1), so over the n coefficients that
a layer reveals the flooded noise is within n V / 2^(b+1) <= 2^-40 of one that depends on nothing. (2) With the noise
independent of u and e', c1 is what the weights make of it plus u p1 + e', a ring-LWE sample with secret u, hence
pseudorandom also to the client. (3) The message is blinded: W r - s is uniform. The distance is for one layer of one
inference; over many it adds up linearly.

*Why it decrypts.* A coefficient decrypts while its noise stays below q / (2 t). Before the switch it is at most
V + 2^b, modulo all primes. Leaving a prime p out divides it by p, and rounds: by 1/2 in c0 and by 1/2 in each of N
coefficients of c1, each of which meets a secret coefficient of at most 1. With k primes left out, whose product is P,
and the low bits of c0 and c1 that do not travel worth errors of at most d0 and d1, it ends at

    (V + 2^b) / P  +  k (1 + N) / 2  +  d0  +  D

or less, and :meth:`Parameters.response_format` keeps that below q / (4 t) for the one prime q that is left, so that a
bit is to spare. D bounds the product of the errors of c1 with the secret key. It is N d1 in the worst case; but by (2)
c1 cannot be told from uniform by the holder of the secret key, who can see whether D is exceeded. So the errors may be
taken as uniform and independent of the key, and Hoeffding's inequality gives d1 sqrt(2 N ln(2 n / delta)) with n
revealed coefficients and delta = 2^-64 for a layer to exceed it. All else is an upper bound and no estimate: no weights
within the public bounds, no blind and no flood can make a response decrypt wrongly. Weights beyond the bounds could,
and would be flooded too little: the server refuses them when it loads the program, and again when it encodes them.

*What this does not cover.* A client that deviates, say with ciphertexts noisier than fresh ones, voids V; it cannot
choose the structure of p1, which the server expands from a 64-byte seed. SEAL's products are not constant-time in the
plaintext, and a plaintext whose weights are all zero is skipped: the peer sees the time that a layer takes.

*Loaders.* SEAL's ``load`` never sees a peer's bytes. What arrives is residues and one seed of fixed length; each
residue is compared with its prime, and the container around them is written here. It goes through an anonymous
memory file (``seal_container.py``). Where the system has none, ciphertexts go through a private
temporary folder, and plaintexts, which are secrets, through SEAL's text form instead (slow, but never on disk). The
server's floods are added as a ciphertext, so there they pass through that folder too: it must be as private as the
weights themselves. Secret keys never leave SEAL's objects. SEAL draws keys and the client's errors itself, from the
operating system's entropy; blinds, floods and re-randomisation are a stream of ``rng.py``, AES-256 under a seed of
that entropy, so that what is said to be uniform above is pseudorandom.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.he import galois, seal_container
from deepreshape.private.crypto.he.parameters import Parameters, ResponseFormat
from deepreshape.private.crypto.he.residues import (
    Buffer,
    Residues,
    centred_binomial,
    dropped_bits,
    flood,
    pack_residues,
    residue_bytes,
    restore,
    signed_residues,
    ternary,
    unpack_below,
    unpack_residues,
    width,
)
from deepreshape.private.crypto.he.seal_container import (
    GENERATOR,
    SEED_BYTES,
    array_header,
    check_library,
    ciphertext_head,
    container,
    content_of,
    load_into,
    plaintext_head,
    saved_container,
    seal,
    wrong_library,
)
from deepreshape.private.errors import ProtocolError


class ClientKey:
    """The client's keys of one session. The secret key never leaves this object. Not for use by two threads at once."""

    def __init__(self, parameters: Parameters) -> None:
        context = _context(parameters)
        self._generator: Any = seal.KeyGenerator(context)
        secret = self._generator.secret_key()
        self.parameters = parameters
        self._encryptor: Any = seal.Encryptor(context, secret)
        self._decryptor: Any = seal.Decryptor(context, secret)

    def public_key(self) -> bytes:
        """A fresh encryption of zero, for the server to re-randomise with: ``fresh_bytes`` long, once a session."""
        return self._to_wire(self._encryptor.encrypt_zero_symmetric())

    def galois_keys(self) -> list[bytes]:
        """Fresh keys for packing responses (``galois.py``): ``switching_key_bytes`` each, once a session."""
        return galois.made_keys(self.parameters, _context(self.parameters), self._generator)

    def encrypt(self, polynomial: Residues) -> bytes:
        """Encrypt (N,) coefficients below t. Returns ``fresh_bytes`` bytes."""
        return self._to_wire(self._encryptor.encrypt_symmetric(_plaintext(self.parameters, polynomial)))

    def _to_wire(self, ciphertext: Any) -> bytes:
        parameters = self.parameters
        data = content_of(saved_container(ciphertext))
        # SEAL keeps c1 as a seed in what it saves; everything around c0 and the seed must be what we would write.
        count = len(parameters.primes)
        head = _ciphertext_head(parameters, count, seeded=True)
        end = len(head) + 8 * parameters.degree * count
        if not data.startswith(head) or data[end:-SEED_BYTES] != GENERATOR:
            raise RuntimeError(wrong_library("a seeded ciphertext of an unknown layout"))
        c0 = np.frombuffer(data, np.uint64, parameters.degree * count, len(head)).reshape(count, parameters.degree)
        parts = [pack_residues(row, width(prime)) for row, prime in zip(c0, parameters.primes, strict=True)]
        return b"".join([*parts, data[-SEED_BYTES:]])

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
        split = residue_bytes(len(positions), form.c0_bits)
        data = np.zeros((2, parameters.degree), np.uint64)
        view = memoryview(response)
        data[0, positions] = restore(unpack_residues(view[:split], len(positions), form.c0_bits), prime, form.c0_bits)
        data[1] = restore(unpack_residues(view[split:], parameters.degree, form.c1_bits), prime, form.c1_bits)
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
        galois_keys: the client's, as :meth:`ClientKey.galois_keys` wrote them.
        rng: blinds, floods and re-randomisation.

    Raises:
        ProtocolError: if a key is malformed, or their number is wrong.
    """

    def __init__(
        self,
        parameters: Parameters,
        public_key: Buffer,
        galois_keys: Sequence[Buffer] = (),
        rng: Randomness | None = None,
    ) -> None:
        self.parameters = parameters
        self.rng = rng or Randomness()
        self.public_key, self.galois_keys = public_key, galois_keys
        self._zero = self.receive(public_key)
        self._keys = galois.loaded_keys(parameters, _context(parameters), galois_keys)

    def receive(self, data: Buffer, interleave: int = 1) -> Any:
        """A client's fresh ciphertext, ready for products; as many of its responses as are packed in one divide it.

        Raises:
            ProtocolError: if the length is wrong or a residue is not below its prime.
        """
        ciphertext, evaluator = _fresh(self.parameters, data), _evaluator(self.parameters)
        evaluator.transform_to_ntt_inplace(ciphertext)
        if interleave > 1:
            evaluator.multiply_plain_inplace(ciphertext, _inverse(self.parameters, interleave))
        return ciphertext

    def respond(
        self,
        leaves: Iterable[Iterable[tuple[Any, Encoded]]],
        blind: Residues,
        form: ResponseFormat,
        positions: NDArray[np.intp],
    ) -> bytes:
        """The sums of w_g ct_g of all leaves packed in one, and the blind: flooded, re-randomised, for the client.

        Args:
            leaves: ciphertexts from :meth:`receive` with plaintexts from :func:`encode`; no more than are interleaved.
            blind: (len(positions),) residues below t, uniform and fresh, to be added.
            form: from :meth:`Parameters.response_format`.
            positions: the coefficients to reveal.
        """
        parameters, evaluator, rng = self.parameters, _evaluator(self.parameters), self.rng
        sums = [self._sum(pairs) for pairs in leaves]
        root = galois.packed(evaluator, self._keys, sums, parameters.degree, form.interleave)
        total = seal.Ciphertext()
        evaluator.multiply_plain(self._zero, _ntt_plaintext(parameters, ternary(rng, parameters.degree)), total)
        evaluator.transform_from_ntt_inplace(total)
        if root is not None:
            evaluator.add_inplace(total, root)

        noise = np.zeros((2, len(parameters.primes), parameters.degree), np.uint64)
        noise[0][:, positions] = flood(rng, len(positions), form.flood_bits, parameters.primes)
        noise[1] = signed_residues(centred_binomial(rng, parameters.degree), parameters.primes)
        evaluator.add_inplace(total, _ciphertext(parameters, noise))
        blinds = np.zeros(parameters.degree, np.uint64)
        blinds[positions] = blind
        evaluator.add_plain_inplace(total, _plaintext(parameters, blinds))
        for _ in parameters.primes[1:]:
            evaluator.mod_switch_to_next_inplace(total)

        words = np.frombuffer(content_of(saved_container(total))[-16 * parameters.degree :], np.uint64)
        c0, c1 = words.reshape(2, parameters.degree)
        prime = parameters.primes[0]
        sent = (c0[positions], form.c0_bits), (c1, form.c1_bits)
        return b"".join(pack_residues(values >> dropped_bits(prime, bits), bits) for values, bits in sent)

    def _sum(self, pairs: Iterable[tuple[Any, Encoded]]) -> Any:
        """sum_g w_g ct_g in coefficient form; None if all weights are zero."""
        evaluator, total = _evaluator(self.parameters), None
        for ciphertext, weights in pairs:
            if weights.plain is not None:
                product = seal.Ciphertext()
                evaluator.multiply_plain(ciphertext, weights.plain, product)
                if total is None:
                    total = product
                else:
                    evaluator.add_inplace(total, product)
        if total is not None:
            evaluator.transform_from_ntt_inplace(total)
        return total


def _check_length(what: str, data: Buffer, expected: int) -> None:
    if len(data) != expected:
        raise ProtocolError(f"{what} of {len(data)} bytes; these parameters make it {expected}")


@lru_cache
def _context(parameters: Parameters) -> Any:
    """SEAL's context; raises ImportError if the library is not the one that was tested."""
    check_library()
    chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    chosen.set_poly_modulus_degree(parameters.degree)
    chosen.set_coeff_modulus(
        seal.CoeffModulus.Create(parameters.degree, [*parameters.prime_bits, parameters.special_bits])
    )
    chosen.set_plain_modulus(seal.Modulus(parameters.modulus))
    context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise ValueError(f"SEAL refuses {parameters}: {context.parameters_error_message()}")
    return context


@lru_cache
def _evaluator(parameters: Parameters) -> Any:
    return seal.Evaluator(_context(parameters))


@lru_cache
def _inverse(parameters: Parameters, interleave: int) -> Any:
    return galois.inverse_of(parameters, _context(parameters), interleave)


def _ciphertext_head(parameters: Parameters, primes: int, *, seeded: bool) -> bytes:
    """All that precedes the residues of a two-part ciphertext in coefficient form."""
    context = _context(parameters)
    parms_id = context.first_parms_id() if primes == len(parameters.primes) else context.last_parms_id()
    head = ciphertext_head(parms_id, False, parameters.degree, primes)
    return head + array_header((1 if seeded else 2) * primes * parameters.degree)


def _ciphertext(parameters: Parameters, residues: Residues) -> Any:
    """A ciphertext from (2, primes, N) residues below their primes; all primes, or the first only."""
    head = _ciphertext_head(parameters, residues.shape[1], seeded=False)
    data = container([head, np.ascontiguousarray(residues).data.cast("B")])
    return load_into(seal.Ciphertext(), _context(parameters), data)


def _fresh(parameters: Parameters, data: Buffer) -> Any:
    """A ciphertext from a peer's c0 and seed, checked."""
    _check_length("ciphertext", data, parameters.fresh_bytes)
    view, at = memoryview(data), 0
    rows: list[Residues] = []
    for prime in parameters.primes:
        row, at = unpack_below(view, at, parameters.degree, prime, "ciphertext")
        rows.append(row)
    head = _ciphertext_head(parameters, len(rows), seeded=True)
    members = [head, *(row.data.cast("B") for row in rows), GENERATOR, bytes(view[at:])]
    return load_into(seal.Ciphertext(), _context(parameters), container(members))


def _plaintext(parameters: Parameters, coefficients: Residues) -> Any:
    """A plaintext from (N,) residues below t."""
    if not seal_container.MEMORY_FILES:
        terms = (f"{int(c):x}x^{i}" for i, c in reversed(list(enumerate(coefficients))) if c)
        return seal.Plaintext(" + ".join(terms) or "0")
    head = plaintext_head((0, 0, 0, 0), parameters.degree)
    data = container([head, np.ascontiguousarray(coefficients).data.cast("B")])
    return load_into(seal.Plaintext(), _context(parameters), data)


def _ntt_plaintext(parameters: Parameters, signed: NDArray[np.int64]) -> Any:
    plain = _plaintext(parameters, signed_residues(signed, [parameters.modulus])[0])
    _evaluator(parameters).transform_to_ntt_inplace(plain, _context(parameters).first_parms_id())
    return plain


def _coefficients(parameters: Parameters, plain: Any) -> Residues:
    values = np.zeros(parameters.degree, np.uint64)
    count = plain.coeff_count()
    if not seal_container.MEMORY_FILES:
        values[:count] = [plain.data(i) for i in range(count)]
    else:
        data = content_of(saved_container(plain))
        values[:count] = np.frombuffer(data, np.uint64, count, len(data) - 8 * count)
    return values
