from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepreshape.counting import count
from deepreshape.design.base_width import multiply_adds
from deepreshape.models import Reduction, ResNet, Staged, architecture, build
from deepreshape.nn import ReuseForm
from deepreshape.removal import Cull, Reuse, Scale, Thin, apply, coarse_plans, plan, plan_of
from deepreshape.removal.sites import put_masks

LADDER = [
    # network, full, thin, cull, cull and thin, then reuse by 2, 4, 8, 16 (DeepReShape; thousands, as published)
    ("resnet18", 557.06, 311.30, 229.38, 114.69, 57.34, 28.67, 14.34, 7.17),
    ("hrn-5x5x3x", 343.04, 179.71, 261.12, 130.56, 65.28, 32.64, 16.32, 8.16),
    ("hrn-5x7x2x", 378.88, 197.63, 296.96, 148.48, 74.24, 37.12, 18.56, 9.28),
    ("hrn-2x5x3x-m32", 372.74, 202.75, 208.90, 104.45, 52.22, 26.11, 13.06, 6.53),
    ("hrn-2x7x2x-m32", 401.41, 217.09, 237.57, 118.78, 59.39, 29.70, 14.85, 7.42),
]


@pytest.mark.parametrize("row", LADDER, ids=lambda row: row[0])
def test_the_published_ladder(row):
    whole = architecture(row[0])
    last = (Cull(1), Thin())
    steps = [(), (Thin(),), (Cull(1),), last, *((*last, Reuse(factor)) for factor in (2, 4, 8, 16))]
    assert [round(plan_of(whole, *sequence).relus / 1000, 2) for sequence in steps] == list(row[1:])


def test_deepreduce_budgets():
    whole = architecture("resnet18")
    small = plan_of(whole, Cull(1), Cull(4), Thin(), Scale(channels=2))
    assert small.relus == 49_152
    assert plan_of(small.architecture, Scale(resolution=2)).relus == 12_288
    reshaped = [candidate.relus for candidate in coarse_plans(whole, "reshape")][-5:]
    assert reshaped == [57_344, 28_672, 14_336, 7_168, 3_584]


networks = st.builds(
    lambda phi, base, multipliers, side, block: ResNet(
        tuple(phi), base, tuple(multipliers[: len(phi) - 1]), (3, side, side), 10, block=block
    ),
    st.lists(st.integers(1, 3), min_size=2, max_size=4),
    st.integers(2, 9),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.sampled_from([8, 13, 16]),
    st.sampled_from(["basic", "bottleneck"]),
)


@given(network=networks, shrink=st.sampled_from(["reuse", "reshape"]))
def test_prediction_equals_count_for_every_plan(network: Staged, shrink):
    for candidate in coarse_plans(network, shrink):
        assert count(build(candidate.architecture, "meta"), network.input).total.relus == candidate.relus


@pytest.mark.parametrize("name", ["vgg16-m8", "resnet9-m8", "wideresnet22-8-m8"])
def test_prediction_equals_count_in_other_families(name: str):
    whole = architecture(name)
    for candidate in coarse_plans(whole):
        assert count(build(candidate.architecture, "meta"), whole.input).total.relus == candidate.relus


@given(budget=st.integers(1, 139_264))
def test_a_plan_keeps_the_most_within_its_budget(budget: int):
    whole = architecture("resnet18-m16")
    reachable = [candidate.relus for candidate in coarse_plans(whole) if candidate.relus <= budget]
    if reachable:
        assert plan(whole, budget).relus == max(reachable)
    else:
        with pytest.raises(ValueError, match=f"no coarse plan reaches {budget:,} ReLUs; the smallest has 1,792"):
            plan(whole, budget)


def test_a_budget_above_the_network_is_refused():
    with pytest.raises(ValueError, match="a budget of 200,000 ReLUs is larger than the network, which has 139,264"):
        plan(architecture("resnet18-m16"), 200_000)


def test_a_plan_keeps_within_multiply_adds_too():
    whole = architecture("resnet18-m16")
    free, bound = plan(whole, 15_000), plan(whole, 15_000, max_macs=26e6)
    assert (free.relus, multiply_adds(free.architecture)) == (14_336, 26_898_944)
    assert (bound.relus, multiply_adds(bound.architecture)) == (7_168, 25_350_656)
    with pytest.raises(ValueError, match=r"15,000 ReLUs and 1,000,000 multiply-adds; .* the least is 25,3"):
        plan(whole, 15_000, max_macs=1e6)


def test_the_first_stage_is_culled_first_only_where_it_dominates():
    first = [str(list(coarse_plans(architecture(name)))[1]) for name in ("resnet18", "hrn-2x5x3x-m32", "hrn-5x5x3x")]
    assert first == ["cull S1+stem", "cull S1+stem", "thin"]


