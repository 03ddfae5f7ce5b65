"""ReLUs of a trained network as HerPNs."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from deepreshape.cost import PROFILES, CostReport, Layer, price_published
from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.models import architecture, build
from deepreshape.models.saved import load, save
from deepreshape.nn import HerPN
from deepreshape.removal import SNL, Herpn, Linearization, linearize
from deepreshape.removal.herpn import SMALLEST, _fit
from deepreshape.training import Progress, Recipe, accuracy, train

RECIPE = Recipe(epochs=3, batch=50, lr=0.05, crop=1, flip=False, precision="float32")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset.load("digits")


@pytest.fixture(scope="module")
def model(data: Dataset) -> nn.Module:
    network = build(architecture("stch-2x-m8-phi1.1", data.shape, 10), seed=0)
    train(network, data, replace(RECIPE, epochs=6, lr=0.1), seed=0)
    return network


def test_a_trained_network_of_squares_comes_out(data: Dataset, model: nn.Module, tmp_path):
    save(model, tmp_path / "came")
    model = load(tmp_path / "came")
    phases: list[str] = []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quadratic, record = linearize(model, Herpn(0), data, recipe=RECIPE, progress=lambda phase, _: phases.append(phase))
    total = count(quadratic, data.shape).total
    assert (total.relus, total.squares) == (0, count(model, data.shape).total.relus)
    assert quadratic.architecture.name == "stch-2x-m8-phi1.1-herpn"
    assert record.top1_before is not None
    assert record.top1_searched is not None
    assert record.top1_searched > 70  # fitted, not drawn
    assert accuracy(quadratic, data, data.validation) > record.top1_before - 5
    assert set(phases) == {"tune"}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    save(quadratic, tmp_path / "went")
    again = load(tmp_path / "went")
    x = data.normalize(data.validation.images[:8])
    with torch.no_grad():
        assert torch.allclose(again(x), quadratic.eval()(x), atol=1e-5)
    assert again.architecture.name == quadratic.architecture.name


def test_a_site_starts_as_the_least_squares_fit():
    x = torch.randn(400, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 1.5 + torch.tensor([[[[0.5]]]])
    site = HerPN(3)
    with torch.no_grad():
        _fit(site, x)
        values, wanted = x.transpose(0, 1).flatten(1), x.transpose(0, 1).flatten(1).relu()
        site.eval()
        got = site(x).transpose(0, 1).flatten(1)
        assert torch.allclose(got.mean(1), wanted.mean(1), atol=1e-5)
        error = (got - wanted).square().mean(1)
        for factor in (0.95, 1.05):  # no other scale is nearer
            site.scale.mul_(factor)
            assert ((site(x).transpose(0, 1).flatten(1) - wanted).square().mean(1) > error).all()
            site.scale.div_(factor)
        assert (error < 0.1 * values.var(1)).all()


def test_a_channel_that_is_off_or_constant_keeps_a_square():
    x = torch.stack([torch.linspace(-3, -1, 64), torch.full((64,), 2.0), torch.linspace(-1, 1, 64)], 1)
    site = HerPN(3)
    with torch.no_grad():
        _fit(site, x)
    assert site.scale[:2].tolist() == pytest.approx([SMALLEST] * 2)
    assert site.coefficients.isfinite().all()
    assert (site.coefficients[:, 2] != 0).all()


def test_a_network_of_ones_own_is_converted_too(data: Dataset):
    torch.manual_seed(0)
    foreign = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    quadratic, record = linearize(foreign, Herpn(0), data, recipe=replace(RECIPE, epochs=1))
    total = count(quadratic, data.shape).total
    assert (total.relus, total.squares, record.relus) == (0, 144, 0)


def test_what_it_cannot_do_is_one_line(data: Dataset, model: nn.Module):
    with pytest.raises(ValueError, match=r"herpn leaves no ReLU \(budget=0.*not budget=10.* autorep"):
        Herpn(10)
    masked, _ = linearize(model, SNL(100), data, recipe=replace(RECIPE, epochs=1))
    with pytest.raises(ValueError, match="has no ReLU at some places"):
        linearize(masked, Herpn(0), data, recipe=RECIPE)


def test_a_profile_that_prices_no_squares_says_so_before_the_fine_tuning(data: Dataset, model: nn.Module):
    def tuned(phase: str, _: Progress) -> None:
        raise AssertionError(phase)

    def price(layers: Sequence[Layer]) -> CostReport:
        return price_published(layers, PROFILES["server-garbler"])

    with pytest.raises(ValueError, match="square"):
        Linearization(model, Herpn(0), data, recipe=RECIPE, price=price).run(progress=tuned)
