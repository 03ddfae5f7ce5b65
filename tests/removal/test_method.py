"""What every method of removal has to hold."""

import copy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.few_digits import RECIPE, KilledError, digits, equal, kill_at, trained, weights
from torch import nn

from deepreshape.cost import Cost, CostReport, Layer, ReluLayer
from deepreshape.counting import count
from deepreshape.data import Dataset, Split
from deepreshape.models import architecture, build
from deepreshape.models.saved import Manifest, load, save
from deepreshape.nn import GatedReLU
from deepreshape.removal import METHODS, Descent, Linearization, Method, Thin, apply, linearize, masks_of, plan_of
from deepreshape.removal.method import Reduced
from deepreshape.removal.sites import put_masks
from deepreshape.training import CachedTeacher

DATA = digits()
MODEL = trained()
OTHER = build(MODEL.architecture, seed=7)
HAS = count(MODEL, DATA.shape).total.relus
NAMES = sorted(set(METHODS) - {"herpn"})
"""All but the one that leaves no ReLU whatever is asked."""
FINE = [name for name in NAMES if name != "coarse"]


def reduced(name: str, budget: int, **more) -> tuple[nn.Module, object]:
    settings = {key: more.pop(key) for key in list(more) if key in METHODS[name].__dataclass_fields__}
    folder, progress = more.pop("folder", None), more.pop("progress", None)
    removing = Linearization(more.pop("model", MODEL), METHODS[name](budget, **settings), DATA, recipe=RECIPE, **more)
    return removing.run(folder, progress)


@pytest.mark.parametrize("name", NAMES)
@given(budget=st.integers(0, HAS))
@settings(max_examples=4)
def test_the_budget_is_met_exactly(name: str, budget: int):
    model, record = reduced(name, budget)
    assert count(model, DATA.shape).total.relus == record.relus == record.budget == budget
    assert sum(record.kept.values()) == budget


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_buffers_and_the_record_says_what_was_done(name: str):
    model, record = reduced(name, 300)
    assert not any(isinstance(module, GatedReLU) for module in model.modules())
    assert not any("mask" in parameter or "gate" in parameter for parameter, _ in model.named_parameters())
    masks = {key: tensor for key, tensor in model.state_dict().items() if key.endswith(".mask")}
    assert masks
    assert all(mask.dtype == torch.bool for mask in masks.values())
    assert not any(key.split(".")[-1] in ("importance", "difference") for key in model.state_dict())
    assert record.method == name
    assert record.settings == asdict(METHODS[name](300))
    assert record.granularity == METHODS[name](300).granularity
    assert record.relus_before == HAS
    assert 0 <= record.top1_validation <= 100
    assert not model.training


