"""The word that says how ReLUs are computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.private.arith.drelu import MODES, Parity, Window, Wrap
from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring
from deepreshape.private.program.ops import ProgramError, Relu
from deepreshape.private.program.relu_config import (
    GC_FULL,
    MOST_LAYERS,
    ROLES,
    Assignment,
    ReluConfig,
    assigned,
    read_relus,
)
from deepreshape.private.protocols.choose import relu_protocol

CONFIGS = st.one_of(
    st.just(GC_FULL),
    st.builds(ReluConfig, st.just("gc-full"), garbler=st.sampled_from(ROLES), batch=st.integers(1, 9000)),
    st.builds(ReluConfig, st.just("gc-sign"), window=st.booleans(), garbler=st.sampled_from(ROLES)),
    st.builds(ReluConfig, st.just("gc-stochastic"), drop=st.integers(0, 40), mode=st.sampled_from(MODES)),
    st.builds(ReluConfig, st.just("gc-stochastic"), window=st.just(True), mode=st.sampled_from(MODES)),
)


@given(relu=CONFIGS)
def test_a_config_is_its_word(relu: ReluConfig) -> None:
    assert ReluConfig.parse(str(relu)) == relu


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gc-half", "no ReLU protocol 'gc-half'"),
        ("gc-sign:drop=3", "gc-sign takes no drop; its settings are window, garbler, batch"),
        ("gc-full:window", "gc-full takes no window"),
        ("gc-stochastic:drop=3,window", "drop=3 and window both say"),
        ("gc-stochastic:drop=x", "unknown setting 'drop=x'; there are window, drop=BITS"),
        ("gc-stochastic:k=3", "unknown setting 'k=3'"),
        ("gc-sign:garbler=me", "unknown setting 'garbler=me'"),
        ("gc-sign:batch=0", "batch at least 1, not 0 and 0"),
        ("ot:tree,chain", "'ot:tree,chain' gives carry as tree and as chain; give it once"),
        ("gc-stochastic:drop=3,pos-zero,neg-pass", "gives mode as pos-zero and as neg-pass"),
        ("gc-stochastic:drop=3,drop=12", "gives drop as 3 and as 12"),
        ("ot:", "'ot:': a setting is missing behind the colon or a comma; ot alone is a word too"),
        ("ot:window,", "'ot:window,': a setting is missing"),
        ("gc-sign:,window", "'gc-sign:,window': a setting is missing"),
        ("ot:exact,window", "'ot:exact,window': exact leaves no bits out"),
        ("ot:exact,drop=3", "exact leaves no bits out"),
        ("gc-sign:calibrated", "'calibrated' is now called 'window'"),
    ],
)
def test_words_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReluConfig.parse(text)


def test_sign_tests_of_each_config() -> None:
    ring, field, op = Ring(37), Field(CIRCA_PRIME), Relu("r", ("input",), 9, None, 7, 25)
    cases = {
        "gc-full": (None, None),
        "gc-sign": (Window(ring, 0, 37), Parity(field)),
        "gc-sign:window": (Window(ring, 0, 25), Parity(field)),
        "gc-stochastic:drop=12": (Window(ring, 12, 37), Wrap(field, 12)),
        "gc-stochastic:neg-pass,window": (Window(ring, 7, 25, "neg-pass"), Wrap(field, 7, "neg-pass")),
    }
    for text, (over_ring, over_field) in cases.items():
        protocol = relu_protocol(ReluConfig.parse(text))
        assert tuple(protocol.layer(modulus, op, 1).sign for modulus in (ring, field)) == (over_ring, over_field)
    with pytest.raises(ProgramError, match=r"^r: a sign test of bits 36 to 36"):
        relu_protocol(ReluConfig("gc-stochastic", drop=36)).layer(ring, op, 1)


def test_rooms() -> None:
    ring = Ring(37)

    def room(config: ReluConfig, modulus: Ring | Field) -> int:
        protocol = relu_protocol(config)
        return protocol.max_input(protocol.layer(modulus, Relu("r", ("input",), 9, None, 7, 25), 1))

    assert room(GC_FULL, ring) == 2**36 - 1 - 2**8
    assert room(ReluConfig("gc-sign"), ring) == 2**36 - 2**9
    assert room(ReluConfig("gc-sign", window=True), ring) == 2**24 - 1
    assert room(ReluConfig("gc-stochastic", window=True), ring) == 2**24 - 2**7
    assert room(ReluConfig("gc-stochastic", drop=12, mode="neg-pass"), ring) == 2**36 - 2**12 - 2**9
    wrapping = room(ReluConfig("gc-stochastic", drop=12), Field(CIRCA_PRIME))
    assert CIRCA_PRIME // 4 - 2 * 2**9 < wrapping <= CIRCA_PRIME // 4


ALIKE = st.lists(st.sampled_from(["gc-full", "gc-sign:window", "ot:tree", "ot", "ot:window,chain"]), min_size=1)


@given(words=ALIKE)
def test_an_assignment_is_its_word(words: list[str]) -> None:
    relu = assigned([ReluConfig.parse(word) for word in words])
    assert isinstance(relu, Assignment) == (len(set(words)) > 1)
    assert read_relus(str(relu)) == relu
    assert [str(relu.at(number)) for number in range(len(words))] == words


def test_an_assignment_names_runs_and_what_it_shares() -> None:
    relu = read_relus("gc-sign:garbler=client@2+ot:tree,cot=iknp@1+gc-full:garbler=client@1")
    assert isinstance(relu, Assignment)
    assert (len(relu.configs), relu.garbler, relu.cot) == (4, "client", "iknp")
    assert relu.squares == relu.configs[2]
    assert read_relus("gc-full@1+gc-sign@1").squares == GC_FULL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ot@3", "the word of one config is for all layers"),
        ("ot:tree@2+ot:tree@1", "the word of one config is for all layers"),
        ("ot:tree@0+gc-sign@1", "'ot:tree@0' is to be WORD@COUNT"),
        ("ot:tree+gc-sign@1", r"'ot:tree' is to be WORD@COUNT, such as ot:tree@3"),
        (f"ot:tree@{MOST_LAYERS}+gc-sign@1", f"for {MOST_LAYERS} layers at most"),
        ("ot:tree@99999999999+gc-sign@1", "WORD@COUNT"),
        ("gc-sign@1+gc-full:garbler=client@1", "a run has one garbler, not client and server"),
        ("ot:cot=iknp@1+ot@1", "a run has one cot, not iknp and silent"),
        ("gc-half@1+ot@1", "no ReLU protocol 'gc-half'"),
        ("auto", "'auto' is chosen by price before a run"),
        ("ot:auto", "'ot:auto' is chosen by price before a run"),
    ],
)
def test_assignments_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_relus(text)
