"""Spatial masks: the same share of positions everywhere, one choice of the map, and what it is judged by."""

import copy
from dataclasses import replace

import pytest
import torch
from support.few_digits import RECIPE, digits, trained

from deepreshape.counting import count
from deepreshape.removal import Linearization, Spatial, Taylor, masks_of
from deepreshape.removal.method import Task
from deepreshape.removal.spatial import _ranked, _Search
from deepreshape.training import TrainingRun

DATA = digits()
MODEL = trained()
MASKS = masks_of(MODEL, DATA.shape)
TASK = Task(DATA, RECIPE, copy.deepcopy(MODEL).eval(), MASKS, dict.fromkeys(MASKS, 1.0), 0, None, lambda at: None)
TOTAL = sum(int(mask.sum()) for mask in MASKS.values())


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


@pytest.mark.parametrize("choice", ["best", "validation", "first"])
def test_the_end_is_the_chosen_map_at_the_budget(choice: str):
    hook = searched(choice=choice)
    expected = hook._drawn(int(hook.best), TOTAL // 2)
    assert all(torch.equal(mask, expected[path]) for path, mask in hook.masks().items())
    if choice == "first":
        assert int(hook.best) == 0


def test_the_best_map_is_the_one_of_the_smallest_loss(monkeypatch):
    losses = iter([5.0, 3.0, 1.0, 2.0, 4.0, *[9.0] * 1000])
    monkeypatch.setattr(_Search, "_loss", lambda self, images, labels, reduction: torch.tensor(next(losses)))
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
