"""Sign tests: circuit, words in the clear and the rules of the papers agree on every share of every value."""

from __future__ import annotations

import numpy as np
import pytest

from deepreshape.private.arith.drelu import MODES, Mode, Parity, Sign, Window, Wrap, sign_circuit
from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, Field, Randomness, Ring, Words, to_bits
from deepreshape.private.arith.truncation import Division
from deepreshape.private.crypto.circuit import evaluate_plain

WINDOWS = [
    Window(Ring(bits), low, high, mode)
    for bits in (2, 3, 6)
    for high in range(2, bits + 1)
    for low in range(high - 1)
    for mode in MODES
]
PRIMES = [Field(p) for p in (3, 5, 7, 13, 31, 61)]
WRAPS = [Wrap(field, low, mode) for field in PRIMES for low in range(field.bits - 1) for mode in MODES]


def every(sign: Sign) -> tuple[np.ndarray, Words, np.ndarray]:
    """Every share of every value that the test takes: x, the client's share, and what the words say in the clear."""
    modulus = sign.modulus
    values = np.arange(-sign.room, sign.room + 1)
    x, client = (grid.reshape(-1) for grid in np.meshgrid(values, np.arange(modulus.order, dtype=np.uint64)))
    server = modulus.sub(modulus.encode(x), client)
    return x, client, sign.positive(sign.client_word(client), sign.server_word(server))


@pytest.mark.parametrize("sign", [*WINDOWS, *map(Parity, PRIMES), *WRAPS], ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_circuit_equals_words_in_the_clear(sign: Sign, half: bool) -> None:
    x, client, said = every(sign)
    server = sign.modulus.sub(sign.modulus.encode(x), client)
    circuit = sign_circuit(sign, half)
    words = [to_bits(sign.client_word(client), sign.width), to_bits(sign.server_word(server), sign.width)]
    extra = np.ones((int(half), x.size), np.uint8)
    for one, other in (words, words[::-1]):
        outputs = evaluate_plain(circuit, np.concatenate([one, other, extra]))
        assert np.array_equal(outputs, np.concatenate([said[None], extra]))
    assert circuit.and_gates == sign.and_gates


@pytest.mark.parametrize("sign", WINDOWS, ids=str)
def test_a_window_follows_the_rules_of_circa(sign: Window) -> None:
    x, client, said = every(sign)
    r = client.astype(np.int64) % (1 << sign.low)
    rule = x > r if sign.mode == "pos-zero" else x + (1 << sign.low) > r
    assert np.array_equal(said, rule)
    if not sign.low:
        assert np.array_equal(said[x != 0], x[x != 0] > 0)
    assert x[said == 1].min(initial=0) >= -sign.passed


@pytest.mark.parametrize("field", PRIMES, ids=str)
def test_parity_is_exact(field: Field) -> None:
    x, _, said = every(Parity(field))
    assert np.array_equal(said, x >= 0)


@pytest.mark.parametrize("sign", WRAPS, ids=str)
def test_a_wrap_compares_as_circa_does(sign: Wrap) -> None:
    x, client, said = every(sign)
    p = sign.modulus.order
    t = -client.astype(np.int64) % p
    server, low = (x + t) % p >> sign.low, t >> sign.low
    assert np.array_equal(said, server > low if sign.mode == "pos-zero" else server >= low)


@pytest.mark.parametrize("field", PRIMES, ids=str)
def test_a_whole_comparison_is_wrong_for_exactly_x_of_p_shares(field: Field) -> None:
    x, _, said = every(Wrap(field))
    wrong = (said != (x > 0)).reshape(field.order, -1).sum(0)
    assert np.array_equal(wrong, np.abs(x[: wrong.size]))


@pytest.mark.parametrize("mode", MODES)
def test_faults_of_a_window_count_up_to_the_formula(mode: Mode) -> None:
    sign = Window(Ring(8), 4, 8, mode)
    x, _, said = every(sign)
    wrong = (said != (x > 0)).reshape(256, -1).mean(0)
    for value, share in zip(x.tolist(), wrong.tolist(), strict=False):
        small = 0 < value < 16 if mode == "pos-zero" else -16 < value < 0
        assert share == ((16 - abs(value)) / 16 if small else value == 0 and mode == "neg-pass")


@pytest.mark.parametrize(
    "sign", [Window(Ring(63), 0, 63), Window(Ring(63), 3, 60, "neg-pass"), Window(Ring(37), 0, 30)]
)
def test_wide_windows_are_right_up_to_their_room(sign: Window) -> None:
    x = np.array([1 - sign.room, -sign.room, -(1 << sign.low), 1 << sign.low, sign.room - 1, sign.room])
    for _ in range(50):
        client = sign.modulus.random(x.size, Randomness())
        server = sign.modulus.sub(sign.modulus.encode(x), client)
        assert np.array_equal(sign.positive(sign.client_word(client), sign.server_word(server)), x > 0)


def test_and_gates_of_real_sizes() -> None:
    assert Window(Ring(37), 0, 37).and_gates == 36
    assert Window(Ring(37), 12, 37).and_gates == 24
    assert Parity(Field(DELPHI_PRIME)).and_gates == 41
    assert Wrap(Field(CIRCA_PRIME), 12).and_gates == 19  # Circa's


@pytest.mark.parametrize(("low", "high"), [(0, 9), (7, 8), (-1, 8), (8, 8)])
def test_windows_that_make_no_sense(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=f"bits {low} to {high - 1} of Ring"):
        Window(Ring(8), low, high)
    with pytest.raises(ValueError, match="without 30 of 31 bits"):
        Wrap(Field(CIRCA_PRIME), 30)


@pytest.mark.parametrize("modulus", [Ring(8), Ring(9), Field(251), Field(257)], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 3, 5])
@pytest.mark.parametrize("reach", [0, 7, 60])
def test_division_is_the_floor_or_one_unit_beside(modulus: Ring | Field, shift: int, reach: int) -> None:
    division = Division(modulus, shift, reach)
    values = np.arange(-reach, (modulus.order - 1) // 2 - division.raised + 1)
    x, client = (grid.reshape(-1) for grid in np.meshgrid(values, np.arange(modulus.order, dtype=np.uint64)))
    result = division.rounded(x, client)
    off = result - (x >> shift)
    wraps = client.astype(np.int64) > x + division.raised
    assert off.max() <= 1
    assert off.min() >= (0 if shift == 0 or isinstance(modulus, Ring) else -1)
    if shift == 0:
        assert not off.any()
        return
    usual = wraps | isinstance(modulus, Ring)
    assert set(off[usual].tolist()) <= {0, 1}
    assert not off[usual & (x % (1 << shift) == 0)].any()
    assert reach or result[x >= 0].min() >= 0
    if isinstance(modulus, Ring):
        assert np.array_equal(result.reshape(modulus.order, -1).sum(0) << shift, values * modulus.order)
