"""The word that says how ReLUs are computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.private.arith.drelu import MODES, Parity, Window, Wrap
from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring
from deepreshape.private.program.ops import ProgramError, Relu
from deepreshape.private.program.relu_config import EXACT, Variant

VARIANTS = st.one_of(
    st.just(EXACT),
    st.builds(Variant, st.just("gc-sign"), calibrated=st.booleans()),
    st.builds(Variant, st.just("gc-stochastic"), drop=st.integers(0, 40), mode=st.sampled_from(MODES)),
    st.builds(Variant, st.just("gc-stochastic"), calibrated=st.just(True), mode=st.sampled_from(MODES)),
)


@given(variant=VARIANTS)
def test_a_variant_is_its_word(variant: Variant) -> None:
    assert Variant.parse(str(variant)) == variant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gc-half", "no ReLU protocol 'gc-half'"),
        ("gc-sign:drop=3", "gc-sign drops no bits"),
        ("gc-full:calibrated", "calibrated bits are for"),
        ("gc-stochastic:drop=3,calibrated", "calibrated bits are for"),
        ("gc-stochastic:drop=x", "'drop=x' is no setting"),
        ("gc-stochastic:k=3", "'k=3' is no setting"),
    ],
)
def test_words_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Variant.parse(text)


def test_sign_tests_of_each_variant() -> None:
    ring, field, relu = Ring(37), Field(CIRCA_PRIME), Relu("r", ("input",), 9, None, 7, 25)
    cases = {
        "gc-full": (None, None),
        "gc-sign": (Window(ring, 0, 37), Parity(field)),
        "gc-sign:calibrated": (Window(ring, 0, 25), Parity(field)),
        "gc-stochastic:drop=12": (Window(ring, 12, 37), Wrap(field, 12)),
        "gc-stochastic:neg-pass,calibrated": (Window(ring, 7, 25, "neg-pass"), Wrap(field, 7, "neg-pass")),
    }
    for text, (over_ring, over_field) in cases.items():
        variant = Variant.parse(text)
        assert (variant.sign(ring, relu), variant.sign(field, relu)) == (over_ring, over_field)
    with pytest.raises(ProgramError, match=r"^r: a sign test of bits 36 to 36"):
        Variant("gc-stochastic", drop=36).sign(ring, relu)


def test_rooms() -> None:
    ring, relu = Ring(37), Relu("r", ("input",), 9, None, 7, 25)
    assert EXACT.room(ring, relu) == 2**36 - 1
    assert Variant("gc-sign").room(ring, relu) == 2**36 - 2**9
    assert Variant("gc-sign", calibrated=True).room(ring, relu) == 2**24 - 1
    assert Variant("gc-stochastic", calibrated=True).room(ring, relu) == 2**24 - 2**7
    assert Variant("gc-stochastic", drop=12, mode="neg-pass").room(ring, relu) == 2**36 - 2**12 - 2**9
    wrapping = Variant("gc-stochastic", drop=12).room(Field(CIRCA_PRIME), relu)
    assert CIRCA_PRIME // 4 - 2 * 2**9 < wrapping <= CIRCA_PRIME // 4
