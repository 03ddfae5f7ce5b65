"""Sign tests: words in the clear and the rules of the papers agree on every share of every value."""

from __future__ import annotations

import numpy as np
import pytest
from support.signs import PRIMES, WINDOWS, WRAPS, every_share

from deepreshape.private.arith.drelu import MODES, Mode, Parity, Window, Wrap
from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, Field, Ring
from deepreshape.private.arith.rng import Randomness


@pytest.mark.parametrize("sign", WINDOWS, ids=str)
def test_a_window_follows_the_rules_of_circa(sign: Window) -> None:
    x, client, positive = every_share(sign)
    r = client.astype(np.int64) % (1 << sign.low)
    rule = x > r if sign.mode == "pos-zero" else x + (1 << sign.low) > r
    assert np.array_equal(positive, rule)
    if not sign.low:
        assert np.array_equal(positive[x != 0], x[x != 0] > 0)
    assert x[positive == 1].min(initial=0) >= -sign.reach


@pytest.mark.parametrize("field", PRIMES, ids=str)
def test_parity_is_exact(field: Field) -> None:
    x, _, positive = every_share(Parity(field))
    assert np.array_equal(positive, x >= 0)


@pytest.mark.parametrize("sign", WRAPS, ids=str)
def test_a_wrap_compares_as_circa_does(sign: Wrap) -> None:
    x, client, positive = every_share(sign)
    p = sign.modulus.order
    t = -client.astype(np.int64) % p
    server, low = (x + t) % p >> sign.low, t >> sign.low
    assert np.array_equal(positive, server > low if sign.mode == "pos-zero" else server >= low)


@pytest.mark.parametrize("field", PRIMES, ids=str)
def test_a_whole_comparison_is_wrong_for_exactly_x_of_p_shares(field: Field) -> None:
    x, _, positive = every_share(Wrap(field))
    wrong = (positive != (x > 0)).reshape(field.order, -1).sum(0)
    assert np.array_equal(wrong, np.abs(x[: wrong.size]))


@pytest.mark.parametrize("mode", MODES)
def test_faults_of_a_window_count_up_to_the_formula(mode: Mode) -> None:
    sign = Window(Ring(8), 4, 8, mode)
    x, _, positive = every_share(sign)
    wrong = (positive != (x > 0)).reshape(256, -1).mean(0)
    for value, share in zip(x.tolist(), wrong.tolist(), strict=False):
        small = 0 < value < 16 if mode == "pos-zero" else -16 < value < 0
        assert share == ((16 - abs(value)) / 16 if small else value == 0 and mode == "neg-pass")


@pytest.mark.parametrize(
    "sign", [Window(Ring(63), 0, 63), Window(Ring(63), 3, 60, "neg-pass"), Window(Ring(37), 0, 30)]
)
def test_wide_windows_are_right_up_to_their_room(sign: Window) -> None:
    x = np.array(
        [1 - sign.max_input, -sign.max_input, -(1 << sign.low), 1 << sign.low, sign.max_input - 1, sign.max_input]
    )
    for _ in range(50):
        client = sign.modulus.random(x.size, Randomness())
        server = sign.modulus.sub(sign.modulus.encode(x), client)
        assert np.array_equal(sign.positive(sign.client_word(client), sign.server_word(server)), x > 0)


def test_compared_bits_of_real_sizes() -> None:
    assert Window(Ring(37), 0, 37).compared_bits == 36
    assert Window(Ring(37), 12, 37).compared_bits == 24
    assert Parity(Field(DELPHI_PRIME)).compared_bits == 41
    assert Wrap(Field(CIRCA_PRIME), 12).compared_bits == 19  # Circa's


@pytest.mark.parametrize(("low", "high"), [(0, 9), (7, 8), (-1, 8), (8, 8)])
def test_windows_that_make_no_sense(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=f"bits {low} to {high - 1} of Ring"):
        Window(Ring(8), low, high)
    with pytest.raises(ValueError, match="without 30 of 31 bits"):
        Wrap(Field(CIRCA_PRIME), 30)
