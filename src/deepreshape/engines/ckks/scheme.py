"""CKKS by Microsoft SEAL (``private/crypto/he/seal_container.py``): the only module of this engine that sees it.

*What comes from a peer.* A server gets evaluation keys and a ciphertext, a client a ciphertext. Their lengths are
compared with what the parameters allow before a byte is kept. The library then checks every residue against its prime
while it loads (``load``, never ``unsafe_load``); since its parser is not ours, a server loads a client's bytes in a
process that serves this client alone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks.parameters import CkksParameters
from deepreshape.private.crypto.he.seal_container import load_into, saved_container, seal

__all__ = ["Cipher", "CkksEvaluator", "Holder", "Scheme"]

Real = NDArray[np.float64]

SLACK = 1 << 12
"""Bytes of headers beside the residues of a saved object."""


class Cipher:
    """A ciphertext and its level: how many primes beside the first are left."""

    __slots__ = ("level", "raw")

    def __init__(self, raw: Any, level: int) -> None:
        self.raw, self.level = raw, level

    @property
    def scale(self) -> float:
        return self.raw.scale


class Scheme:
    """The library's context for one set of parameters; public."""

    def __init__(self, parameters: CkksParameters) -> None:
        """Raises ValueError if the library refuses the parameters."""
        self.parameters = parameters
        settings = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        settings.set_poly_modulus_degree(parameters.degree)
        modulus = seal.CoeffModulus.Create(parameters.degree, list(parameters.primes))
        settings.set_coeff_modulus(modulus)
        self.context = seal.SEALContext(settings, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ValueError(f"{parameters} is refused: {self.context.parameters_error_message()}")
        self.primes = [prime.value() for prime in modulus][:-1]
        self.encoder = seal.CKKSEncoder(self.context)
        at, identities = self.context.first_context_data(), list[Any]()
        for _ in range(parameters.levels + 1):
            identities.append(at.parms_id())
            at = at.next_context_data()
        self.identities = identities[::-1]

    @property
    def scale(self) -> float:
        """Of every value at rest."""
        return 2.0**self.parameters.bits

    def encode(self, values: Real, level: int, scale: float) -> Any:
        plain = seal.Plaintext()
        self.encoder.encode(values.tolist(), self.identities[level], scale, plain)
        return plain

    def element(self, step: int) -> int:
        """The Galois element of a rotation to the left by ``step`` slots."""
        return pow(3, step, 2 * self.parameters.degree)

    def ciphertext_bytes(self, primes: int) -> int:
        """The most that a saved ciphertext of two parts takes."""
        return 16 * self.parameters.degree * primes + SLACK

    def key_bytes(self) -> int:
        """The most that one saved key takes: a ciphertext of all primes for each prime that is not special."""
        primes = len(self.parameters.primes)
        # headers for every Galois element that is absent, of which there are N
        return (primes - 1) * self.ciphertext_bytes(primes) + 16 * self.parameters.degree

    def load_ciphertext(self, data: bytes, level: int) -> Cipher:
        """A peer's ciphertext at ``level``.

        Raises:
            ValueError: if it is none.
        """
        cipher = seal.Ciphertext()
        self.load(cipher, data, self.ciphertext_bytes(level + 1), "a ciphertext")
        if cipher.size() != 2 or list(cipher.parms_id()) != list(self.identities[level]) or not cipher.is_ntt_form():
            raise ValueError(f"not a ciphertext of two parts at level {level}")
        return Cipher(cipher, level)

    def load(self, target: Any, data: bytes, most: int, what: str) -> None:
        """A peer's bytes into an object of the library.

        Raises:
            ValueError: if they are more than ``most`` or are not ``what``.
        """
        if len(data) > most:
            raise ValueError(f"{what} of {len(data):,} bytes; at most {most:,} can be one")
        try:
            load_into(target, self.context, data)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{what} cannot be read: {error}") from error


class Holder:
    """The client: holds the secret key, makes evaluation keys, encrypts and decrypts."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self._generator = seal.KeyGenerator(scheme.context)
        secret = self._generator.secret_key()
        self._encryptor = seal.Encryptor(scheme.context, secret)
        self._decryptor = seal.Decryptor(scheme.context, secret)

    def __repr__(self) -> str:
        return f"Holder({self.scheme.parameters})"

    def evaluation_keys(self, steps: Iterable[int]) -> Generator[tuple[str, bytes]]:
        """By name, the key for squares and one a rotation, seeded: half the bytes."""
        yield "square", saved_container(self._generator.create_relin_keys())
        for step in sorted(steps):
            yield f"rotate-{step}", saved_container(self._generator.create_galois_keys([self.scheme.element(step)]))

    def encrypt(self, values: Real) -> bytes:
        """One ciphertext, (slots,), at the top, seeded."""
        top = self.scheme.parameters.levels
        plain = self.scheme.encode(values, top, self.scheme.scale)
        return saved_container(self._encryptor.encrypt_symmetric(plain))

    def decrypt(self, data: bytes, level: int = 0) -> Real:
        """The values of a peer's ciphertext, (slots,).

        Whoever sees them together with the ciphertext can learn the secret key: they are for the client alone.
        """
        cipher, plain = self.scheme.load_ciphertext(data, level), seal.Plaintext()
        self._decryptor.decrypt(cipher.raw, plain)
        return np.array(self.scheme.encoder.decode_double(plain))


class CkksEvaluator:
    """The server: computes on ciphertexts with a client's evaluation keys."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self._evaluator = seal.Evaluator(scheme.context)
        self._rotations: dict[int, Any] = {}
        self._relinearize: Any = None

    def add_key(self, name: str, data: bytes, steps: Iterable[int]) -> None:
        """A key that a client sent under a name that :meth:`Holder.evaluation_keys` gives.

        Raises:
            ValueError: if no key of that name is needed or the bytes are not that key.
        """
        most = self.scheme.key_bytes()
        if name == "square":
            keys = seal.RelinKeys()
            self.scheme.load(keys, data, most, "the key for squares")
            self._relinearize = keys
            return
        step = int(name.removeprefix("rotate-")) if name.removeprefix("rotate-").isdecimal() else -1
        if step not in steps or name != f"rotate-{step}":
            raise ValueError(f"no key {name[:40]!r} is needed")
        keys = seal.GaloisKeys()
        self.scheme.load(keys, data, most, f"the key {name}")
        if not keys.has_key(self.scheme.element(step)):
            raise ValueError(f"what was sent as {name} is the key of another rotation")
        self._rotations[step] = keys

    def missing(self, steps: Iterable[int]) -> tuple[str, ...]:
        absent = [] if self._relinearize else ["square"]
        return (*absent, *(f"rotate-{step}" for step in sorted(steps) if step not in self._rotations))

    def rotate(self, x: Cipher, step: int) -> Cipher:
        """To the left by ``step`` slots."""
        out = seal.Ciphertext()
        self._evaluator.rotate_vector(x.raw, step, self._rotations[step], out)
        return Cipher(out, x.level)

    def lower(self, x: Cipher, level: int) -> Cipher:
        """The same values with fewer primes."""
        if x.level == level:
            return x
        out = seal.Ciphertext()
        self._evaluator.mod_switch_to(x.raw, self.scheme.identities[level], out)
        return Cipher(out, level)

    def multiply(self, x: Cipher, plain: Any, scale: float) -> Cipher:
        """With an encoded vector; ``scale`` is the exact one of the product, of which both factors' is an ulp off."""
        out = seal.Ciphertext()
        self._evaluator.multiply_plain(x.raw, plain, out)
        out.scale = scale
        return Cipher(out, x.level)

    def add(self, x: Cipher, other: Cipher) -> None:
        """``other`` onto ``x``, in place."""
        self._evaluator.add_inplace(x.raw, other.raw)

    def add_vector(self, x: Cipher, values: Real) -> None:
        """Real values onto ``x``, in place."""
        self._evaluator.add_plain_inplace(x.raw, self.scheme.encode(values, x.level, x.raw.scale))

    def rescale(self, x: Cipher, scale: float) -> Cipher:
        """Divided by the level's prime, in place; ``scale`` is the exact one afterwards."""
        self._evaluator.rescale_to_next_inplace(x.raw)
        x.raw.scale = scale
        return Cipher(x.raw, x.level - 1)

    def square(self, x: Cipher) -> Cipher:
        """Not yet rescaled."""
        out = seal.Ciphertext()
        self._evaluator.square(x.raw, out)
        self._evaluator.relinearize_inplace(out, self._relinearize)
        return Cipher(out, x.level)

    def saved(self, x: Cipher) -> bytes:
        return saved_container(x.raw)
