"""Ring packing: several ciphertexts, of each of which every T-th coefficient counts, become one of which all count.

*Method*, after Chen, Dai, Kim and Song (2021, "Efficient homomorphic conversion between (ring) LWE ciphertexts"). T is
a power of two. The automorphism X -> X^(N / s + 1), for a power of two s, leaves X^(2 s i) as it is and turns the sign
of X^(s i) for odd i. With s = T / 2, for a and b whose coefficients count at exponents that are 0 modulo T::

    (a + X^s b) + automorphism(a - X^s b)

has twice those of a at 0 modulo T and those of b at s modulo T, and nothing of what else stood at multiples of s.
So a tree of T leaves, s = T / 2, ..., 2, 1, ends with T times all the coefficients that count, and none of the others:
they cancel exactly. Neighbours meet first, so leaf j ends at its bits reversed (:func:`residue`). A missing leaf is a
zero; so may a sum or a difference be, which SEAL refuses to hold and which is left out then. The factor T is taken out
beforehand: the server multiplies what it receives by T^-1 modulo q, which is odd (:func:`inverse_of`); so t may be a
power of two.

*Keys.* An automorphism leaves a ciphertext under the secret key's image, and a key-switching key brings it back: an
encryption, modulo q and SEAL's special prime P, of P times the image, one for each data prime. The client sends the
keys of s = 1, 2, 4, ... once a session, their second halves as seeds. They rest on the circular security of BFV, that
is, also where its own secret key is encrypted, as all key switching does.

*Noise.* One switch adds at most sum_i 21 N p_i / P for the keys' errors, and (1 + N) / 2 for rounding the division by P
(:attr:`Parameters.switch_noise`). One of every level of the tree reaches a coefficient, doubled by each level above:
T - 1 times as much in all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from deepreshape.private.crypto.he.parameters import Parameters
from deepreshape.private.crypto.he.residues import Buffer, Residues, pack_residues, unpack_below, width
from deepreshape.private.crypto.he.seal_container import (
    GENERATOR,
    SEED_BYTES,
    array_header,
    ciphertext_head,
    container,
    container_header,
    content_of,
    load_into,
    plaintext_head,
    saved_container,
    seal,
    wrong_library,
)

_HEADER_BYTES = len(container_header(0))


def residue(leaf: int, interleave: int) -> int:
    """The exponents, modulo T, at which the coefficients of a leaf end: its number with its bits reversed."""
    levels = interleave.bit_length() - 1
    return sum((leaf >> level & 1) << (levels - 1 - level) for level in range(levels))


def switches(leaves: int, interleave: int) -> int:
    """How often :func:`packed` switches keys for so many leaves, in trees of T at most."""
    count = 0
    for _ in range(interleave.bit_length() - 1):
        leaves = -(-leaves // 2)
        count += leaves
    return count


def element(degree: int, level: int) -> int:
    """The exponent of the automorphism of s = 2^level."""
    return degree // 2**level + 1


def made_keys(parameters: Parameters, context: Any, generator: Any) -> list[bytes]:
    """The keys of all levels, fresh, for the wire: ``switching_key_bytes`` each."""
    head = _head(parameters, context)
    size = len(head) + 8 * parameters.degree * len(parameters.all_primes)
    wires: list[bytes] = []
    for level in range(parameters.galois_keys):
        exponent = element(parameters.degree, level)
        data = content_of(saved_container(generator.create_galois_keys([exponent])))
        at = 32 + 8 + 8 * (exponent // 2)
        if struct.unpack_from("<Q", data, at) != (len(parameters.primes),):
            raise RuntimeError(wrong_library("key-switching keys of an unknown layout"))
        at += 8
        parts: list[bytes] = []
        for _ in parameters.primes:
            key = data[at + _HEADER_BYTES : at + _HEADER_BYTES + size + len(GENERATOR) + SEED_BYTES]
            if not key.startswith(head) or key[size:-SEED_BYTES] != GENERATOR:
                raise RuntimeError(wrong_library("key-switching keys of an unknown layout"))
            rows = np.frombuffer(key, np.uint64, (size - len(head)) // 8, len(head)).reshape(-1, parameters.degree)
            for row, prime in zip(rows, parameters.all_primes, strict=True):
                parts.append(pack_residues(row, width(prime)))
            parts.append(key[-SEED_BYTES:])
            at += _HEADER_BYTES + len(key)
        wires.append(b"".join(parts))
    return wires


def loaded_keys(parameters: Parameters, context: Any, wires: Sequence[Buffer]) -> Any:
    """SEAL's Galois keys from a peer's; None where there are none.

    Raises:
        ProtocolError: if their number or a length is wrong, or a residue is not below its prime.
    """
    parameters.check_keys(wires)
    if not wires:
        return None
    members: list[Buffer] = [struct.pack("<5Q", *context.key_parms_id(), parameters.degree)]
    begin = 0
    for level in reversed(range(len(wires))):
        index = element(parameters.degree, level) // 2
        members.append(bytes(8 * (index - begin)) + struct.pack("<Q", len(parameters.primes)))
        members += _digits(parameters, context, wires[level])
        begin = index + 1
    members.append(bytes(8 * (parameters.degree - begin)))
    return load_into(seal.GaloisKeys(), context, container(members))


def _digits(parameters: Parameters, context: Any, wire: Buffer) -> list[Buffer]:
    """The containers of one switching key, one a data prime."""
    head, view, at = _head(parameters, context), memoryview(wire), 0
    members: list[Buffer] = []
    for _ in parameters.primes:
        rows: list[Residues] = []
        for prime in parameters.all_primes:
            row, at = unpack_below(view, at, parameters.degree, prime, "switching key")
            rows.append(row)
        key = container([head, *(row.data.cast("B") for row in rows), GENERATOR, bytes(view[at : at + SEED_BYTES])])
        at += SEED_BYTES
        members.append(key)
    return members


def _head(parameters: Parameters, context: Any) -> bytes:
    count = len(parameters.all_primes)
    head = ciphertext_head(context.key_parms_id(), True, parameters.degree, count)
    return head + array_header(count * parameters.degree)


def inverse_of(parameters: Parameters, context: Any, interleave: int) -> Any:
    """T^-1 modulo q as a constant polynomial, in SEAL's form for products."""
    rows = [np.full(parameters.degree, pow(interleave, -1, prime), np.uint64) for prime in parameters.primes]
    data = plaintext_head(context.first_parms_id(), parameters.degree * len(rows))
    return load_into(seal.Plaintext(), context, container([data, *(row.data.cast("B") for row in rows)]))


