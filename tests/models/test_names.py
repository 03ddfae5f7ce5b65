import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.models import PRESETS, Reduction, ResNet, architecture, from_dict

NAMES = """
    hrn-5x5x3x hrn-2x5x3x-m32 resnet18 resnet18-m16 stch-4x4x4x wideresnet28-10 vgg16-avg resnet50-imagenet
    resnet9-m32-strided hrn-4x6x3x-phi3.4.6.3 stch-4x4x4x-m8-bottleneck resnet18-m32-r2 resnet9-m32
    resnet20-m8-w16.6.17.6.17.9.16.26.23.28.24.29.29.78.66.93.97.112.128-herpn
    resnet18-m16-herpn resnet9-m16-avg-herpn vgg16-m8-herpn wideresnet22-8-herpn
""".split()


@pytest.mark.parametrize("name", [*PRESETS, *NAMES])
def test_names_parse_both_ways(name: str):
    assert architecture(name).name == name


@given(
    phi=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    data=st.data(),
    base=st.integers(1, 128),
    block=st.sampled_from(["basic", "bottleneck"]),
    stem=st.sampled_from(["3x3", "7x7"]),
    pool=st.sampled_from(["max", "avg"]),
    resolution=st.integers(1, 4),
)
def test_every_resnet_has_a_name_that_gives_it_back(phi, data, base, block, stem, pool, resolution):
    multipliers = data.draw(st.lists(st.integers(1, 12), min_size=len(phi) - 1, max_size=len(phi) - 1))
    resnet = ResNet(
        tuple(phi),
        base,
        tuple(multipliers),
        (3, 64, 64),
        7,
        block=block,
        stem=stem,
        pool=pool,
        resolution=resolution,
    )
    assert architecture(resnet.name, (3, 64, 64), 7) == resnet


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "unknown network 'resnet19'; known are resnet9"),
        ("hrn-5x5x", None),
        ("resnet18-x3", "cannot read '-x3' in 'resnet18-x3'"),
        ("resnet18-w3", "it has 17 convolutions, which need as many positive widths, not"),
        ("vgg16-w3.4", "a vgg has no widths by layer, so -w does not fit"),
        ("resnet18-phi1.2", "4 stages|2 stages need 1 multipliers"),
        ("hrn-0x5x3x", "'hrn-0x5x3x': multipliers must be positive"),
        ("vgg16-bottleneck", "'vgg16-bottleneck': a vgg has no kinds of block, so -bottleneck does not fit"),
    ],
)
def test_bad_names_are_named(name: str, message: str | None):
    if message is None:
        assert len(architecture(name).phi) == 3
    else:
        with pytest.raises(ValueError, match=message):
            architecture(name)


def test_a_network_without_a_name_says_so():
    with pytest.raises(ValueError, match="no name stands for"):
        _ = replace(architecture("resnet18"), strides=(1, 1, 2, 2)).name


@pytest.mark.parametrize("name", ["hrn-5x5x3x-m4", "vgg16-avg", "resnet9-strided", "wideresnet22-8"])
def test_architectures_survive_json(name: str):
    plain = architecture(name)
    sites = plain.sites()
    network = replace(plain, reduction=Reduction(frozenset({sites[0].name}), ((sites[-1].name, 4),)))
    assert from_dict(json.loads(json.dumps(network.to_dict()))) == network
    with pytest.raises(ValueError, match=f"unknown fields of a {network.family}: weights"):
        from_dict({**network.to_dict(), "weights": 1})
    with pytest.raises(ValueError, match=f"not a {network.family}: 'phi'"):
        from_dict({"family": network.family})


def test_a_family_of_a_later_version_is_named():
    with pytest.raises(ValueError, match="unknown family of networks 'sphynx'; this version knows resnet9, resnet"):
        from_dict({"family": "sphynx"})
