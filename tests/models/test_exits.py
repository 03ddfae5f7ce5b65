"""Networks with exits: what an exit is, what it counts, and that it shares its weights with the whole."""

import pytest
import torch
from support.few_digits import equal, weights

from deepreshape.counting import count
from deepreshape.models import (
    PRESETS,
    CellNet,
    Foreign,
    MultiExit,
    Staged,
    architecture,
    attach_exits,
    build,
    convert,
    from_dict,
)
from deepreshape.models.exits import HEADS, MultiExitNetwork, read_exits_name
from deepreshape.models.saved import load, manifest_of, save

SMALL = "resnet20-m2-phi1.1.1"


def small(at=(1, 2), name=SMALL, heads="light") -> MultiExitNetwork:
    return attach_exits(build(architecture(name, (1, 8, 8), 10), seed=0), at, heads).eval()


def named(whole: Staged, at: tuple[int, ...], heads: str = "light") -> MultiExitNetwork:
    network = build(MultiExit(whole, at, heads), "meta")
    assert isinstance(network, MultiExitNetwork)
    return network


def test_the_exits_of_resnet_18_cost_what_the_arithmetic_says():
    network = named(architecture("resnet18"), (1, 2, 3))
    counts = [count(network.exit(point), (3, 32, 32)).total for point in network.architecture.points]
    assert [each.relus for each in counts] == [327_680, 458_752, 524_288, 557_056]
    assert [round(each.macs / counts[-1].macs, 3) for each in counts] == [0.275, 0.517, 0.758, 1]
    assert round(counts[0].relus / counts[-1].relus, 2) == 0.59


@pytest.mark.parametrize(
    ("name", "heads"),
    [(name, heads) for name, each in PRESETS.items() if each.family != "cells" for heads in type(each).heads],
)
def test_layers_and_relus_by_arithmetic_are_those_of_a_trace(name: str, heads: str):
    whole = PRESETS[name]
    points = tuple(range(1, len(whole.phi)))
    network = named(whole, points, heads)
    counted = count(network, whole.input)
    assert counted.layers == network.architecture.layers()
    assert counted.total.relus == network.architecture.relus
    for point in points:
        assert count(network.exit(point), whole.input).layers == network.architecture.exit(point).layers()


def test_an_exit_is_a_plain_network_with_the_weights_of_the_whole():
    network, x = small(), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = network(x)
    assert [tuple(each.shape) for each in answers] == [(3, 10)] * 3
    for point, answer in zip((1, 2, 3), answers, strict=True):
        plain = network.exit(point)
        assert torch.equal(plain(x), answer)
        assert {id(each) for each in plain.parameters()} <= {id(each) for each in network.parameters()}
    assert set(dict(network.exit(1).named_children())) == {"stem", "stage1", "head"}


@pytest.mark.parametrize("heads", HEADS)
def test_exits_of_a_network_for_maps_give_maps_of_their_stage(heads: str):
    network = small(name="resnet20-m2-phi1.1.1-seg", heads=heads)
    x = torch.randn(2, 1, 8, 8)
    answers = network(x)
    assert [tuple(each.shape) for each in answers] == [(2, 10, 8, 8), (2, 10, 4, 4), (2, 10, 2, 2)]
    assert network.architecture.maps
    assert torch.equal(network.exit(2)(x), answers[1])
    assert count(network, (1, 8, 8)).layers == network.architecture.layers()


def test_attaching_leaves_the_network_as_it_was_and_changes_no_answer():
    plain = build(architecture(SMALL, (1, 8, 8), 10), seed=0).eval()
    before, x = weights(plain), torch.randn(2, 1, 8, 8)
    network = attach_exits(plain, (2,), seed=1).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert equal(before, weights(plain))
    assert torch.equal(attach_exits(plain, (2,)).eval()(x)[-1], plain(x))


