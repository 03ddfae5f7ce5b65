"""Layers by arithmetic against a trace of the built network."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreshape.counting import count
from deepreshape.design.plan import coarse_plans
from deepreshape.models import ResNet, Staged, architecture, build

NETWORKS = """
    resnet18 resnet20 hrn-5x5x3x-m4 resnet50-m4 resnet18-m4-r2 resnet18-m4-imagenet resnet9-m4 resnet9-m4-strided
    vgg16-m4 vgg16-m4-r2 wideresnet22-8-m4 wideresnet28-10-m4-r2 resnet18-m4-herpn resnet9-m4-avg-herpn vgg16-m4-herpn
    wideresnet22-8-m4-herpn react18-m4 react18-m4-float react18-m4-signs-relus react18-m4-norelus-noshortcuts
    reacta-m4 reacta-m4-r2-relus resnet18-m4-seg resnet18-m4-r2-seg resnet50-m4-imagenet-seg resnet20-m4-herpn-seg
""".split()


def agree(network: Staged) -> None:
    layers = network.layers()
    assert layers == count(build(network, "meta"), network.input).layers
    assert sum(getattr(layer, "relus", 0) for layer in layers) == network.relus


@pytest.mark.parametrize("side", [32, 24])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_those_of_a_trace(name: str, side: int):
    agree(architecture(name, (3, side, side)))


@pytest.mark.parametrize("shrink", ["reuse", "reshape"])
@pytest.mark.parametrize("name", ["vgg16-m8", "resnet9-m8-strided", "wideresnet22-8-m8"])
def test_layers_of_other_families_after_every_plan(name: str, shrink):
    for plan in coarse_plans(architecture(name), shrink):
        agree(plan.architecture)


@given(
    st.lists(st.integers(1, 2), min_size=2, max_size=4),
    st.integers(2, 9),
    st.data(),
    st.sampled_from(["basic", "bottleneck"]),
    st.sampled_from(["classify", "segment"]),
    st.sampled_from([1, 2, 4]),
)
@settings(max_examples=25)
def test_layers_are_those_of_a_trace_after_every_plan(phi, base, data, block, task, down):
    multipliers = tuple(data.draw(st.integers(1, 4)) for _ in phi[1:])
    whole = ResNet(tuple(phi), base, multipliers, (3, 16, 16), 7, block=block, task=task, resolution=down)
    agree(data.draw(st.sampled_from(list(coarse_plans(whole)))).architecture)
