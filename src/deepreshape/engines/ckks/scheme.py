"""CKKS by Microsoft SEAL (``private/crypto/he/seal_container.py``): contexts, keys and the operations on ciphertexts.

What travels, and how a peer's bytes become an object of the library, is :mod:`.wire`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks.parameters import CkksParameters
from deepreshape.private.crypto.he.seal_container import check_library, saved_container, seal

__all__ = ["SQUARE", "Cipher", "CkksEvaluator", "Holder", "Scheme", "rotation_name"]

Real = NDArray[np.float64]

SQUARE = "square"
"""Name of the key for squares."""


def rotation_name(step: int) -> str:
    """Name of the key for rotations by ``step`` slots."""
    return f"rotate-{step}"


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
        """Raises ValueError if the library refuses the parameters, ImportError if it is not the tested one."""
        check_library()
        self.parameters = parameters
        settings = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        settings.set_poly_modulus_degree(parameters.degree)
        modulus = seal.CoeffModulus.Create(parameters.degree, list(parameters.primes))
        settings.set_coeff_modulus(modulus)
        self.context = seal.SEALContext(settings, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ValueError(f"{parameters} is refused: {self.context.parameters_error_message()}")
        self.all_primes = tuple(prime.value() for prime in modulus)
        self.primes = self.all_primes[:-1]
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


class Holder:
    """The client: holds the secret key, makes evaluation keys, encrypts and decrypts.

    Args:
        scheme: of the circuit.
        secret: the library's secret key; a new one without.
    """

    def __init__(self, scheme: Scheme, secret: Any = None) -> None:
        self.scheme = scheme
        known = (secret,) if secret is not None else ()
        self._generator = seal.KeyGenerator(scheme.context, *known)
        self._secret = self._generator.secret_key()
        self._encryptor = seal.Encryptor(scheme.context, self._secret)
        self._decryptor = seal.Decryptor(scheme.context, self._secret)

    def __repr__(self) -> str:
        return f"Holder({self.scheme.parameters})"

    def saved_secret(self) -> bytes:
        """The library's container of the secret key."""
        return saved_container(self._secret)

    def evaluation_key(self, name: str) -> bytes:
        """The library's container of the key of a name, fresh, with a seed for its second halves."""
        if name == SQUARE:
            return saved_container(self._generator.create_relin_keys())
        step = int(name.removeprefix("rotate-"))
        return saved_container(self._generator.create_galois_keys([self.scheme.element(step)]))

    def encrypt(self, values: Real) -> bytes:
        """The library's container of (slots,) values, encrypted at the top, with a seed for its second half."""
        plain = self.scheme.encode(values, self.scheme.parameters.levels, self.scheme.scale)
        return saved_container(self._encryptor.encrypt_symmetric(plain))

    def decrypt(self, cipher: Cipher) -> Real:
        """The values of a ciphertext, (slots,).

        Whoever sees them beside the ciphertext can learn the secret key: they are for the client alone.
        """
        plain = seal.Plaintext()
        self._decryptor.decrypt(cipher.raw, plain)
        return np.array(self.scheme.encoder.decode_double(plain))


class CkksEvaluator:
    """The server: computes on ciphertexts with a client's evaluation keys."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self._evaluator = seal.Evaluator(scheme.context)
        self._keys: dict[str, Any] = {}

    def add_key(self, name: str, key: Any) -> None:
        """A key of the library, from :func:`~deepreshape.engines.ckks.wire.read_key`."""
        self._keys[name] = key

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in self._keys)

    def rotate(self, x: Cipher, step: int) -> Cipher:
        """To the left by ``step`` slots."""
        out = seal.Ciphertext()
        self._evaluator.rotate_vector(x.raw, step, self._keys[rotation_name(step)], out)
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
        self._evaluator.relinearize_inplace(out, self._keys[SQUARE])
        return Cipher(out, x.level)
