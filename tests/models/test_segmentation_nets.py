"""The form of a ResNet that gives a class for each pixel."""

from dataclasses import replace

import pytest
import torch

from deepreshape.data import Dataset
from deepreshape.models import architecture, architecture_for, build, from_dict, resnet


@pytest.mark.parametrize(
    ("name", "down"),
    [("resnet18-m2-seg", 8), ("resnet18-m2-r4-seg", 8), ("resnet50-m2-imagenet-seg", 8), ("resnet20-m2-seg", 4)],
)
def test_logits_are_a_map_an_eighth_of_the_image_at_most(name: str, down: int):
    network = architecture(name, (3, 64, 48), 5)
    assert build(network, seed=0)(torch.zeros(2, 3, 64, 48)).shape == (2, 5, 64 // down, 48 // down)
    assert network.maps
    assert from_dict(network.to_dict()) == network
    assert architecture(network.name, network.input, network.classes) == network


@pytest.mark.parametrize("name", ["resnet18-m2-r4-seg", "resnet50-m2-imagenet-seg", "resnet18-m2-phi1.3.2.2-r8-seg"])
def test_dilation_computes_what_strides_would_and_the_places_between(name: str, monkeypatch: pytest.MonkeyPatch):
    """At every second place of the wider map stands what the strided network has there, so that weights carry over."""
    network = architecture(name, (3, 64, 64), 3)
    dilated = build(network, seed=1).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(resnet, "OUTPUT_STRIDE", 1 << 20)
    strided = build(network, seed=1).double().eval()
    strided.load_state_dict(dilated.state_dict())
    with torch.no_grad():
        wide, narrow = dilated(x), strided(x)
    step = wide.shape[2] // narrow.shape[2]
    assert step > 1
    assert torch.allclose(wide[:, :, ::step, ::step], narrow, rtol=1e-10, atol=1e-12)


def test_weights_are_those_of_the_network_that_classifies_but_for_the_head():
    whole, maps = (
        build(architecture(name, (3, 32, 32), 4), "meta") for name in ("resnet18-m4-r2", "resnet18-m4-r2-seg")
    )
    shapes = [
        {key: value.shape for key, value in net.state_dict().items() if not key.startswith("head")}
        for net in (whole, maps)
    ]
    assert shapes[0] == shapes[1]


def test_networks_and_labels_of_two_kinds_are_refused():
    data = Dataset.load("shapes")
    with pytest.raises(ValueError, match="shapes has a class for each pixel, which resnet18-m4 does not give; take"):
        architecture_for("resnet18-m4", data)
    flat = replace(data, name="flat", train=replace(data.train, labels=torch.zeros(800, dtype=torch.int64)))
    with pytest.raises(ValueError, match="one class for each image, which resnet18-m4-seg does not give"):
        architecture_for("resnet18-m4-seg", flat)
    with pytest.raises(ValueError, match="a vgg has no kinds of task, so -seg does not fit"):
        architecture("vgg16-seg")