def test_thinning_can_keep_the_first_and_be_local():
    whole = architecture("resnet18")
    assert plan_of(whole, Thin("first")).relus == plan_of(whole, Thin()).relus
    assert "stage1.0.act2" in Thin("first")(whole).reduction.removed
    assert plan_of(whole, Thin(stages=(4,))).relus == whole.relus - 16_384


@pytest.mark.parametrize(
    ("step", "network", "message"),
    [
        (Cull(7), "resnet18", "there is no stage 7 to cull; stages are 1 to 4"),
        (Scale(channels=3), "resnet18", "m=64 channels cannot be divided by 3"),
        (Reuse(32), "resnet18-m16", "cannot reuse ReLUs 32 times: stage1.0.act1 has 16 channels; 2 to 16 works"),
        (Reuse(2), "wideresnet22-8", "no ReLU of this wide_resnet follows a convolution"),
    ],
)
def test_a_step_that_does_not_fit_is_explained(step, network: str, message: str):
    with pytest.raises(ValueError, match=message):
        step(architecture(network))


def test_reuse_once():
    once = Reuse(2)(architecture("resnet18"))
    with pytest.raises(ValueError, match="already reused 2 times"):
        Reuse(2)(once)


@pytest.mark.parametrize("form", [ReuseForm("proportional"), ReuseForm(mix=False)])
def test_every_wiring_of_reuse_gives_the_same_count(form: ReuseForm):
    coarse_plan = plan_of(architecture("resnet18-m16"), Cull(1), Thin(), Reuse(4, form))
    assert coarse_plan.relus == 7_168
    assert count(build(coarse_plan.architecture, "meta"), (3, 32, 32)).total.relus == 7_168


def test_applying_a_plan_takes_over_what_it_can():
    whole = architecture("resnet18-m4", (1, 8, 8), 10)
    model = build(whole, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    thinned, record = apply(plan_of(whole, Thin()), model)
    assert record.fresh == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in thinned.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    reused, record = apply(plan_of(whole, Thin(), Reuse(2)), model, seed=1)
    assert set(record.carried) | set(record.fresh) == set(reused.state_dict())
    assert all(".conv2." in name for name in record.fresh)
    assert (record.relus_before, record.relus_after) == (whole.relus, count(reused, (1, 8, 8)).total.relus)


def test_a_plan_carries_masks_or_refuses():
    model = build(architecture("resnet18-m4", (1, 8, 8), 10), seed=0)
    first, second = torch.rand(4, 8, 8) < 0.5, torch.rand(8, 4, 4) < 0.5
    put_masks(model, {"stage1.0.act1": first, "stage2.0.act2": second})
    thinned, record = apply(plan_of(model.architecture, Thin()), model)
    assert torch.equal(thinned.get_submodule("stage2.0.act2").mask, second)
    assert isinstance(thinned.get_submodule("stage1.0.act1"), nn.Identity)
    assert record.relus_after == count(thinned, (1, 8, 8)).total.relus
    assert record.relus_after == thinned.architecture.relus - int((~second).sum())
    for step in (Reuse(2), Scale(channels=2), Scale(resolution=2)):
        with pytest.raises(ValueError, match=r"the mask at stage1.0.act1 has no place in the new network"):
            apply(plan_of(model.architecture, step), model)


@pytest.mark.parametrize("step", ["-float", "-signs", "-norelus", ""])
def test_a_binary_network_starts_from_its_first_step(step: str):
    first = build(architecture("react18-m2-signs", (1, 8, 8), 10), seed=0)
    with torch.no_grad():
        for tensor in first.parameters():
            tensor.add_(1)
    chosen = plan_of(architecture(f"react18-m2{step}", (1, 8, 8), 10))
    second, record = apply(chosen, first, seed=1)
    assert record.fresh == ()
    state = first.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in second.state_dict().items())


def test_what_stands_at_a_site_goes_nowhere_else():
    model = build(architecture("react18-m2", (1, 8, 8), 10), seed=0)
    with pytest.raises(ValueError, match=r"the rprelu at stage1.0.unit1.act has no place in the new network"):
        apply(plan_of(architecture("react18-m2-relus", (1, 8, 8), 10)), model)


def test_a_plan_for_another_family_is_refused():
    chosen = plan_of(architecture("resnet18-m4", (1, 8, 8), 10), Thin())
    with pytest.raises(ValueError, match="a plan for a resnet does not fit a vgg, whose sites are others"):
        apply(chosen, build(architecture("vgg16-m4", (1, 8, 8), 10)))
    with pytest.raises(ValueError, match="does not fit a Sequential"):
        apply(chosen, nn.Sequential())


def test_removal_and_reuse_do_not_contradict_each_other():
    both = Cull(2)(Reuse(2)(architecture("resnet18")))
    assert not {name for name, _ in both.reduction.reused} & both.reduction.removed
    assert replace(both, reduction=Reduction(both.reduction.removed)).relus > both.relus