@pytest.mark.parametrize("name", NAMES)
def test_the_input_and_the_teacher_are_left_as_they_were(name: str):
    teacher = build(MODEL.architecture, seed=7).train()
    hooks = {part: len(module._forward_hooks) for part, module in teacher.named_modules()}
    before, taught = weights(MODEL), weights(teacher)
    reduced(name, 300, teacher=teacher)
    assert equal(before, weights(MODEL))
    assert equal(taught, weights(teacher))
    assert teacher.training
    assert hooks == {part: len(module._forward_hooks) for part, module in teacher.named_modules()}


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_one_result(name: str):
    one, again, other = (reduced(name, 300, seed=seed) for seed in (1, 1, 2))
    assert equal(weights(one[0]), weights(again[0]))
    assert replace(one[1], minutes=0) == replace(again[1], minutes=0)
    assert not equal(weights(one[0]), weights(other[0]))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_at_any_step_continues_to_the_same_result(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("deepreshape.training.loop.CHECKPOINT_SECONDS", 0.0)
    whole, record = reduced(name, 300)
    stops = (
        [("tune", 1), ("tune", 4)] if name == "coarse" else [("search", 1), ("search", 3), ("search", 4), ("tune", 2)]
    )
    for phase, step in stops:
        with pytest.raises(KilledError):
            reduced(name, 300, folder=tmp_path, progress=kill_at(phase, step))
    again, same = reduced(name, 300, folder=tmp_path)
    assert equal(weights(whole), weights(again))
    assert replace(same, minutes=0) == replace(record, minutes=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_with_another_run_is_refused(name: str, tmp_path: Path):
    with pytest.raises(KilledError):
        reduced(name, 300, folder=tmp_path, progress=kill_at("tune", 1))
    with pytest.raises(ValueError, match=r"holds another run \(budget was 300, now 200; seed was 0, now 1\)"):
        reduced(name, 200, folder=tmp_path, seed=1)
    for other in ({"model": OTHER}, {"teacher": OTHER}, {"price": by_stage}):
        if (name, *other) != ("coarse", "price"):
            with pytest.raises(ValueError, match="holds another run"):
                reduced(name, 300, folder=tmp_path, **other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [-1, HAS + 1])
def test_a_budget_that_does_not_fit_is_one_line(name: str, budget: int):
    with pytest.raises(
        ValueError, match=rf"a budget of {budget:,} ReLUs does not fit .* has {HAS:,}; 0 to {HAS:,} works"
    ):
        reduced(name, budget)


@pytest.mark.parametrize("name", FINE)
def test_a_search_can_go_on_from_masks(name: str):
    first, _ = reduced("descent", 400)
    second, record = reduced(name, 200, model=first)
    before, after = masks_of(first, DATA.shape), masks_of(second, DATA.shape)
    assert record.relus == 200
    assert all(not (mask & ~before[path]).any() for path, mask in after.items())


def test_coarse_removal_goes_on_from_masks_too():
    first, _ = reduced("descent", 400)
    second, record = reduced("coarse", 300, model=first)
    before = masks_of(first, DATA.shape)
    assert record.relus == 300
    assert all(not (mask & ~before[path]).any() for path, mask in masks_of(second, DATA.shape).items())


def test_coarse_removal_puts_no_relu_where_none_was():
    model = build(architecture("resnet18-m4", DATA.shape, 10), seed=0)
    masks = masks_of(model, DATA.shape)
    put_masks(model, {path: mask if path == "stage2.0.act1" else mask & False for path, mask in masks.items()})
    second, record = reduced("coarse", 8, model=model)
    assert record.relus == 8
    assert {path for path, mask in masks_of(second, DATA.shape).items() if mask.any()} == {"stage2.0.act1"}


def test_a_quadratic_needs_whole_relus():
    first, _ = reduced("descent", 400)
    with pytest.raises(ValueError, match="puts a quadratic wherever there is no ReLU"):
        reduced("autorep", 300, model=first, polynomial=True)
    squared, _ = reduced("autorep", 300, polynomial=True)
    assert sum(int(mask.sum()) for mask in masks_of(squared, DATA.shape).values()) == 300
    with pytest.raises(ValueError, match="the network has polynomials in place of ReLUs"):
        reduced("snl", 100, model=squared)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("snl", {"soft": 1.5}, "soft must be from 0 to 1, not 1.5"),
        ("senet", {"density": 2}, "density must be from 0 to 1, not 2"),
        ("senet", {"rounds": 0}, "rounds must be from 1 to 100000, not 0"),
        ("taylor", {"until": 1.5}, "until must be from 0 to 1, not 1.5"),
        ("taylor", {"rounds": 0}, "rounds must be from 1 to 100000, not 0"),
        ("descent", {"moves": 0}, "moves must be from 1 to 100000, not 0"),
        ("descent", {"tries": 0}, "tries must be from 1 to 1000, not 0"),
        ("autorep", {"hysteresis": -1}, "hysteresis must be from 0 to 1, not -1"),
        ("coarse", {"mismatch": -1}, "mismatch must be from 0 to 1000000.0, not -1"),
    ],
)
def test_settings_outside_their_range_are_refused(name: str, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        METHODS[name](200, **settings)


def test_a_method_that_misses_its_budget_is_found_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Descent, "reduce", lambda self, network, task: Reduced(put_masks(network, task.masks)))
    with pytest.raises(RuntimeError, match=f"descent left {HAS} ReLUs in place of 200"):
        reduced("descent", 200)


