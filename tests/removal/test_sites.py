"""Choosing units to an exact budget, and where masks are put."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.models import architecture, build
from deepreshape.nn import MaskedReLU
from deepreshape.removal.sites import keep_best, put_masks, unit_shape

granularities = st.sampled_from(["pixel", "position", "channel", "layer"])


@st.composite
def choices(draw):
    """Masks of a few sites, scores for their units (with ties), and a budget."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    granularity = draw(granularities)
    masks, scores = {}, {}
    for site in range(draw(st.integers(1, 3))):
        shape = [draw(st.integers(1, 4)) for _ in range(3)]
        masks[str(site)] = torch.rand(shape, generator=generator) < 0.8
        levels = torch.randint(0, 4, unit_shape(masks[str(site)], granularity), generator=generator)
        scores[str(site)] = levels.float()
    total = sum(int(mask.sum()) for mask in masks.values())
    return masks, scores, draw(st.integers(0, total))


@given(choice=choices(), seed=st.integers(0, 9))
def test_exactly_the_budget_of_the_best_units(choice, seed: int):
    masks, scores, budget = choice
    kept = keep_best(scores, masks, budget, seed)
    assert sum(int(mask.sum()) for mask in kept.values()) == budget
    assert all(not (kept[site] & ~masks[site]).any() for site in masks)
    values = torch.cat([scores[site].expand(masks[site].shape)[masks[site]] for site in masks])
    chosen = torch.cat([kept[site][masks[site]] for site in masks])
    if 0 < budget < len(values):
        assert values[chosen].min() >= values[~chosen].max()
    again = keep_best(scores, masks, budget, seed)
    assert all(torch.equal(kept[site], again[site]) for site in masks)


@given(choice=choices())
def test_whole_units_reach_the_budget_and_cut_nothing(choice):
    masks, scores, budget = choice
    kept = keep_best(scores, masks, budget, 0, whole_units=True)
    assert sum(int(mask.sum()) for mask in kept.values()) >= budget
    for site, mask in kept.items():
        sizes = masks[site].sum_to_size(scores[site].shape)
        assert ((mask.sum_to_size(scores[site].shape) == 0) | (mask.sum_to_size(scores[site].shape) == sizes)).all()


def test_equal_scores_are_decided_by_the_seed_and_not_by_the_order_of_layers():
    masks = {name: torch.ones(4, 5, 5, dtype=torch.bool) for name in "ab"}
    scores = {name: torch.ones(4, 5, 5) for name in "ab"}
    kept = [keep_best(scores, masks, 100, seed) for seed in range(3)]
    assert all(20 < int(one["a"].sum()) < 80 for one in kept)
    assert not torch.equal(kept[0]["a"], kept[1]["a"])


def test_masks_stand_at_their_sites():
    model = build(architecture("resnet20-m2-phi1.1.1", (1, 8, 8), 10), seed=0)
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    put_masks(model, {"stem.act": mask})
    layer = model.get_submodule("stem.act")
    assert isinstance(layer, MaskedReLU)
    assert torch.equal(layer.mask, mask)
