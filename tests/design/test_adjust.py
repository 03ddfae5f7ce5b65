from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreshape.cost import LinearLayer
from deepreshape.data import Dataset, Split
from deepreshape.design.adjust import Adjustment, adjust, drop_rates, layer_paths, layer_widths, scaled_to
from deepreshape.experiments.adjusting import measure_by_training, validation_loss
from deepreshape.models import ResNet, architecture, build
from deepreshape.nn.channel_dropout import MOST, channel_dropout
from deepreshape.training import Recipe, objective_of

START = architecture("resnet20")
assert isinstance(START, ResNet)


def macs(network: ResNet) -> float:
    return float(sum(layer.macs for layer in network.layers() if isinstance(layer, LinearLayer)))


def relus(network: ResNet) -> float:
    return float(network.relus)


def preferring(path: str):
    """A measurement that finds one layer well used and the stem badly, and remembers what it was asked."""
    asked: list[str] = []

    def measure(network: ResNet, iteration: int):
        asked.append(network.name)

        def dropped(rates: Mapping[str, float], repeat: int) -> float:
            (dropped_path,) = rates
            return 1.0 + {path: 0.5, "stem.conv": 0.0}.get(dropped_path, 0.1)

        return 1.0, dropped

    return measure, asked


def test_every_layer_loses_as_much():
    rates, flat = drop_rates(START, macs, 0.01)
    widths = dict(zip(layer_paths(START), layer_widths(START), strict=True))
    lost = []
    for path, rate in rates.items():
        place = layer_paths(START).index(path)
        more = [width + (1 if at == place else 0) for at, width in enumerate(layer_widths(START))]
        lost.append(rate * widths[path] * (macs(replace(START, layer_widths=tuple(more))) - macs(START)))
    assert max(lost) <= 1.001 * min(lost)
    assert not flat
    assert sum(rates.values()) / len(rates) == pytest.approx(0.01, rel=0.5)


def test_a_layer_that_costs_nothing_is_flat():
    only_stem = {"stem.conv"}

    def resource(network: ResNet) -> float:
        return float(network.stem_width)

    rates, flat = drop_rates(START, resource, 0.01)
    assert set(rates) == only_stem
    assert set(flat) == set(layer_paths(START)) - only_stem
    with pytest.raises(ValueError, match="no layer of resnet20 costs any of the resource"):
        drop_rates(START, lambda network: 7.0, 0.01)


@settings(max_examples=10)
@given(st.lists(st.integers(8, 90), min_size=19, max_size=19), st.sampled_from([macs, relus]))
def test_widths_are_scaled_to_what_the_first_network_cost(widths: list[int], resource):
    config = Adjustment()
    limit = resource(START)
    scaled = scaled_to(replace(START, layer_widths=tuple(widths)), resource, limit, layer_widths(START), config)
    assert 0.99 * limit <= resource(replace(START, layer_widths=scaled)) <= limit


def test_the_best_used_layers_gain_and_an_adjustment_that_was_cut_goes_on(tmp_path: Path):
    path = "stage3.2.conv1"
    place = layer_paths(START).index(path)
    config = Adjustment(iterations=3, repeats=1)
    measure, asked = preferring(path)
    steps = adjust(START, measure, macs, config, folder=tmp_path / "whole")
    gained = [layer_widths(architecture(step.network))[place] for step in steps]
    stems = [layer_widths(architecture(step.network))[0] for step in steps]
    assert gained == sorted(gained)
    assert gained[-1] > gained[0]
    assert stems[-1] < stems[0]
    assert all(0.99 * macs(START) <= step.resource <= macs(START) for step in steps)
    assert len(asked) == 4

    class CutError(Exception):
        pass

    def cut(step) -> None:
        if step.iteration == 1:
            raise CutError

    with pytest.raises(CutError):
        adjust(START, preferring(path)[0], macs, config, folder=tmp_path / "cut", report=cut)
    measure, asked = preferring(path)
    assert adjust(START, measure, macs, config, folder=tmp_path / "cut") == steps
    assert asked == [step.network for step in steps[2:]]
    with pytest.raises(ValueError, match=r"gain was 0\.15, now 0\.3"):
        adjust(START, measure, macs, replace(config, gain=0.3), folder=tmp_path / "cut")


