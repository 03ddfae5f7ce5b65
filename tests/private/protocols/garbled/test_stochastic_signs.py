"""Circa's fault model: every share counted at small size, real shares of the protocol drawn at real size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.sessions import ROLES, Session, names
from support.stochastic import fault_probability, stochastic_relu

from deepreshape.private.arith.drelu import MODES, Mode, Window, Wrap
from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.program.relu_config import Role
from deepreshape.private.protocols.garbled.label_transfer import GarbledLayer


@pytest.mark.parametrize("modulus", [Ring(7), Field(61), Field(97), Field(127)], ids=str)
@pytest.mark.parametrize("drop", [0, 2, 4])
@pytest.mark.parametrize("mode", MODES)
def test_the_formula_counts_the_shares(
    modulus: Ring | Field, drop: int, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = Window(modulus, drop, 7, mode) if isinstance(modulus, Ring) else Wrap(modulus, drop, mode)
    values = np.arange(-sign.max_input, sign.max_input + 1)
    x = np.broadcast_to(values, (modulus.order, values.size))
    every = np.broadcast_to(np.arange(modulus.order, dtype=np.uint64)[:, None], x.shape)
    monkeypatch.setattr(type(modulus), "random", lambda self, shape, rng: every)
    wrong = stochastic_relu(x, modulus, drop, mode) != np.maximum(x, 0)
    assert np.array_equal(wrong.sum(0) / modulus.order, fault_probability(values, modulus, drop, mode))


def beyond_chance(count: int) -> float:
    """How far a frequency over so many draws may be off: exceeded with probability below 1e-12 (Hoeffding)."""
    return math.sqrt(math.log(2e12) / (2 * count))


@pytest.mark.parametrize("modulus", [Ring(37), Field(CIRCA_PRIME)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_drawn_shares_follow_the_formula(modulus: Ring | Field, mode: Mode) -> None:
    values = np.array([-(2**28), -3000, -1000, -1, 1, 1000, 3000, 4096, 2**28])
    draws = 100_000
    x = np.broadcast_to(values, (draws, values.size))
    wrong = (stochastic_relu(x, modulus, 12, mode) != np.maximum(x, 0)).mean(0)
    assert np.abs(wrong - fault_probability(values, modulus, 12, mode)).max() < beyond_chance(draws)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("modulus", [Ring(37), Field(CIRCA_PRIME)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_the_shares_of_two_parties_follow_the_formula(role: Role, modulus: Ring | Field, mode: Mode) -> None:
    count = 20_000
    sign = Window(modulus, 12, 37, mode) if isinstance(modulus, Ring) else Wrap(modulus, 12, mode)
    session = Session.start(role, mux=True)
    for value in (1200, -1200, 2**28):
        layer = GarbledLayer(f"layer {next(names)}", modulus, 0, count, role, sign=sign)
        x, rng = np.full(count, value), Randomness()
        share, mask = modulus.random(count, rng), modulus.random(count, rng)
        theirs = modulus.sub(modulus.encode(x), share)
        output = modulus.add(session.online(layer, session.offline(layer, share, mask), theirs), mask)
        wrong = (modulus.decode(output) != max(value, 0)).mean()
        assert abs(wrong - fault_probability(x[:1], modulus, 12, mode)[0]) < beyond_chance(count)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError, match="values up to 128 exceed what Window"):
        stochastic_relu(np.array([128]), Ring(8), 0)
    with pytest.raises(ValueError, match="bits 7 to 7 of Ring"):
        stochastic_relu(np.array([1]), Ring(8), 7)
