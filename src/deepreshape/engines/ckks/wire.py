"""Keys and ciphertexts as bytes of known length, and back.

Only residues and seeds travel: each residue in as many bits as its prime has, and for the second half of what a client
makes, uniform, the 64 bytes of seed that it expands from. Lengths follow from the parameters, so that a receiver knows
each before it comes. A residue that is not below its prime is refused; the container that the library loads is written
here, so that its parser never sees a peer's headers, sizes or compressed data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks.scheme import SQUARE, Cipher, Scheme
from deepreshape.private.crypto.bit_fields import pack, packed_bytes, unpack
from deepreshape.private.crypto.he.residues import Buffer
from deepreshape.private.crypto.he.seal_container import (
    GENERATOR,
    MEMORY_FILES,
    SEED_BYTES,
    array_header,
    container,
    container_header,
    content_of,
    load_into,
    saved_container,
    seal,
    wrong_library,
)

__all__ = [
    "answer",
    "answer_bytes",
    "fresh",
    "fresh_bytes",
    "key",
    "key_bytes",
    "read_answer",
    "read_fresh",
    "read_key",
    "read_secret",
    "secret",
    "secret_bytes",
]

_HEAD = struct.Struct("<4Q?3QdQ")
"""Of a ciphertext: parameters, NTT form, parts, degree, primes, scale, a factor that CKKS leaves at 1."""
_SECRET = struct.Struct("<4QQd")
"""Of a plaintext: parameters, words, scale."""


def fresh_bytes(scheme: Scheme) -> int:
    """Length of what :func:`fresh` gives."""
    return _half_bytes(scheme, scheme.primes) + SEED_BYTES


def fresh(scheme: Scheme, saved: bytes) -> bytes:
    """A client's ciphertext, as :meth:`~deepreshape.engines.ckks.scheme.Holder.encrypt` gives it, for the wire."""
    return _first_half(scheme, content_of(saved), _fresh_head(scheme), scheme.primes)


def read_fresh(scheme: Scheme, data: Buffer) -> Cipher:
    """A client's ciphertext at the top.

    Raises:
        ValueError: if it is none.
    """
    _check_length("a ciphertext", data, fresh_bytes(scheme))
    parts = [_fresh_head(scheme), *_seeded(scheme, memoryview(data), scheme.primes)]
    return Cipher(load_into(seal.Ciphertext(), scheme.context, container(parts)), scheme.parameters.levels)


def answer_bytes(scheme: Scheme) -> int:
    """Length of what :func:`answer` gives."""
    return 2 * _half_bytes(scheme, scheme.primes[:1])


def answer(scheme: Scheme, cipher: Cipher) -> bytes:
    """A server's ciphertext, which is at level 0, for the wire."""
    head, content = _head(scheme, 0, scheme.scale, seeded=False), content_of(saved_container(cipher.raw))
    if cipher.level or not content.startswith(head):
        raise RuntimeError(wrong_library("an answer of an unknown layout"))
    words = np.frombuffer(content, np.uint64, 2 * scheme.parameters.degree, len(head))
    return pack([(words, scheme.primes[0].bit_length())]).tobytes()


def read_answer(scheme: Scheme, data: Buffer) -> Cipher:
    """A server's ciphertext.

    Raises:
        ValueError: if it is none.
    """
    _check_length("an answer", data, answer_bytes(scheme))
    (prime,) = scheme.primes[:1]
    (words,) = unpack(memoryview(data), [prime.bit_length()], 2 * scheme.parameters.degree)
    _check_residues("an answer", words, prime)
    parts = [_head(scheme, 0, scheme.scale, seeded=False), words.tobytes()]
    return Cipher(load_into(seal.Ciphertext(), scheme.context, container(parts)), 0)


def key_bytes(scheme: Scheme) -> int:
    """Length of what :func:`key` gives."""
    return len(scheme.primes) * (_half_bytes(scheme, scheme.all_primes) + SEED_BYTES)


def key(scheme: Scheme, name: str, saved: bytes) -> bytes:
    """An evaluation key, as :meth:`~deepreshape.engines.ckks.scheme.Holder.evaluation_key` gives it, for the wire."""
    content, (before, after) = memoryview(content_of(saved)), _around(scheme, name)
    head = _key_head(scheme)
    size = len(head) + 8 * scheme.parameters.degree * len(scheme.all_primes) + len(GENERATOR) + SEED_BYTES
    end = len(before) + len(scheme.primes) * size
    if bytes(content[: len(before)]) != before or bytes(content[end:]) != after:
        raise RuntimeError(wrong_library("a key of an unknown layout"))
    at = range(len(before), len(content) - len(after), size)
    return b"".join(_first_half(scheme, content[start : start + size], head, scheme.all_primes) for start in at)


def read_key(scheme: Scheme, name: str, data: Buffer) -> Any:
    """A client's evaluation key of a name, for :meth:`~deepreshape.engines.ckks.scheme.CkksEvaluator.add_key`.

    Raises:
        ValueError: if it is none.
    """
    _check_length(f"the key {name}", data, key_bytes(scheme))
    view, each = memoryview(data), key_bytes(scheme) // len(scheme.primes)
    before, after = _around(scheme, name)
    parts: list[Buffer] = [before]
    for at in range(0, len(data), each):
        parts += [_key_head(scheme), *_seeded(scheme, view[at : at + each], scheme.all_primes)]
    target = seal.RelinKeys() if name == SQUARE else seal.GaloisKeys()
    return load_into(target, scheme.context, container([*parts, after]))


