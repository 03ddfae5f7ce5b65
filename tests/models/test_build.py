from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

from deepreshape.counting import count
from deepreshape.models import PRESETS, Architecture, Reduction, architecture, build


@pytest.mark.parametrize(
    "name", [*PRESETS, "hrn-5x5x3x", "resnet50-imagenet", "vgg16-r2", "resnet18-r2", "resnet9-strided"]
)
@pytest.mark.parametrize("side", [32, 24])
def test_sites_are_where_a_trace_finds_relus(name: str, side: int):
    network = architecture(name, (3, side, side))
    assert isinstance(network, Architecture)
    counted = count(build(network, "meta"), network.input)
    by_site = {site.name: site.relus for site in network.sites()}
    assert by_site == {path: counts.relus for path, counts in counted.by_module.items() if counts.relus}
    assert network.relus == counted.total.relus


@pytest.mark.parametrize(
    "name", ["resnet9-m4", "resnet18-m2", "resnet50-m2", "wideresnet22-8-m4", "vgg16-m4", "hrn-2x3x-m2"]
)
def test_networks_run_and_average_pools_leave_no_comparisons(name: str):
    network = architecture(name, (3, 16, 16), 5)
    assert build(network)(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert count(build(replace(network, pool="avg"), "meta"), network.input).total.maxpool_comparisons == 0


def test_a_strided_resnet9_can_be_what_one_with_average_pools_is():
    pooled, strided = (architecture(f"resnet9-m4-{kind}", (3, 16, 16), 5) for kind in ("avg", "strided"))
    one, other = build(pooled, seed=1).eval(), build(strided, seed=2).eval()
    state = one.state_dict()
    for name, tensor in other.state_dict().items():
        if tensor.shape[2:] == (4, 4):  # the mean over a 2x2 window of a 3x3 kernel's results
            state[name] = sum(pad(state[name], (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1)) / 4
    other.load_state_dict(state)
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(other(image), one(image))
    macs = [count(build(network, "meta"), network.input).total.macs for network in (strided, pooled)]
    assert macs[0] < macs[1]
    with pytest.raises(ValueError, match="a vgg cannot stride"):
        architecture("vgg16-strided")


def test_a_site_can_be_emptied():
    network = architecture("resnet20")
    site = network.sites()[3]
    assert replace(network, reduction=Reduction(frozenset({site.name}))).relus == network.relus - site.relus


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (build(architecture("resnet9-m4"), seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multipliers": (2, 2)}, "4 stages need 3 multipliers, not 2"),
        ({"strides": (1, 2)}, "4 stages need as many strides"),
        ({"base": 0}, "base must be positive, not 0"),
        ({"classes": 0}, "classes must be positive"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(architecture("resnet18"), **change)
