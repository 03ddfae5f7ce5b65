"""Any torch module goes the whole way: reduced, saved, loaded, lowered."""

import copy
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import networks
from support.few_digits import RECIPE, digits, trained
from torch import nn

from deepreshape.counting import count
from deepreshape.data import Split
from deepreshape.models import Foreign, convert
from deepreshape.models.saved import load, manifest_of, save
from deepreshape.nn import PolynomialReLU
from deepreshape.private.program import interpret
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import to_fixed
from deepreshape.removal import METHODS, SNL, Taylor, binarize, linearize, substitute, tuning_recipe
from deepreshape.removal.method import FOREIGN_LR

DATA = digits()
FINE = [name for name in METHODS if name not in ("coarse", "herpn")]


class Mine(nn.Module):
    """Functional ReLUs before and behind a linear layer, and a skip."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, 2, 1)
        self.fc1 = nn.Linear(64, 12)
        self.fc2 = nn.Linear(12, 10)

    def forward(self, x):
        x = torch.relu_(self.conv1(x))
        x = torch.flatten(nn.functional.relu(self.conv2(x)), 1)
        return self.fc2(self.fc1(x).relu())


def foreign_network() -> nn.Module:
    torch.manual_seed(0)
    return Mine()


def test_fewer_outputs_than_classes_are_refused_before_any_work():
    model, few = foreign_network(), foreign_network()
    few.fc2 = nn.Linear(12, 5)
    line = "the network gives 5 outputs, and .* has 10 classes; it needs one for each"
    for network, teacher in ((few, None), (model, few)):
        with pytest.raises(ValueError, match=line):
            linearize(network, SNL(100), DATA, recipe=RECIPE, teacher=teacher)
    with pytest.raises(ValueError, match=line):
        binarize(few, DATA)
    with pytest.raises(ValueError, match=line):
        substitute(few, {"GELU": "ReLU"}, DATA)


@pytest.mark.parametrize("name", FINE)
def test_weights_that_are_frozen_stay_as_they_are(name: str):
    """As of a backbone that was trained elsewhere; its ReLUs can go like all others."""
    model = foreign_network()
    model.conv1.requires_grad_(False)
    reduced, record = linearize(model, METHODS[name](100), DATA, recipe=RECIPE)
    assert record.relus == 100
    weights = reduced.state_dict()
    assert torch.equal(weights["conv1.weight"], model.conv1.weight)
    assert not torch.equal(weights["fc2.weight"], model.fc2.weight)
    with pytest.raises(ValueError, match=r"all weights are frozen, .*; call requires_grad_\(\) on those"):
        linearize(model.requires_grad_(False), METHODS[name](100), DATA, recipe=RECIPE)


@pytest.mark.parametrize("name", FINE)
def test_every_method_takes_any_module_and_leaves_it_as_it_was(name: str):
    model = foreign_network()
    before = copy.deepcopy(model.state_dict())
    reduced, record = linearize(model, METHODS[name](100), DATA, recipe=RECIPE)
    assert count(reduced, DATA.shape).total.relus == record.relus == 100
    assert record.relus_before == count(model, DATA.shape).total.relus == 256 + 64 + 12
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert isinstance(reduced.architecture, Foreign)
    assert min(record.top1_before, record.top1_searched, record.top1_validation) >= 0


def test_what_comes_out_is_saved_loaded_and_lowered(tmp_path: Path):
    reduced, record = linearize(foreign_network(), SNL(100), DATA, recipe=RECIPE)
    save(reduced, tmp_path)
    again = load(tmp_path)
    assert manifest_of(again).dataset == DATA.name
    assert manifest_of(again).class_names == DATA.class_names
    assert [step["kept"] for step in manifest_of(again).history] == [record.kept]
    x = DATA.normalize(DATA.validation.images[:40])
    assert torch.allclose(again(x), reduced(x), atol=1e-5)  # layouts in memory differ
    program = lower(again, x.contiguous().numpy()).program
    logits = interpret.run(program, to_fixed(x.contiguous().numpy(), program.input_fraction)).reshape(len(x), -1)
    assert program.relus == 100
    wanted = again(x).detach().numpy()
    assert (logits.argmax(1) == wanted.argmax(1)).mean() > 0.95


def test_coarse_removal_says_that_it_needs_stages():
    with pytest.raises(ValueError, match="coarse removal needs a network of the package"):
        linearize(foreign_network(), METHODS["coarse"](100), DATA, recipe=RECIPE)


def test_a_loss_of_more_than_was_asked_is_warned_of(caplog: pytest.LogCaptureFixture):
    model, still = trained(), replace(RECIPE, lr=1e-9)
    with caplog.at_level(logging.WARNING, "deepreshape"):
        _, kept = linearize(model, Taylor(0, mismatch=0.0, max_drop=100), DATA, recipe=still)
        assert not kept.warning
        assert not caplog.records
        _, record = linearize(model, Taylor(0, mismatch=0.0, max_drop=0.5, search_lr=1e-9), DATA, recipe=still)
    assert record.top1_validation < record.top1_before - 0.5
    assert record.warning.startswith(f"validation top-1 fell from {record.top1_before:.2f} to ")
    assert [entry.message for entry in caplog.records] == [record.warning]


def test_networks_trained_elsewhere_are_tuned_in_small_steps():
    usual = tuning_recipe(trained(), DATA)
    for model in (foreign_network(), convert(foreign_network(), DATA.shape)):
        recipe = tuning_recipe(model, DATA)
        assert recipe.lr == FOREIGN_LR < usual.lr
        assert recipe.smoothing == 0 < usual.smoothing
        assert recipe.batch == 32 < usual.batch
    for images, batch in ((13_000, 256), (9_000, 128), (100, 32)):
        train = Split(torch.zeros(images, 1, 8, 8), torch.zeros(images, dtype=torch.int64))
        assert tuning_recipe(foreign_network(), replace(DATA, name="many", train=train)).batch == batch


def test_what_a_mask_would_replace_is_refused():
    model = convert(networks.ReadAgain(1), DATA.shape)
    site = model.architecture.sites()[0]
    mask = torch.ones(site.channels, *site.size, dtype=torch.bool)
    model.set_submodule(site.name, PolynomialReLU(mask, torch.zeros(site.channels, 3)))
    with pytest.raises(ValueError, match=r"polynomials in place of ReLUs \(polynomial-relu at relu\)"):
        linearize(model, SNL(100), DATA, recipe=RECIPE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_width_are_searched_and_tuned_in_float32(dtype: torch.dtype):
    model = foreign_network().to(dtype)
    reduced, record = linearize(model, Taylor(100), DATA, recipe=RECIPE)
    assert record.relus == 100
    assert {tensor.dtype for tensor in reduced.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
