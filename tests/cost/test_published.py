"""The published profile against the study's own end-to-end table."""

import pytest

from deepreshape.cost import PROFILES, CostReport, Link, price_published, split
from deepreshape.counting import count
from deepreshape.models import architecture, build

STUDY = [
    # network, side, classes, profile, offline s, online s, total s (Garimella et al., ASPLOS 2023)
    ("resnet18", 32, 10, "server-garbler", 478.3, 61.2, 539.5),
    ("resnet18", 32, 10, "server-garbler+lphe+wsa", 178.1, 57.4, 235.4),
    ("resnet18", 32, 10, "client-garbler+lphe+wsa", 236.4, 28.7, 265.1),
    ("resnet18", 64, 200, "server-garbler", 1808, 243.1, 2051),
    ("resnet18", 64, 200, "server-garbler+lphe+wsa", 702.8, 227.7, 930.5),
    ("resnet18", 64, 200, "client-garbler+lphe+wsa", 939.7, 112.9, 1052.6),
    ("resnet32", 32, 10, "client-garbler+lphe+wsa", 112.0, 15.8, 127.8),
]


def priced(network: str, side: int, classes: int, profile: str) -> CostReport:
    shape = (3, side, side)
    return price_published(count(build(architecture(network, shape, classes), "meta"), shape).layers, PROFILES[profile])


@pytest.mark.parametrize(("network", "side", "classes", "profile", "offline", "online", "total"), STUDY)
def test_the_studys_table_to_two_percent(network, side, classes, profile, offline, online, total):
    report = priced(network, side, classes, profile)
    assert report.seconds == pytest.approx(total, rel=0.02)
    assert report.only(phase="offline").seconds == pytest.approx(offline, rel=0.02)
    assert report.only(phase="online").seconds == pytest.approx(online, rel=0.035)


@pytest.mark.parametrize(("kind", "seconds"), [("garble", 6.0), ("evaluate", 50.2), ("he", 295.3)])
def test_the_studys_parts(kind: str, seconds: float):
    assert priced("resnet18", 32, 10, "server-garbler").only(kind=kind).seconds == pytest.approx(seconds, rel=0.01)


def test_the_evaluator_stores_the_circuits():
    server, client = (priced("resnet18", 32, 10, f"{who}-garbler+lphe+wsa") for who in ("server", "client"))
    assert (server.stored_client, server.stored_server) == (18_248 * 557_056, 3_590 * 557_056)
    assert (client.stored_client, client.stored_server) == (server.stored_server, server.stored_client)
    assert priced("resnet18", 64, 200, "server-garbler").stored_client == pytest.approx(40.66e9, rel=1e-3)


def test_every_second_belongs_to_one_layer_and_one_phase():
    report = priced("resnet20", 32, 10, "server-garbler")
    assert sum(report.only(layer=name).seconds for name in report.layers) == pytest.approx(report.seconds)
    assert sum(report.only(phase=phase).seconds for phase in ("setup", "offline", "online")) == pytest.approx(
        report.seconds
    )
    assert report.only(phase="offline").seconds > report.only(phase="online").seconds > 0


def test_without_relus_there_is_nothing_to_garble():
    from deepreshape.removal import Cull, plan_of

    whole = architecture("resnet18")
    none = plan_of(whole, *(Cull(stage) for stage in (1, 2, 3, 4))).architecture
    report = price_published(count(build(none, "meta"), none.input).layers, PROFILES["server-garbler"])
    assert report.only(kind="garble").rows == ()
    assert report.stored_client == 0
    assert report.only(kind="he").seconds == pytest.approx(
        priced("resnet18", 32, 100, "server-garbler").only(kind="he").seconds
    )


def test_slots_are_divided_in_the_fastest_way():
    link = split(1e9, 729e6, 10.3e9)
    fastest = link.seconds(729e6, 10.3e9)
    assert link.up + link.down == pytest.approx(1e9)
    assert all(
        Link(share * 1e9, (1 - share) * 1e9).seconds(729e6, 10.3e9) >= fastest for share in (0.1, 0.198, 0.25, 0.5)
    )
    assert link.up / 1e6 == pytest.approx(198, abs=15)  # the study's own split
