"""Other layers in place of those that do not run privately."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.few_digits import RECIPE, KilledError, digits, equal, kill_at, trained, weights
from torch import nn
from torch.nn import functional as F  # noqa: N812

from deepreshape.counting import count
from deepreshape.models.saved import Manifest, load, save
from deepreshape.private.program.lower import unsupported
from deepreshape.removal import masks_of, substitute

DATA = digits()


class Smooth(nn.Module):
    """GELU as a module at two places and as a function, SiLU, and max pools of both kinds."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.GELU()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(self.act(self.conv1(x)))
        x = F.max_pool2d(self.act(self.conv2(x)), 2)
        return self.fc(F.silu(F.gelu(x)).flatten(1))


def test_activations_become_relus_with_masks_and_pools_average(tmp_path: Path):
    model = Smooth()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network, record = substitute(
        model, {"GELU": "ReLU", "SiLU": "ReLU", "MaxPool2d": "avg"}, DATA, recipe=RECIPE, seed=1
    )
    assert sorted(record.replaced.values()) == [("GELU", "ReLU")] * 2 + [("MaxPool2d", "AvgPool2d")] * 2 + [
        ("SiLU", "ReLU")
    ]
    counted = count(network, DATA.shape)
    assert counted.total.relus == 256 + 64 + 16 + 16
    assert (counted.total.maxpool_comparisons, counted.unknown) == (0, {})
    assert sum(mask.numel() for mask in masks_of(network, DATA.shape).values()) == counted.total.relus
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(0 <= top1 <= 100 for top1 in (record.top1_before, record.top1_substituted, record.top1_after))
    save(network, tmp_path, Manifest(network.architecture, history=(record.to_dict(),)))
    x = DATA.normalize(DATA.validation.images)
    assert torch.allclose(load(tmp_path)(x), network(x), atol=1e-5)


class Gated(nn.Module):
    """Squeeze and excitation with a sigmoid, behind SiLU and GELU."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.gate = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        x = F.silu(self.conv(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.fc(F.gelu(x).flatten(1))


def test_hard_forms_stay_near_and_the_network_then_runs_privately():
    layers = {"SiLU": "Hardswish", "Sigmoid": "Hardsigmoid", "GELU": "ReLU"}
    network, record = substitute(Gated(), layers, DATA, recipe=RECIPE, seed=1)
    assert sorted(record.replaced.values()) == sorted(layers.items())
    assert unsupported(Gated(), DATA.shape)
    assert not unsupported(network, DATA.shape)
    total = count(network, DATA.shape).total
    assert (total.relus, total.squares) == (256 + 4 + 256, 256 + 2 * 256)


class Grouped(nn.Module):
    """Group norms of maps and of a line, and an instance norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.deeper, self.each = nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4)
        self.line, self.fc = nn.GroupNorm(1, 8), nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.each(self.deeper(x)))
        return self.fc(self.line(F.avg_pool2d(x, 2).reshape(-1, 8, 8)[:, :, :4]).flatten(1))


def test_batch_norms_take_the_place_of_norms_by_groups_with_weights_and_statistics():
    model = Grouped()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    kinds = {"GroupNorm": "batch", "InstanceNorm2d": "batch"}
    untuned, record = substitute(model, kinds, DATA, recipe=replace(RECIPE, epochs=1, lr=1e-9), seed=1)
    assert record.replaced == {
        "norm": ("GroupNorm", "BatchNorm2d"),
        "each": ("InstanceNorm2d", "BatchNorm2d"),
        "line": ("GroupNorm", "BatchNorm1d"),
    }
    state = untuned.state_dict()
    assert torch.allclose(state["norm.weight"], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert "each.weight" not in state
    inner = model.conv(DATA.normalize(DATA.train.images[:]))
    assert torch.allclose(state["norm.running_mean"], inner.mean((0, 2, 3)), atol=0.1)
    assert unsupported(model, DATA.shape)
    assert not unsupported(untuned, DATA.shape)


def test_a_cut_run_goes_on_to_the_same_network_and_the_folder_is_no_others(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("deepreshape.training.loop.CHECKPOINT_SECONDS", 0)
    model, layers, stop = Smooth(), {"GELU": "ReLU"}, kill_at("", 2)
    whole, _ = substitute(model, layers, DATA, recipe=RECIPE, seed=1)
    with pytest.raises(KilledError):
        substitute(model, layers, DATA, recipe=RECIPE, seed=1, folder=tmp_path, progress=lambda at: stop("", at))
    with pytest.raises(ValueError, match="holds another run"):
        substitute(model, {"SiLU": "ReLU"}, DATA, recipe=RECIPE, seed=1, folder=tmp_path)
    steps: list[int] = []
    cut, _ = substitute(
        model, layers, DATA, recipe=RECIPE, seed=1, folder=tmp_path, progress=lambda at: steps.append(at.step)
    )
    assert steps == [3, 4]
    assert equal(weights(cut), weights(whole))


def test_only_what_was_asked_for_is_replaced():
    network, record = substitute(Smooth(), {"SiLU": "ReLU"}, DATA, recipe=RECIPE)
    assert list(record.replaced.values()) == [("SiLU", "ReLU")]
    assert count(network, DATA.shape).total.maxpool_comparisons


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"GELU": "avg"}, "cannot put 'avg' in place of 'GELU'; ReLU takes the place of ELU, GELU"),
        ({"Softmax": "ReLU"}, "cannot put 'ReLU' in place of 'Softmax'"),
        ({"GELU": "Hardswish"}, "cannot put 'Hardswish' in place of 'GELU'; .* Hardswish that of SiLU, Hardsigmoid"),
        ({"Tanh": "ReLU"}, "the network has no Tanh to replace; its layers are Conv2d, GELU, Linear, MaxPool2d, SiLU"),
    ],
)
def test_what_cannot_be_replaced_is_one_line(layers: dict, message: str):
    with pytest.raises(ValueError, match=message):
        substitute(Smooth(), layers, DATA, recipe=RECIPE)


def test_a_network_by_name_goes_by_its_name():
    with pytest.raises(ValueError, match="a network of this package has ReLUs already"):
        substitute(trained(), {"GELU": "ReLU"}, DATA, recipe=RECIPE)