def secret_bytes(scheme: Scheme) -> int:
    """Length of what :func:`secret` gives."""
    return 8 * scheme.parameters.degree * len(scheme.all_primes)


def secret(scheme: Scheme, saved: bytes) -> bytes:
    """The residues of a secret key, for its owner's file."""
    head = _secret_head(scheme)
    content = content_of(saved)
    if not content.startswith(head) or len(content) != len(head) + secret_bytes(scheme):
        raise RuntimeError(wrong_library("a secret key of an unknown layout"))
    return content[len(head) :]


def read_secret(scheme: Scheme, data: bytes) -> Any:
    """The library's secret key of its residues.

    Raises:
        ValueError: if they are none, or this system has no file that no disk sees to hand them over in.
    """
    if not MEMORY_FILES:
        raise ValueError("a secret key is read through a memory file, which this system has not; use Linux")
    _check_length("a secret key", data, secret_bytes(scheme))
    rows = np.frombuffer(data, np.uint64).reshape(len(scheme.all_primes), -1)
    for row, prime in zip(rows, scheme.all_primes, strict=True):
        _check_residues("a secret key", row, prime)
    return load_into(seal.SecretKey(), scheme.context, container([_secret_head(scheme), data]))


def _half_bytes(scheme: Scheme, primes: Sequence[int]) -> int:
    return packed_bytes((prime.bit_length() for prime in primes), scheme.parameters.degree)


def _first_half(scheme: Scheme, content: Buffer, head: bytes, primes: Sequence[int]) -> bytes:
    """Packed residues and the seed of a saved ciphertext; everything around them must be what we would write."""
    words, view = scheme.parameters.degree * len(primes), memoryview(content)
    end = len(head) + 8 * words
    if bytes(view[: len(head)]) != head or bytes(view[end:-SEED_BYTES]) != GENERATOR:
        raise RuntimeError(wrong_library("a seeded ciphertext of an unknown layout"))
    rows = np.frombuffer(view, np.uint64, words, len(head)).reshape(len(primes), -1)
    packed = pack((row, prime.bit_length()) for row, prime in zip(rows, primes, strict=True))
    return packed.tobytes() + bytes(view[-SEED_BYTES:])


def _seeded(scheme: Scheme, data: memoryview, primes: Sequence[int]) -> Iterator[Buffer]:
    """What follows the head of a seeded ciphertext, of a peer's packed residues and seed."""
    widths = [prime.bit_length() for prime in primes]
    rows = unpack(data[:-SEED_BYTES], widths, scheme.parameters.degree)
    for row, prime in zip(rows, primes, strict=True):
        _check_residues("what came", row, prime)
        yield row.tobytes()
    yield GENERATOR
    yield bytes(data[-SEED_BYTES:])


def _check_length(what: str, data: Buffer, expected: int) -> None:
    if len(data) != expected:
        raise ValueError(f"{what} of {len(data):,} bytes; with these parameters it has {expected:,}")


def _check_residues(what: str, words: NDArray[np.uint64], prime: int) -> None:
    if int(words.max()) >= prime:
        raise ValueError(f"{what} holds a residue that is not below its prime {prime}")


def _fresh_head(scheme: Scheme) -> bytes:
    return _head(scheme, scheme.parameters.levels, scheme.scale, seeded=True)


def _head(scheme: Scheme, level: int, scale: float, *, seeded: bool) -> bytes:
    degree = scheme.parameters.degree
    words = (1 if seeded else 2) * (level + 1) * degree
    return _HEAD.pack(*scheme.identities[level], True, 2, degree, level + 1, scale, 1) + array_header(words)


def _key_head(scheme: Scheme) -> bytes:
    """All that precedes the residues of one part of a key, a container in a container."""
    degree, primes = scheme.parameters.degree, len(scheme.all_primes)
    identity = scheme.context.key_parms_id()
    head = _HEAD.pack(*identity, True, 2, degree, primes, 1.0, 1) + array_header(primes * degree)
    return container_header(len(head) + 8 * primes * degree + len(GENERATOR) + SEED_BYTES) + head


def _around(scheme: Scheme, name: str) -> tuple[bytes, bytes]:
    """What precedes and follows the parts of a key: the library has one for every Galois element, most of them none."""
    count, place = 1, 0
    if name != SQUARE:
        count = scheme.parameters.degree
        place = scheme.element(int(name.removeprefix("rotate-"))) >> 1
    before = struct.pack("<5Q", *scheme.context.key_parms_id(), count) + bytes(8 * place)
    return before + struct.pack("<Q", len(scheme.primes)), bytes(8 * (count - 1 - place))


def _secret_head(scheme: Scheme) -> bytes:
    words = scheme.parameters.degree * len(scheme.all_primes)
    return _SECRET.pack(*scheme.context.key_parms_id(), words, 1.0) + array_header(words)
