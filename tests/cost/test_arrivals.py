"""The queue against cases that can be worked out, and against the shape of the ASPLOS'23 study."""

from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.cost import PROFILES, price_published
from deepreshape.cost.arrivals import QueryService, Served, simulate, sustainable
from deepreshape.counting import count
from deepreshape.models import architecture, build


def test_rare_queries_wait_for_nothing_that_is_stored():
    served = simulate(QueryService(100, 7, 3), 0.2, hours=500, seed=3)
    assert served.queries > 50
    assert served.mean == pytest.approx(7, rel=0.02)
    assert served.ready == 1


def test_without_storage_each_query_pays_for_its_batch():
    served = simulate(QueryService(100, 7, 0), 0.2, hours=500, seed=3)
    assert served.mean == pytest.approx(107, rel=0.02)
    assert served.ready == 0


def test_without_offline_work_it_is_the_textbook_queue():
    # M/D/1: the mean wait is rho s / (2 (1 - rho))
    served = simulate(QueryService(0, 60, 10**9), 30, hours=20_000, seed=1)
    assert served.mean == pytest.approx(60 + 0.5 * 60 / (2 * 0.5), rel=0.03)


@given(st.floats(1, 500), st.floats(0.1, 100), st.integers(0, 20), st.integers(0, 9))
def test_more_storage_never_makes_anybody_wait_longer_and_all_are_served(offline, online, buffer, seed):
    rate = 0.7 * QueryService(offline, online, 0).limit
    less, more = (
        simulate(QueryService(offline, online, room), rate, hours=3000 / rate, seed=seed) for room in (0, buffer)
    )
    assert less.queries == more.queries
    assert more.mean <= less.mean * (1 + 1e-9)
    assert more.mean >= online * (1 - 1e-9)
    assert 0 <= more.ready <= 1


def test_the_sustainable_rate_lies_below_the_limit_and_grows_with_storage():
    small, large = (sustainable(QueryService(100, 10, room), hours=200, seeds=3) for room in (0, 20))
    assert 0 < small < large <= 1.1 * QueryService(100, 10, 0).limit


@pytest.mark.parametrize("batches", [3, 16_000])
def test_quick_services_are_simulated_by_a_part_of_their_queries(batches: int, monkeypatch: pytest.MonkeyPatch):
    runs: list[tuple[QueryService, float]] = []
    service = QueryService(0.09, 0.01, batches)

    def recorded(of: QueryService, an_hour: float, *, hours: float, seed: int) -> Served:
        runs.append((of, an_hour * hours))
        return Served(1, 0.0 if an_hour < 30_000 else 9.0, 0.0, 1.0)

    monkeypatch.setattr("deepreshape.cost.arrivals.simulate", recorded)
    assert sustainable(service) == pytest.approx(30_000, rel=1e-3)
    assert sum(queries for _, queries in runs) < 1e6
    part = runs[0][1] / (24 * service.limit)
    left = 3 if batches == 3 else ceil(part * batches)
    assert {of for of, _ in runs} == {replace(service, buffer=left)}


def test_storage_is_that_of_the_party_that_fills_first():
    assert QueryService.of(1, 1, (3, 10), (10, 100)).buffer == 3
    assert QueryService.of(1, 1, (3, 60), (10, 100)).buffer == 1
    assert QueryService.of(1, 1, (30, 10), (10, 100)).buffer == 0


def test_the_studys_shape():
    """ResNet-18, CIFAR, a client of 16 GB: the optimised client-garbler sustains about twice the requests."""
    shape = architecture("resnet18", (3, 32, 32), 10)
    layers = count(build(shape, "meta"), shape.input).layers
    rates, buffers = {}, {}
    for name in ("server-garbler", "client-garbler+lphe+wsa"):
        report = price_published(layers, PROFILES[name])
        online = report.only(phase="online").seconds
        stored = report.stored_client, report.stored_server
        service = QueryService.of(report.seconds - online, online, stored, (16e9, 10e12))
        rates[name], buffers[name] = sustainable(service, seeds=5), service.buffer
    assert buffers == {"server-garbler": 1, "client-garbler+lphe+wsa": 8}
    assert 1.7 < rates["client-garbler+lphe+wsa"] / rates["server-garbler"] < 2.8  # the study: 2.24


def test_no_query_at_all_is_an_error():
    with pytest.raises(ValueError, match="0 queries an hour: none arrives in 24 hours"):
        simulate(QueryService(1, 1, 1), 0)
