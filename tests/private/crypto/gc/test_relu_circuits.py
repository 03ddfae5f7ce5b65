"""ReLU and sign circuits in the clear: everything at tiny sizes, edge values and random ones at real sizes."""

from __future__ import annotations

import numpy as np
import pytest
from support.circuits import evaluate_plain, run_words
from support.signs import PRIMES, WINDOWS, WRAPS, every_share

from deepreshape.private.arith.drelu import Parity, Sign
from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, PRIME_32, Field, Modulus, Ring, Words, to_bits
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.gc.relu_circuits import relu_and_gates, relu_circuit, sign_circuit

TINY: list[Modulus] = [*map(Ring, (2, 3, 4, 5)), *map(Field, (3, 5, 7, 11, 13, 17, 23))]
REAL: list[Modulus] = [*map(Ring, (16, 32, 37, 63)), *map(Field, (CIRCA_PRIME, PRIME_32, DELPHI_PRIME, 2**61 - 1))]


def check_relu(modulus: Modulus, shift: int, share: Words, mask: Words, theirs: Words) -> None:
    bits = modulus.bits
    got = run_words(relu_circuit(modulus, shift), (share, bits), (mask, bits), (theirs, bits))
    for y, a, m, b in zip(got.tolist(), share.tolist(), mask.tolist(), theirs.tolist(), strict=True):
        x = (a + b) % modulus.order
        positive = x if x <= (modulus.order - 1) // 2 else 0
        assert y == ((positive >> shift) + m) % modulus.order, (a, b, m)


@pytest.mark.parametrize("modulus", TINY, ids=str)
def test_relu_on_every_input(modulus: Modulus) -> None:
    every = np.arange(modulus.order, dtype=np.uint64)
    share, mask, theirs = (axis.reshape(-1) for axis in np.meshgrid(every, every, every))
    for shift in range(modulus.bits - 1):
        check_relu(modulus, shift, share, mask, theirs)


@pytest.mark.parametrize("modulus", REAL, ids=str)
@pytest.mark.parametrize("shift", [0, 7])
def test_relu_on_edges_and_at_random(modulus: Modulus, shift: int) -> None:
    order, rng = modulus.order, Randomness(bytes(32))
    edges = [0, 1, order // 2 - 1, order // 2, (order - 1) // 2, (order + 1) // 2, order - 2, order - 1]
    edge = np.array(edges, np.uint64)
    share, mask, x = (axis.reshape(-1) for axis in np.meshgrid(edge, edge, edge))
    check_relu(modulus, shift, share, mask, modulus.sub(x, share))
    check_relu(modulus, shift, share, mask, x)
    check_relu(modulus, shift, *(modulus.random(300, rng) for _ in range(3)))


@pytest.mark.parametrize("modulus", [*TINY, *REAL], ids=str)
def test_and_gates_equal_the_formula(modulus: Modulus) -> None:
    for shift in range(min(modulus.bits - 1, 12)):
        assert relu_circuit(modulus, shift).and_gates == relu_and_gates(modulus, shift)


def test_and_gates_equal_the_literature() -> None:
    for prime in (CIRCA_PRIME, PRIME_32, DELPHI_PRIME):
        assert relu_circuit(Field(prime), 0).and_gates == 8 * prime.bit_length() - 3
    for bits in (16, 31, 32, 37):
        assert relu_circuit(Ring(bits), 0).and_gates == 3 * (bits - 1)
    assert relu_circuit(Field(PRIME_32), 0).and_gates == 253


@pytest.mark.parametrize("sign", [*WINDOWS, *map(Parity, PRIMES), *WRAPS], ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_circuit_equals_words_in_the_clear(sign: Sign, half: bool) -> None:
    x, client, positive = every_share(sign)
    server = sign.modulus.sub(sign.modulus.encode(x), client)
    circuit = sign_circuit(sign, half)
    words = [to_bits(sign.client_word(client), sign.width), to_bits(sign.server_word(server), sign.width)]
    extra = np.ones((int(half), x.size), np.uint8)
    for one, other in (words, words[::-1]):
        outputs = evaluate_plain(circuit, np.concatenate([one, other, extra]))
        assert np.array_equal(outputs, np.concatenate([positive[None], extra]))
    assert circuit.and_gates == sign.compared_bits


@pytest.mark.parametrize(("modulus", "shift"), [(Ring(8), 7), (Ring(8), -1), (Field(7), 2)])
def test_a_shift_that_leaves_nothing_is_refused(modulus: Modulus, shift: int) -> None:
    with pytest.raises(ValueError, match=f"cannot drop {shift} bits"):
        relu_circuit(modulus, shift)
