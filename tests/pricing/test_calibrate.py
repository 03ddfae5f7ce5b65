"""The stopwatch counts each party's own seconds, and calibration measures every unit once."""

import numpy as np
import pytest

from deepreshape.cost import reference
from deepreshape.pricing import calibrate as units
from deepreshape.pricing import probe_runs as probe
from deepreshape.pricing import timing as stopwatch
from deepreshape.private.transport.channel import Frame

ROLES, PHASES = ("client", "server"), ("offline", "online")


def test_one_party_works_at_a_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])

    def work(seconds: float) -> None:
        now[0] += seconds  # only safe because nobody else runs meanwhile

    def client(channel):
        work(1)
        channel.send(Frame.SHARES, b"a")
        channel.receive(Frame.SHARES, 1)
        work(2)

    def server(channel):
        channel.receive(Frame.SHARES, 1)
        work(10)
        channel.send(Frame.SHARES, b"b")

    assert stopwatch.run_parties(client, server) == (3, 10)


def test_a_line_through_two_sizes_gives_the_batch_and_the_instance():
    costs = units._line("x", "gate", (1, 10, 2 + 10 * 0.5), (4, 100, 4 * 2 + 100 * 0.5))
    assert costs == {"x": 0.5, "x.gate": 2.0}
    noisy = units._line("x", "gate", (1, 10, 1.0), (2, 100, 1.5))
    assert noisy == {"x": 0.015, "x.gate": 0.0}


@pytest.mark.timeout(900)  # a minute on a quiet machine
def test_calibration_measures_what_the_reference_holds():
    told: list[str] = []
    profile = units.measure("quick", 1, told.append)
    assert set(profile.units) == set(reference().units)
    assert all(np.isfinite(value) and value >= 0 for value in profile.units.values())
    assert len(told) == len(set(told)) == 10
    kinds = [f"{kind}.{garbler}.{phase}" for kind in ("gc-full", "sign") for garbler in ROLES for phase in PHASES]
    relus = {f"{kind}{what}" for kind in kinds for what in ("", ".relu")}
    assert set(profile.factors) == {"he", "he.weights", "clear", "clear.weight", "store", "claim", *relus}
    assert profile.resident > 0


def test_factors_and_a_constant_are_found_whatever_the_mixture():
    rows = [(3, 0.1, 0.5), (20, 0.1, 0.7), (3, 0.3, 0.9), (20, 0.05, 0.2)]
    measured = [0.01 * count + 1.5 * part + 1.2 * (whole - part) for count, part, whole in rows]
    assert probe._fitted(rows, measured) == pytest.approx((0.01, 1.5, 1.2))
    alone = [(count, 0.0, whole) for count, _, whole in rows]
    constant, _, factor = probe._fitted(alone, [0.01 * count + 1.2 * whole for count, _, whole in alone])
    assert (constant, factor) == pytest.approx((0.01, 1.2))


def test_a_layer_cannot_cost_less_than_nothing():
    constant, _, factor = probe._fitted([(3, 0.0, 1.0), (20, 0.0, 1.0)], [1.0, 0.5])
    assert constant == 0.0
    assert factor > 1
