"""Spatial masks: the same share of positions everywhere, one choice of the map, and what it is judged by."""

import copy
from dataclasses import replace

import pytest
import torch
from support.few_digits import RECIPE, KilledError, digits, equal, kill_at, task, trained, weights
from torch import nn

from deepreshape.counting import count
from deepreshape.models.saved import load, save
from deepreshape.nn import KnownReLU, MaskedConv2d
from deepreshape.removal import Linearization, Spatial, Taylor, export_masks, masks_of
from deepreshape.removal.sites import behind_convolutions
from deepreshape.removal.spatial import _ranked, _Search
from deepreshape.training import TrainingRun

DATA = digits()
MODEL = trained()
TASK = task(MODEL)
MASKS = TASK.masks
TOTAL = sum(int(mask.sum()) for mask in MASKS.values())
BEHIND = behind_convolutions(MODEL, DATA.shape, MASKS)
REMOVABLE = sum(int(MASKS[path].sum()) for path in BEHIND)
FEWER = TOTAL - REMOVABLE // 3
"""A budget for columns: two thirds of what stands behind convolutions."""


def search(budget: int = TOTAL // 2, **settings) -> _Search:
    return _Search(Spatial(budget, **settings), copy.deepcopy(MODEL), TASK)


def searched(**settings) -> _Search:
    hook = search(**settings)
    TrainingRun(hook, DATA, replace(RECIPE, epochs=2), seed=0, hook=hook).complete(None, None)
    return hook


def test_all_channels_share_a_position_and_all_sites_a_share():
    for path, mask in search()._drawn(3, TOTAL // 2).items():
        if min(mask.shape[1:]) > 1:
            assert torch.equal(mask.any(0), mask.all(0)) or path == "stem.act"
            assert abs(float(mask.float().mean()) - 0.5) <= 1.5 / mask[0].numel()


def test_sites_of_one_size_lose_the_same_positions():
    masks = search()._drawn(5, TOTAL // 4)
    planes = {path: mask[0] for path, mask in masks.items() if tuple(mask.shape[1:]) == (8, 8)}
    assert len(planes) > 1
    first, *others = planes.values()
    assert all(int((first ^ other).sum()) <= 1 for other in others)


def test_ranks_are_those_of_adaptive_means():
    drawn = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ranks = _ranked(drawn, torch.ones(2, 3, 3, dtype=torch.bool))
    rows = [(0, 3), (2, 6), (5, 8)]
    means = torch.stack([drawn[0, 0, a:b, c:d].mean() for a, b in rows for c, d in rows])
    assert torch.equal(ranks.flatten().argsort(), means.argsort())
    assert ranks.max() == 1
    assert torch.equal(_ranked(drawn, torch.ones(5, dtype=torch.bool)), torch.ones(1))


def test_a_line_is_ranked_as_a_map_of_one_row_and_a_vector_is_whole():
    drawn = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ranks = _ranked(drawn, torch.ones(2, 4, dtype=torch.bool))
    means = drawn.view(8, 4, 2).mean((0, 2))
    assert torch.equal(ranks[0].argsort(), means.argsort())
    assert torch.equal(_ranked(drawn, torch.ones(5, dtype=torch.bool)), torch.ones(1))


@pytest.mark.parametrize("choice", ["best", "validation", "first"])
def test_the_end_is_the_chosen_map_at_the_budget(choice: str):
    hook = searched(choice=choice)
    expected = hook._drawn(int(hook.best), TOTAL // 2)
    assert all(torch.equal(mask, expected[path]) for path, mask in hook.masks().items())
    if choice == "first":
        assert int(hook.best) == 0


def test_the_best_map_is_the_one_of_the_smallest_loss(monkeypatch):
    losses = iter([5.0, 3.0, 1.0, 2.0, 4.0, *[9.0] * 1000])
    monkeypatch.setattr(_Search, "_loss", lambda self, images, labels: torch.tensor(next(losses)))
    assert int(searched(choice="best").best) == 2
    losses = iter([5.0, 3.0, 1.0, 0.5, 4.0, *[9.0] * 1000])
    assert int(searched(choice="validation").best) == 3


def test_relus_fall_between_begin_and_end_only():
    hook = search(begin=0.2, end=0.6)
    left = []
    for step in range(10):
        hook.before(step, 10)
        left.append(sum(int(mask.sum()) for mask in hook.masks().values()))
    assert left[:2] == [TOTAL, TOTAL]
    assert left[2:6] == sorted(left[2:6], reverse=True)
    assert left[2] < TOTAL
    assert left[5] == left[9] == TOTAL // 2


def test_other_methods_go_on_from_it():
    half, _ = Linearization(MODEL, Spatial(TOTAL // 2), DATA, recipe=RECIPE).run()
    less, _ = Linearization(half, Taylor(TOTAL // 4, mismatch=0.0), DATA, recipe=RECIPE).run()
    assert count(less, DATA.shape).total.relus == TOTAL // 4
    for path, mask in masks_of(less, DATA.shape).items():
        assert not (mask & ~masks_of(half, DATA.shape)[path]).any()


def columns(budget: int = FEWER, folder=None, progress=None, model=MODEL, **settings):
    method = Spatial(budget, columns=True, **settings)
    return Linearization(model, method, DATA, recipe=RECIPE).run(folder, progress)


@pytest.mark.parametrize("choice", ["best", "validation", "first"])
def test_convolutions_leave_out_what_the_sites_behind_them_lose(choice):
    net, record = columns(choice=choice)
    counted, modules = count(net, DATA.shape), dict(net.named_modules())
    assert counted.total.relus == record.relus == FEWER
    assert {path for path, module in modules.items() if isinstance(module, MaskedConv2d)} == {*BEHIND.values()}
    for path, conv in BEHIND.items():
        site, masked = modules[path], modules[conv]
        assert torch.equal(site.known, ~masked.columns)
        assert not (site.relu.mask & site.known).any()
        kept = float(masked.columns.float().mean())
        assert abs(kept - 2 / 3) <= 1.5 / masked.columns.numel() + 0.01
        before = count(MODEL, DATA.shape).by_module[conv].macs
        assert counted.by_module[conv].macs * masked.columns.numel() == before * int(masked.columns.sum())
    for path in MASKS.keys() - BEHIND.keys():
        assert modules[path].mask.all()


def test_no_value_of_a_pixel_left_out_depends_on_the_input():
    net, _ = columns()
    seen = {}
    for path in BEHIND:
        net.get_submodule(path).register_forward_hook(lambda *got, at=path: seen.update({at: got[2]}))
    with torch.no_grad():
        net(torch.randn(4, *DATA.shape))
    assert set(seen) == set(BEHIND)
    for path, value in seen.items():
        known = value[:, :, net.get_submodule(path).known]
        assert known.numel()
        assert (known == known[:1, :, :1]).all()
        assert (known >= 0).all()


def test_columns_are_saved_and_loaded(tmp_path):
    net, _ = columns()
    save(net, tmp_path)
    again, x = load(tmp_path), torch.randn(3, *DATA.shape)
    with torch.no_grad():
        assert torch.allclose(again(x), net(x), atol=1e-5)
    assert equal(weights(again), weights(net))


def test_masks_are_exported_by_site_and_by_convolution():
    net, _ = columns()
    arrays = export_masks(net, DATA.shape)
    assert {*arrays} == {f"relus/{path}" for path in MASKS} | {f"columns/{path}" for path in BEHIND.values()}
    assert all(array.dtype == bool for array in arrays.values())
    assert sum(int(array.sum()) for name, array in arrays.items() if name.startswith("relus/")) == FEWER
    for path, conv in BEHIND.items():
        assert not (arrays[f"relus/{path}"] & ~arrays[f"columns/{conv}"]).any()


def test_a_search_for_columns_goes_on_where_it_was_killed(tmp_path):
    whole, _ = columns(search_epochs=2)
    for phase, step in [("search", 4), ("tune", 2)]:
        with pytest.raises(KilledError):
            columns(folder=tmp_path, progress=kill_at(phase, step), search_epochs=2)
    assert equal(weights(columns(folder=tmp_path, search_epochs=2)[0]), weights(whole))


def test_other_methods_go_on_from_columns(tmp_path):
    net, _ = columns()
    less, _ = Linearization(net, Taylor(TOTAL // 4, mismatch=0.0), DATA, recipe=RECIPE).run()
    assert count(less, DATA.shape).total.relus == TOTAL // 4
    assert count(less, DATA.shape).total.macs == count(net, DATA.shape).total.macs
    more, _ = columns(FEWER - 40, model=net)
    modules, before = dict(more.named_modules()), dict(net.named_modules())
    assert all(not (modules[conv].columns & ~before[conv].columns).any() for conv in BEHIND.values())
    for path in BEHIND:
        assert isinstance(modules[path], KnownReLU)
        assert torch.equal(modules[path].known, ~modules[BEHIND[path]].columns)
    save(less, tmp_path)
    assert equal(weights(load(tmp_path)), weights(less))


def test_maps_may_be_compared_with_a_teacher_without_columns():
    net, _ = Linearization(MODEL, Spatial(FEWER, columns=True, mismatch=1.0), DATA, recipe=RECIPE).run()
    assert count(net, DATA.shape).total.relus == FEWER


def test_only_what_nothing_else_reads_is_behind_a_convolution():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.wide, self.small = (nn.Conv2d(3, 3, size, padding=size // 2) for size in (3, 3, 1))
            self.norm = nn.BatchNorm2d(3)
            self.first, self.second, self.third, self.fourth = (nn.ReLU() for _ in range(4))

        def forward(self, x):
            x = self.read(x)
            x = self.first(x) + x
            x = self.second(self.norm(self.wide(x)))
            return self.fourth(self.third(self.small(x)) + x).mean((2, 3))

    net = Net()
    sites = masks_of(net, (3, 8, 8))
    assert behind_convolutions(net, (3, 8, 8), sites) == {"second": "wide"}


def test_sites_may_be_called_relu():
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(DATA.shape[0], 4, 3, padding=1))
    net.add_module("relu", nn.ReLU())
    net.add_module("rest", nn.Sequential(nn.Flatten(), nn.Linear(256, 10)))
    block = nn.Sequential()
    block.add_module("block", net)
    small, record = columns(160, model=block)
    assert record.relus == 160
    assert sum(name.startswith("relus/") for name in export_masks(small, DATA.shape)) == 1
    assert columns(100, model=small)[1].relus == 100


def test_a_budget_below_what_adds_leave_is_refused_before_anything_is_written(tmp_path):
    least = TOTAL - REMOVABLE + sum(len(MASKS[path]) for path in BEHIND)
    assert columns(least)[1].relus == least
    with pytest.raises(
        ValueError, match=f"{TOTAL - REMOVABLE:,} of the network's {TOTAL:,} stand behind.*{least:,} is"
    ):
        columns(least - 1, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_without_such_convolutions_is_refused():
    flat = nn.Sequential(nn.Conv2d(DATA.shape[0], 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    with pytest.raises(ValueError, match="none of the network's 256 ReLUs"):
        columns(100, model=flat)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "channel"}, "by position, not by channel"),
        ({"begin": 0.5, "end": 0.5}, "begin=0.5 has to be before end=0.5"),
        ({"maps": 0}, "maps must be from 1 to 10000, not 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Spatial(10, **settings)