def test_measurements_of_another_seed_or_recipe_are_not_taken_for_these(tmp_path: Path):
    data, recipe = Dataset.load("digits"), Recipe(epochs=1)
    measure_by_training(data, recipe, rate=0.05, folder=tmp_path)
    measure_by_training(data, recipe, rate=0.05, folder=tmp_path)
    for changes, words in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"recipe": replace(recipe, lr=0.2)}, r"recipe\.lr was 0\.4, now 0\.2"),
        ({"data": replace(data, name="others")}, "data was digits, now others"),
    ):
        given = {"data": data, "recipe": recipe, "seed": 0, **changes}
        with pytest.raises(ValueError, match=words):
            measure_by_training(**given, rate=0.05, folder=tmp_path)


def test_a_measurement_of_maps_is_their_mean_loss():
    data = Dataset.load("shapes")
    few = replace(data, validation=Split(data.validation.images[:6], data.validation.labels[:6]))
    network = build(architecture("resnet18-m2-seg", data.shape, len(data.class_names)), seed=0).eval()
    with torch.no_grad():
        outputs = network(data.normalize(few.validation.images))
    expected = objective_of(data).loss(outputs, few.validation.labels, None, Recipe(smoothing=0.0))
    assert validation_loss(network, few) == pytest.approx(float(expected), rel=1e-5)


def test_no_iteration_begins_after_its_time():
    measure, asked = preferring("stem.conv")
    assert len(adjust(START, measure, macs, Adjustment(), max_seconds=0.0)) == len(asked) == 1


@pytest.mark.parametrize("noise", ["gaussian", "bernoulli"])
def test_channels_drop_as_one_with_mean_one(noise):
    model = torch.nn.Sequential(torch.nn.Identity())
    with channel_dropout(model, {"0": 0.2}, torch.Generator().manual_seed(0), noise):
        out = model(torch.ones(2000, 8, 3, 3))
    assert torch.equal(out[:, :, 0, 0], out[:, :, 2, 1])
    values = out[:, :, 0, 0]
    assert values.mean() == pytest.approx(1, abs=0.02)
    assert values.var() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(model(torch.ones(1, 8, 3, 3)), torch.ones(1, 8, 3, 3))
    rates = {"0": 0.0}
    with channel_dropout(model, rates, torch.Generator(), noise):
        assert torch.equal(model(torch.ones(1, 8, 3, 3)), torch.ones(1, 8, 3, 3))
        rates["0"] = 2.0
        assert model(torch.ones(1, 8, 3, 3)).isfinite().all()
    assert MOST < 1


def test_a_measurement_trains_and_judges_without_noise(tmp_path: Path):
    whole = Dataset.load("digits")
    splits = [Split(split.images[:64], split.labels[:64]) for split in (whole.train, whole.validation, whole.test)]
    data = Dataset("digits", *splits, whole.class_names, whole.mean, whole.std)
    small = architecture("resnet20-m2-phi1.1.1", data.shape, 10)
    recipe = Recipe(epochs=2, batch=32, lr=0.1, crop=1, flip=False, precision="float32")
    losses = [measure_by_training(data, recipe, rate=rate)(small, 0)[0] for rate in (0.0001, 0.4, 0.4)]
    assert losses[1] == losses[2] != losses[0]
    loss, dropped = measure_by_training(data, recipe, rate=0.05)(small, 0)
    assert dropped({"stem.conv": 0.0}, 0) == loss
    assert dropped({"stem.conv": 0.5}, 0) == dropped({"stem.conv": 0.5}, 0) != loss
    assert validation_loss(build(small, seed=0), data) > 0
    with pytest.raises(ValueError, match="leave holdout on"):
        measure_by_training(data, replace(recipe, holdout=False), rate=0.1)
