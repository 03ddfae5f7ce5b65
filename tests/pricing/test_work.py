"""Segments against the declared cost of exact plans, and estimates against exact plans."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import random_program

from deepreshape.cost import LINKS, Profile, compute_schedule, reference
from deepreshape.counting import count
from deepreshape.models import architecture, build
from deepreshape.pricing.estimate import estimate_steps
from deepreshape.pricing.work import SESSION, segments
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.lower import lower
from deepreshape.private.program.relu_config import ReluConfig

ANY = Profile("any", "2026-01-01", {}, {}, defaultdict(lambda: 1e-6), 0)


CONFIGS = ("gc-full", "gc-sign", "gc-stochastic:drop=2,neg-pass")


@given(st.integers(0, 99), st.booleans(), st.sampled_from(["server", "client"]), st.sampled_from(CONFIGS))
def test_turns_hold_all_that_is_declared_and_nothing_else(seed, prime, garbler, relu):
    plan = Plan(random_program(seed, prime=prime).public(), replace(ReluConfig.parse(relu), garbler=garbler, batch=7))
    report = compute_schedule(segments(plan.steps), ANY, LINKS["wan"])
    rows = [replace(row, seconds=0.0) for row in report.rows if row.layer != SESSION]
    assert sorted(rows, key=str) == sorted(plan.declared().rows, key=str)
    assert all(row.seconds >= 0 for row in report.rows)


@pytest.mark.parametrize("garbler", ["server", "client"])
@pytest.mark.parametrize("relu", CONFIGS)
def test_every_unit_of_work_is_measured(garbler, relu):
    shape = architecture("resnet18-m4", (3, 16, 16), 10)
    layers = count(build(shape, "meta"), shape.input).layers
    thinned = [replace(layer, relus=layer.relus // 2) if hasattr(layer, "relus") else layer for layer in layers]
    steps = estimate_steps(thinned, replace(ReluConfig.parse(relu), garbler=garbler)).steps
    assert any(step.protocol.kinds[0] == "truncate" for step in steps)
    assert compute_schedule(segments(steps), reference(), LINKS["lan"]).seconds > 0


@pytest.mark.parametrize("network", ["resnet18-m4", "resnet20-m8-phi1.1.1", "hrn-2x5x2x-m4"])
@pytest.mark.parametrize("relu", CONFIGS)
def test_an_estimate_comes_near_the_exact_plan(network, relu):
    shape = architecture(network, (3, 16, 16), 10)
    model = build(shape, seed=0).eval()
    program = lower(model, np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)).program
    chosen = ReluConfig.parse(relu)
    exact = Plan(program.public(), relu=chosen).declared()
    estimate = estimate_steps(count(model, shape.input).layers, bits=program.modulus.bits, relu=chosen)
    report = compute_schedule(segments(estimate.steps), ANY, LINKS["lan"])
    assert report.only(phase="online").rounds == exact.only(phase="online").rounds
    assert report.rounds == exact.rounds
    assert report.bytes == pytest.approx(exact.bytes, rel=0.05)
    for name in ("relus", "macs"):
        assert sum(getattr(row, name) for row in report.rows) == sum(getattr(row, name) for row in exact.rows)
    assert report.stored_client == estimate.steps.stored[0]
    assert report.stored_server == estimate.steps.stored[1]


def test_a_network_without_products_has_no_estimate():
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        _ = estimate_steps([]).steps


TRANSFERS = ("ot", "ot:tree", "ot:window,neg-pass", "ot:cot=softspoken", "ot:tree,cot=iknp")


@pytest.mark.parametrize("relu", TRANSFERS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), prime=st.booleans())
def test_turns_without_garbling_hold_all_that_is_declared(relu, seed, prime):
    plan = Plan(random_program(seed, prime=prime).public(), replace(ReluConfig.parse(relu), batch=7))
    report = compute_schedule(segments(plan.steps), ANY, LINKS["wan"])
    rows = [replace(row, seconds=0.0) for row in report.rows if row.layer != SESSION]
    assert sorted(rows, key=str) == sorted(plan.declared().rows, key=str)


@pytest.mark.parametrize("relu", TRANSFERS)
def test_every_unit_without_garbling_is_measured(relu):
    shape = architecture("resnet18-m4", (3, 16, 16), 10)
    steps = estimate_steps(count(build(shape, "meta"), shape.input).layers, ReluConfig.parse(relu)).steps
    report = compute_schedule(segments(steps), reference(), LINKS["lan"])
    assert report.only(kind="transfer").seconds > 0
    assert report.only(kind="compare").seconds > 0
