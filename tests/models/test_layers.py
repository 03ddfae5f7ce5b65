"""Layers by arithmetic against a trace of the built network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.counting import count
from deepreshape.models import Architecture, architecture, build, relus
from deepreshape.models.resnet import layers
from deepreshape.removal import candidates


def agree(made: Architecture) -> None:
    found = tuple(layers(made))
    assert found == count(build(made, "meta"), made.input).layers
    assert sum(getattr(layer, "relus", 0) for layer in found) == relus(made)


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "hrn-5x5x3x-m4", "resnet50-m4", "resnet18-m4-r2"])
def test_layers_are_those_of_a_trace(name: str):
    agree(architecture(name))


@given(
    st.lists(st.integers(1, 2), min_size=2, max_size=4),
    st.integers(2, 9),
    st.data(),
    st.sampled_from(["basic", "bottleneck"]),
)
def test_layers_are_those_of_a_trace_after_every_plan(phi, base, data, block):
    multipliers = tuple(data.draw(st.integers(1, 4)) for _ in phi[1:])
    whole = Architecture("resnet", tuple(phi), base, multipliers, (3, 16, 16), 7, block)
    agree(data.draw(st.sampled_from(list(candidates(whole)))).architecture)
