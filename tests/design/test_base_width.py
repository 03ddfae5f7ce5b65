"""The same network at the base width that has so many multiply-adds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.counting import count
from deepreshape.design.base_width import TOLERANCE, multiply_adds, scaled_to_macs
from deepreshape.models import architecture, build

NAMES = st.sampled_from(["resnet18", "resnet20", "hrn-5x5x3x", "stch-4x4x4x", "resnet9-strided", "vgg16"])


@given(NAMES, st.integers(1, 40))
def test_a_network_is_given_back_by_its_own_multiply_adds(name: str, base: int):
    exact = architecture(f"{name}-m{base}")
    assert scaled_to_macs(architecture(name), multiply_adds(exact)).name == exact.name


@given(NAMES, st.floats(5e6, 5e8))
def test_no_other_base_width_is_nearer(name: str, macs: float):
    whole = architecture(name)
    scaled = scaled_to_macs(whole, macs, tolerance=10.0)
    off = abs(multiply_adds(scaled) - macs)
    for base in {max(1, scaled.base - 1), scaled.base + 1}:
        assert abs(multiply_adds(architecture(f"{name}-m{base}")) - macs) >= off


def test_multiply_adds_are_those_of_the_built_network():
    scaled = scaled_to_macs(architecture("hrn-5x5x3x"), 35e6)
    assert scaled.name == "hrn-5x5x3x-m3"
    assert count(build(scaled, "meta"), scaled.input).total.macs == multiply_adds(scaled)
    assert abs(multiply_adds(scaled) / 35e6 - 1) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "macs", "message"),
    [
        (
            "hrn-5x5x3x",
            2e6,
            "hrn-5x5x3x has no base width with 2,000,000 multiply-adds within 15%; hrn-5x5x3x-m1 comes",
        ),
        ("resnet18", -1, "-1 multiply-adds is no budget"),
        ("resnet18", float("inf"), "inf multiply-adds is no budget"),
        ("resnet20-w" + ".".join(["8"] * 19), 3e6, "has its widths by layer"),
    ],
)
def test_what_no_base_width_reaches_is_refused(name: str, macs: float, message: str):
    with pytest.raises(ValueError, match=message):
        scaled_to_macs(architecture(name), macs)