def test_a_teacher_that_cannot_be_compared_is_refused_before_the_search(tmp_path: Path):
    other = build(architecture("resnet9-m4", DATA.shape, 10), seed=0)
    fail = lambda *_: pytest.fail("the search began")  # noqa: E731
    with pytest.raises(ValueError, match=r"the teacher has no layer 'stage1.0.act1' to compare with"):
        reduced("taylor", 300, teacher=other, folder=tmp_path / "run", progress=fail)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["descent", "spatial", "taylor"])
def test_a_network_of_maps_is_reduced_as_any_other(name: str):
    shapes = Dataset.load("shapes")
    few = [Split(split.images[:8], split.labels[:8]) for split in (shapes.train, shapes.validation)]
    data = replace(shapes, train=few[0], validation=few[1])
    model = build(architecture("resnet20-m2-phi1.1.1-seg", data.shape, len(data.class_names)), seed=0)
    _, record = linearize(model, METHODS[name](500), data, recipe=replace(RECIPE, batch=4))
    assert (record.relus, record.measures) == (500, "miou")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("coarse", {"model": Plain(), "budget": 9}, "coarse removal needs a network of the package"),
        ("herpn", {"masked": True, "budget": 0}, "stem.act has no ReLU at some places"),
        ("autorep", {"masked": True, "polynomial": True}, "polynomial=True puts a quadratic wherever there is no ReLU"),
        ("senet", {"teacher": "stored"}, "SENet compares every ReLU with the teacher's, which has none of shape"),
        ("taylor", {"teacher": "stored"}, "the teacher has no layer 'stem.act' to compare with; mismatch=0 compares"),
        ("snl", {"teacher": "stored", "crop": 2}, "the cached teacher saw crop=2, the recipe has crop=1"),
        ("snl", {"grow": 0.5}, "grow=0.5 shrinks images and masks have one size"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(name: str, more: dict, words: str, tmp_path: Path):
    budget, model = more.pop("budget", 300), more.pop("model", MODEL)
    if more.pop("masked", False):
        model = put_masks(copy.deepcopy(MODEL), {"stem.act": torch.zeros(2, 8, 8, dtype=torch.bool)})
    recipe = replace(RECIPE, grow=more.pop("grow", 0.0))
    if "teacher" in more:
        stored = {"offsets": torch.zeros(1, 260, 2, dtype=torch.uint8), "rest": torch.zeros(1, 260)}
        stored |= {"classes": torch.zeros(1, 260, 3, dtype=torch.int16), "logits": torch.zeros(1, 260, 3)}
        more["teacher"] = CachedTeacher(stored, more.pop("crop", 1), 10)
    teacher = more.pop("teacher", None)
    with pytest.raises(ValueError, match=words):
        linearize(model, METHODS[name](budget, **more), DATA, recipe=recipe, teacher=teacher, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("granularity", ["position", "channel", "layer"])
@pytest.mark.parametrize("name", sorted(set(FINE) - {"spatial"}))
def test_units_go_as_one(name: str, granularity: str):
    model, record = reduced(name, 301, granularity=granularity)
    assert (record.relus, record.granularity) == (301, granularity)
    # at most one unit in the network (one a layer, where budgets are by layer) is cut to meet the budget
    cut = 0
    for mask in masks_of(model, DATA.shape).values():
        units = {"position": mask.flatten(1), "channel": mask.flatten(1).T, "layer": mask.view(-1, 1)}[granularity]
        cut += int((units.any(0) & ~units.all(0)).sum())
    assert cut <= (len(record.kept) if name == "senet" else 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "network", ["resnet9-m4-strided", "vgg16-m2", "wideresnet22-8-m2-phi1.1.1", "resnet50-m1-phi1.1.1.1"]
)
def test_every_family(name: str, network: str):
    model = build(architecture(network, DATA.shape, 10), seed=0)
    assert reduced(name, 100, model=model)[1].relus == 100


@pytest.mark.parametrize("name", NAMES)
def test_a_hybrenet_after_thinning(name: str):
    hrn = architecture("hrn-5x5x3x-m1", DATA.shape, 10)
    thinned, _ = apply(plan_of(hrn, Thin()), build(hrn, seed=0))
    assert reduced(name, 100, model=thinned)[1].relus == 100


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_keeps_its_masks(name: str, tmp_path: Path):
    model, _ = reduced(name, 300)
    save(model, tmp_path, Manifest(model.architecture))
    again = load(tmp_path)
    x = DATA.normalize(DATA.validation.images)
    assert equal(weights(model), weights(again))
    assert torch.allclose(model(x), again(x), atol=1e-5)
    assert count(again, DATA.shape).total.relus == 300


def by_stage(layers: list[Layer]) -> CostReport:
    """A price at which a ReLU of the last stages costs a hundred times one of the others."""
    return CostReport.of(
        Cost(layer.name, "online", "evaluate", seconds=layer.relus * (100.0 if layer.name[5] in "23" else 1.0))
        for layer in layers
        if isinstance(layer, ReluLayer)
    )


@pytest.mark.parametrize("name", FINE)
def test_a_price_moves_relus_to_where_they_are_cheap(name: str):
    free, alike = reduced(name, 300)
    priced, weighed = reduced(name, 300, price=by_stage)
    assert weighed.relus == 300
    assert (alike.price, alike.price_before) == (None, None)
    assert weighed.price < by_stage(count(free, DATA.shape).layers).seconds
    assert weighed.price < weighed.price_before
    assert weighed.price == by_stage(count(priced, DATA.shape).layers).seconds


def test_prices_before_and_after_have_the_max_pools_in_them():
    model = trained("resnet9-m2")
    _, record = reduced(
        "descent",
        200,
        model=model,
        price=lambda layers: CostReport.of(
            Cost(layer.name, "online", "evaluate", seconds=layer.relus)
            for layer in layers
            if isinstance(layer, ReluLayer)
        ),
    )
    compared = count(model, DATA.shape).total.maxpool_comparisons
    assert compared
    assert (record.price_before, record.price) == (record.relus_before + compared, 200 + compared)


@pytest.mark.parametrize("name", NAMES)
def test_a_price_is_fine_where_a_layer_has_no_relu_left(name: str):
    model = copy.deepcopy(MODEL)
    put_masks(model, {"stem.act": masks_of(model, DATA.shape)["stem.act"] & False})
    assert reduced(name, 100, model=model, price=by_stage)[1].relus == 100


def test_a_profile_without_a_price_for_relus_is_refused():
    with pytest.raises(ValueError, match="the price profile charges nothing for ReLUs"):
        reduced("snl", 300, price=lambda layers: CostReport(()))


def test_a_network_whose_relus_are_no_modules_is_refused():
    class Mine(nn.Sequential):
        def forward(self, x):
            return super().forward(x).relu()

    conv = nn.Conv2d(1, 2, 3, padding=1)
    with pytest.raises(ValueError, match=r"128 of the model's 128 ReLUs are no torch\.nn\.ReLU"):
        masks_of(Mine(conv), DATA.shape)
    with pytest.raises(
        ValueError, match=r"one by one: 1 \(Hardswish\); `deepreshape substitute --activation relu` puts"
    ):
        masks_of(nn.Sequential(conv, nn.Hardswish()), DATA.shape)
    relu = nn.ReLU()
    with pytest.raises(ValueError, match="the ReLU 1 runs twice in one pass"):
        masks_of(nn.Sequential(conv, relu, relu), DATA.shape)
    flat = masks_of(nn.Sequential(conv, nn.Flatten(), nn.ReLU()), DATA.shape)
    assert {path: tuple(mask.shape) for path, mask in flat.items()} == {"2": (128,)}


def test_methods_are_named_as_on_the_command_line():
    for name, kind in METHODS.items():
        assert isinstance(kind(0), Method)
        assert kind(0).name == name
        assert kind.__doc__.startswith("Settings of ")
