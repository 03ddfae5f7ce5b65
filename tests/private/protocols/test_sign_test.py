"""Which bits the test of a sign reads under which word, and how wrong it may be: as the rules say, and nowhere else."""

import numpy as np
import pytest
from support.two_parties import fixed

from deepreshape.private.arith.drelu import Window
from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.program.ops import Sign
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.sign_test import replayed, window_of

RING = Ring(14)
SIGN = Sign("s", ("x",), 12, 3, 9)


@pytest.mark.parametrize(
    ("word", "bits"),
    [
        *[(word, (0, 12)) for word in ("gc-full", "gc-sign", "gc-stochastic:drop=4", "ot", "ot:drop=4,neg-pass")],
        ("gc-sign:window", (0, 9)),
        *[(word, (3, 9)) for word in ("gc-stochastic:window", "ot:window", "ot:window,tree")],
    ],
)
def test_calibrated_bits_are_read_under_a_window_alone(word: str, bits: tuple[int, int]):
    test = window_of(RING, SIGN, ReluConfig.parse(word))
    assert (test.low, test.high) == bits
    proven = window_of(RING, Sign("s", ("x",), 7), ReluConfig.parse(word))
    assert (proven.low, proven.high) == (0, 7)
    nothing = window_of(RING, Sign("s", ("x",)), ReluConfig.parse(word))
    assert (nothing.low, nothing.high) == (0, 14)


def everything(test: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every value that the window is for, every one of 2^low low bits of the client's share, and what comes of them."""
    values = np.arange(-test.max_input, test.max_input + 1)
    above = RING.random(len(values) << test.low, fixed(1)).reshape(len(values), -1) >> np.uint64(test.low)
    low = np.arange(1 << test.low, dtype=np.uint64)
    shares = (above << np.uint64(test.low)) | low
    return values, low.astype(np.int64), replayed(test, np.broadcast_to(values[:, None], shares.shape), shares)


def test_without_low_bits_every_value_of_the_window_has_its_sign_and_0_has_minus_1():
    for word in ("gc-sign:window", "gc-stochastic:window,neg-pass", "ot:window,neg-pass"):
        test = window_of(RING, Sign("s", ("x",), 12, 0, 7), ReluConfig.parse(word))
        values, _, signs = everything(test)
        assert np.array_equal(signs[:, 0], np.where(values > 0, 1, -1))


@pytest.mark.parametrize("mode", ["pos-zero", "neg-pass"])
def test_only_values_near_the_threshold_are_wrong_and_as_likely_as_the_mode_says(mode: str):
    test = window_of(RING, SIGN, ReluConfig.parse(f"gc-stochastic:window,{mode}"))
    values, low, signs = everything(test)
    if mode == "pos-zero":
        assert np.array_equal(signs, np.where(values[:, None] > low, 1, -1))
    else:
        assert np.array_equal(signs, np.where(values[:, None] + 8 > low, 1, -1))
    wrong = (signs != np.where(values > 0, 1, -1)[:, None]).mean(1)
    side = (values > 0) == (mode == "pos-zero")
    assert np.array_equal(wrong, np.where(side, np.maximum(8 - np.abs(values), 0) / 8, 0))


def test_past_the_window_the_sign_is_that_of_the_bits_that_are_left():
    test = window_of(RING, Sign("s", ("x",), 12, 0, 7), ReluConfig.parse("gc-sign:window"))
    assert test.max_input == 63
    beyond = np.array([64, 100, 127, 128, 130, -65, -66, -129])
    wrapped = (beyond - 1 + 64) % 128 - 64  # what is tested is whether x - 1 is 0 or above
    assert np.array_equal(replayed(test, beyond, RING.random(8, fixed(2))), np.where(wrapped >= 0, 1, -1))


def test_primes_are_refused():
    with pytest.raises(ValueError, match="signs are computed over a ring, not over Field"):
        window_of(Field(65537), SIGN, ReluConfig())
