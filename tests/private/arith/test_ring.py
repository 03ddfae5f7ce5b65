"""Arithmetic of shares against Python's integers, and their wire form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.two_parties import fixed

from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, PRIME_32, Field, Modulus, Ring, from_bits, to_bits
from deepreshape.private.errors import ProtocolError

MODULI: list[Modulus] = [
    *map(Ring, (2, 8, 16, 32, 37, 63)),
    *map(Field, (3, 7, CIRCA_PRIME, PRIME_32, DELPHI_PRIME, 2**61 - 1, 2**63 - 25)),
]


@pytest.mark.parametrize("modulus", MODULI, ids=str)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_arithmetic_is_that_of_integers(modulus: Modulus, data: st.DataObject) -> None:
    order = modulus.order
    elements = st.integers(0, order - 1) | st.sampled_from([0, 1, order // 2, (order + 1) // 2, order - 1])
    a, b = (data.draw(st.lists(elements, min_size=5, max_size=5)) for _ in range(2))
    factor = data.draw(st.integers(-(2**40), 2**40))
    x, y = np.array(a, np.uint64), np.array(b, np.uint64)
    assert modulus.add(x, y).tolist() == [(i + j) % order for i, j in zip(a, b, strict=True)]
    assert modulus.sub(x, y).tolist() == [(i - j) % order for i, j in zip(a, b, strict=True)]
    assert modulus.neg(x).tolist() == [-i % order for i in a]
    assert modulus.scale(x, factor).tolist() == [i * factor % order for i in a]
    assert modulus.encode(modulus.decode(x)).tolist() == a
    assert modulus.unpack(memoryview(modulus.pack(x)), 5).tolist() == a
    assert from_bits(to_bits(x, modulus.bits)).tolist() == a


@pytest.mark.parametrize("modulus", MODULI, ids=str)
def test_signed_values(modulus: Modulus) -> None:
    low, high = -(modulus.order // 2), (modulus.order - 1) // 2
    values = np.array([low, -1, 0, 1, high])
    assert modulus.encode(values).tolist() == [v % modulus.order for v in values.tolist()]
    assert modulus.decode(modulus.encode(values)).tolist() == values.tolist()
    for outside in (low - 1, high + 1):
        if -(2**63) <= outside < 2**63:
            with pytest.raises(OverflowError, match=str(outside)):
                modulus.encode(np.array([0, outside]))


@pytest.mark.parametrize("modulus", MODULI, ids=str)
def test_wire_form_refuses_what_is_not_an_element(modulus: Modulus) -> None:
    good = modulus.pack(np.array([modulus.order - 1], np.uint64))
    assert len(good) == modulus.element_bytes == -(-modulus.bits // 8)
    with pytest.raises(ProtocolError, match="got"):
        modulus.unpack(memoryview(good + b"\0"), 1)
    if modulus.order < 256**modulus.element_bytes:
        bad = modulus.order.to_bytes(modulus.element_bytes, "little")
        with pytest.raises(ProtocolError, match="not an element"):
            modulus.unpack(memoryview(good + bad), 2)


@pytest.mark.parametrize("modulus", [Ring(3), Field(5), Field(11)], ids=str)
def test_random_elements_are_uniform(modulus: Modulus) -> None:
    draws = 40_000
    counts = np.bincount(modulus.random((draws // 4, 4), fixed(1)).reshape(-1).astype(int), minlength=modulus.order)
    expected = draws / modulus.order
    assert counts.size == modulus.order
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_primes_of_the_literature() -> None:
    assert [Field(p).bits for p in (CIRCA_PRIME, PRIME_32, DELPHI_PRIME)] == [31, 32, 41]


@pytest.mark.parametrize("number", [0, 1, 2, 4, 9, 561, 3215031751, 2**62, 2**63 + 29, 3825123056546413051])
def test_a_field_wants_an_odd_prime(number: int) -> None:
    with pytest.raises(ValueError, match=f"{number} is not an odd prime"):
        Field(number)


@pytest.mark.parametrize("bits", [1, 64])
def test_a_ring_has_2_to_63_bits(bits: int) -> None:
    with pytest.raises(ValueError, match=f"{bits} bits"):
        Ring(bits)
