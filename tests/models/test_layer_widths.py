from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreshape.counting import count
from deepreshape.models import architecture, build, from_dict
from deepreshape.private.program.lower import lower

PUBLISHED = (16, 6, 17, 6, 17, 9, 16, 26, 23, 28, 24, 29, 29, 78, 66, 93, 97, 112, 128)
"""ResNet-20 as Network Adjustment (Chen et al., CVPR 2020) publishes it."""


def test_the_published_widths_have_their_relus():
    adjusted = replace(architecture("resnet20"), layer_widths=PUBLISHED)
    assert adjusted.relus == count(build(adjusted, "meta"), (3, 32, 32)).total.relus == 166_528


@settings(max_examples=12)
@given(name=st.sampled_from(["resnet20", "resnet50-phi1.2.1.1", "resnet18-phi1.2.1.1-imagenet"]), data=st.data())
def test_any_widths_count_alike_by_arithmetic_and_by_trace(name: str, data):
    start = architecture(name)
    convolutions = 1 + sum(start.phi) * start.depth
    widths = data.draw(st.lists(st.integers(1, 40), min_size=convolutions, max_size=convolutions))
    adjusted = replace(start, layer_widths=tuple(widths))
    counted = count(build(adjusted, "meta"), (3, 32, 32))
    assert adjusted.relus == counted.total.relus
    assert adjusted.layers() == tuple(counted.layers)
    assert architecture(adjusted.name) == adjusted == from_dict(adjusted.to_dict())


def test_usual_widths_given_one_by_one_are_the_same_network():
    start = architecture("resnet18-m4", (3, 16, 16), 10)
    given_widths = [4] + [width for width in start.widths for _ in range(4)]
    one, other = build(start, seed=0).eval(), build(replace(start, layer_widths=tuple(given_widths)), seed=0).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(one(x), other(x))


def test_channels_that_pass_a_block_are_those_of_its_shortcut():
    """A block narrower than its stream changes its first channels only, and has ReLUs on those alone."""
    start = architecture("resnet20-m4-phi2.1.1", (1, 8, 8), 10)
    narrow = build(replace(start, layer_widths=(6, 3, 6, 3, 4, 3, 8, 3, 8)), seed=0).eval()
    x = torch.rand(2, 6, 8, 8)
    block = narrow.get_submodule("stage1.1")
    assert torch.equal(block(x)[:, 4:], x[:, 4:])
    assert not torch.equal(block(x)[:, :4], x[:, :4])
    assert next(site for site in narrow.architecture.sites() if site.name == "stage1.1.act2").channels == 4


def test_widths_lower_and_the_program_computes_the_same():
    start = architecture("resnet20-m4-phi2.2.1", (1, 8, 8), 10)
    network = build(replace(start, layer_widths=(5, 3, 7, 4, 5, 6, 3, 2, 9, 4, 8)), seed=0).eval()
    x = torch.randn(4, 1, 8, 8)
    lowered = lower(network, x.numpy())
    assert lowered.program.relus == network.architecture.relus