def test_a_convolution_before_the_logits_is_the_exits_alone():
    light, conv = (named(architecture("resnet18"), (1,), heads) for heads in HEADS)
    more = [count(conv.exit(1), (3, 32, 32)).total, count(light.exit(1), (3, 32, 32)).total]
    assert more[0].relus - more[1].relus == 64 * 1024
    assert more[0].macs - more[1].macs == 64 * 64 * 9 * 1024
    assert count(conv.exit(4), (3, 32, 32)).layers == count(light.exit(4), (3, 32, 32)).layers


def test_a_plain_network_may_have_such_a_head_by_its_name():
    plain = architecture("resnet18-m16-convhead", (3, 8, 8), 10)
    assert (plain.head, plain.name) == ("conv", "resnet18-m16-convhead")
    assert MultiExit(plain, (1,)).exit(1).head == "light"
    assert build(plain, seed=0)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("heads", HEADS)
def test_a_network_with_exits_and_each_of_its_exits_are_saved_and_loaded(tmp_path, heads: str):
    network, x = small((1,), heads=heads), torch.randn(2, 1, 8, 8)
    save(network, tmp_path / "all")
    save(network.exit(1), tmp_path / "one")
    again, one = load(tmp_path / "all"), load(tmp_path / "one")
    assert again.architecture == network.architecture
    assert equal(weights(again), weights(network))
    assert torch.equal(one(x), network.exit(1)(x))
    assert manifest_of(one).architecture == network.architecture.exit(1)
    assert from_dict(network.architecture.to_dict()) == network.architecture


def test_masks_of_the_trunk_go_with_every_exit(tmp_path):
    from deepreshape.nn import MaskedReLU

    plain = build(architecture(SMALL, (1, 8, 8), 10), seed=0).eval()
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    plain.set_submodule("stage1.0.act1", MaskedReLU(mask))
    network = attach_exits(plain, (1,)).eval()
    save(network, tmp_path / "m")
    again = load(tmp_path / "m")
    assert isinstance(again, MultiExitNetwork)
    whole, masked = (count(each, (1, 8, 8)).total.relus for each in (network, again.exit(1)))
    assert masked == 2 * 64 * 2
    assert whole == network.architecture.relus - 128


def test_a_network_by_its_name_has_exits_too():
    for heads, word in (("light", "resnet18-m16-exits1.3"), ("conv", "resnet18-m16-exits1.3-conv")):
        assert read_exits_name(word) == ("resnet18-m16", (1, 3), heads)
        assert MultiExit(architecture("resnet18-m16"), (1, 3), heads).name == word
    assert read_exits_name("resnet18-m16") is None


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ((), "exits at no stage: give stages that rise, from 1 to 2"),
        ((2, 1), "exits at 2,1: give stages that rise"),
        ((1, 1), "exits at 1,1: give stages that rise"),
        ((0, 1), "exits at 0,1: 0 is no stage before the last of 3; give some of 1 to 2"),
        ((1, 3), "exits at 1,3: 3 is no stage before the last of 3; give some of 1 to 2"),
    ],
)
def test_exits_that_do_not_fit_are_refused(at: tuple[int, ...], says: str):
    with pytest.raises(ValueError, match=says):
        small(at)


def test_what_has_no_place_for_exits_is_refused():
    with pytest.raises(ValueError, match="unknown kind of heads 'big'; known are light, conv"):
        attach_exits(build(architecture(SMALL), "meta"), (1,), "big")
    with pytest.raises(ValueError, match="a wide_resnet takes heads light, not 'conv'"):
        attach_exits(build(architecture("wideresnet22-8"), "meta"), (1,), "conv")
    with pytest.raises(ValueError, match="has exits already, at 1,2"):
        attach_exits(small(), (1,))
    with pytest.raises(ValueError, match="a network of kind cells is not one stage after the other"):
        attach_exits(build(architecture("sphynx-c1-l3-r0.1"), "meta"), (1,))
    with pytest.raises(ValueError, match="a network of kind foreign is not one stage"):
        attach_exits(convert(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), (1, 8, 8)), (1,))
    with pytest.raises(ValueError, match="there is no exit 3: exits are at 1, and 4 is the whole"):
        MultiExit(architecture("resnet18"), (1,)).exit(3)
    assert CellNet.family == "cells"
    assert Foreign.family == "foreign"