def packed(evaluator: Any, keys: Any, leaves: Sequence[Any], degree: int, interleave: int) -> Any:
    """One ciphertext of up to T leaves; a leaf that is None is zero, and so is the result of such leaves only."""
    nodes = list(leaves)
    for level in reversed(range(interleave.bit_length() - 1)):
        pairs = zip_longest(nodes[::2], nodes[1::2])
        nodes = [_merged(evaluator, keys, a, b, degree, level) for a, b in pairs]
    [root] = nodes
    return root


def _merged(evaluator: Any, keys: Any, a: Any, b: Any, degree: int, level: int) -> Any:
    if a is None and b is None:
        return None
    if b is not None:
        evaluator.multiply_plain_inplace(b, seal.Plaintext(f"1x^{2**level}"))
    turned, image = seal.Ciphertext(), seal.Ciphertext()
    total = b if a is None else a
    if a is None:
        evaluator.negate(b, turned)
    elif b is None:
        turned = a
    else:
        # weights of which one row is the other, shifted by s: the identity's are, and those of a part passed on
        turned = turned if _nonzero(evaluator.sub, a, b, turned) else None
        total = a if _nonzero(evaluator.add_inplace, a, b) else None
    if turned is None:
        return total
    evaluator.apply_galois(turned, element(degree, level), keys, image)
    if total is None:
        return image
    evaluator.add_inplace(total, image)
    return total


def _nonzero(combine: Callable[..., None], *operands: Any) -> bool:
    """Add or subtract ciphertexts; whether that is not zero, which SEAL calls transparent and does not give."""
    try:
        combine(*operands)
    except RuntimeError as error:
        if "transparent" not in str(error):
            raise
        return False
    return True
