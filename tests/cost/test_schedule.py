"""Turns, two clocks and a link: each overlap rule against arithmetic done by hand."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.cost import LINKS, Link, Profile, Segment, compute_schedule, read_link, split

UNIT = Profile("unit", "2026-01-01", {}, {}, {"work": 1.0, "worker": 0.0, "tls.send": 0.0, "tls.receive": 0.0}, 0)
SLOW = Link(8e3, 4e3, 0.5)  # a byte takes 1 ms up and 2 ms down


def segment(sender, nbytes=0, make=0.0, take=0.0, **more) -> Segment:
    return Segment("a", "offline", "x", sender, nbytes, {"work": make}, {"work": take}, **more)


def seconds(*segments: Segment, link: Link = SLOW, profile: Profile = UNIT, **options) -> float:
    return compute_schedule(segments, profile, link, **options).seconds


def test_a_message_is_made_then_sent_then_taken():
    assert seconds(segment("client", 1000, 3, 4)) == pytest.approx(3 + 1 + 0.5 + 4)
    assert seconds(segment("server", 1000, 3, 4)) == pytest.approx(3 + 2 + 0.5 + 4)


def test_pieces_overlap_and_the_slowest_of_the_three_decides():
    assert seconds(segment("client", 1000, 10, 1, pieces=1000)) == pytest.approx(10 + 1 + 0.5, rel=0.01)
    assert seconds(segment("client", 1000, 1, 10, pieces=1000)) == pytest.approx(0.5 + 1 + 10, rel=0.01)
    assert seconds(segment("client", 1000, 0, 0, pieces=1000)) == pytest.approx(1 + 0.5, rel=0.01)


def test_one_turn_pays_the_latency_once():
    far = Link(inf, inf, 1.0)
    assert seconds(*[segment("client", 1)] * 5, link=far) == pytest.approx(1)
    assert seconds(*[segment("client", 1), segment("server", 1)] * 5, link=far) == pytest.approx(10)
    assert seconds(segment("client", make=1, trips=2.5), link=far) == pytest.approx(5 + 1)


def test_parties_work_at_the_same_time_unless_one_waits():
    assert seconds(segment("client", make=5), segment("server", make=3)) == 5
    assert seconds(segment("client", 1, make=5), segment("server", make=3), link=Link(inf, inf)) == 8


def test_parallel_turns_are_shared_among_workers_as_far_as_they_have_parts():
    alike = [segment("server", make=2, parallel=6) for _ in range(3)]
    assert seconds(*alike) == 6
    assert seconds(*alike, workers=3) == pytest.approx(2)
    assert seconds(*alike, workers=4) == pytest.approx(2)  # one worker has two of the six parts
    assert seconds(*alike, workers=99) == pytest.approx(1)
    slow = replace(UNIT, units={**UNIT.units, "worker": 0.25})
    assert seconds(*alike, workers=3, profile=slow) == pytest.approx(2.5)  # two processes are started, once


def test_what_is_done_aside_is_waited_for_at_the_end_only():
    kept = segment("server", 1, aside={"work": 5})
    fast = Link(inf, inf)
    assert seconds(kept, link=fast) == 0
    assert seconds(kept, segment("client", make=3), link=fast) == 3
    assert seconds(kept, segment("client", make=3), segment("client", make=1, settles=True), link=fast) == 6
    assert seconds(kept, segment("server", make=1, settles=True), link=fast) == 1


@given(
    st.lists(
        st.builds(
            segment,
            st.sampled_from(["client", "server"]),
            st.integers(0, 5000),
            st.floats(0, 3),
            st.floats(0, 3),
            pieces=st.integers(1, 9),
        ),
        min_size=1,
    )
)
def test_rows_add_up_and_lie_between_the_bounds(segments):
    segments = [replace(each, layer=str(at % 3)) for at, each in enumerate(segments)]
    report = compute_schedule(segments, UNIT, SLOW)
    work = sum(each.make["work"] + (each.take["work"] if each.nbytes else 0) for each in segments)
    up = sum(each.nbytes for each in segments if each.sender == "client")
    down = sum(each.nbytes for each in segments if each.sender == "server")
    assert (sum(row.bytes_up for row in report.rows), sum(row.bytes_down for row in report.rows)) == (up, down)
    assert sum(report.only(layer=name).seconds for name in report.layers) == pytest.approx(report.seconds)
    messages = sum(each.nbytes > 0 for each in segments)
    assert report.seconds <= work + SLOW.seconds(up, down) + messages * SLOW.latency + 1e-6
    assert report.seconds >= max(SLOW.seconds(up, 0), SLOW.seconds(0, down)) - 1e-6


@given(st.lists(st.sampled_from(["client", "server"]), min_size=1))
def test_rounds_are_the_clients_waits(senders):
    report = compute_schedule([segment(sender, 1) for sender in senders], UNIT, SLOW)
    assert report.rounds == "".join(sender[0] for sender in senders).count("cs")


def test_links_are_read_by_name_or_by_numbers():
    assert read_link("wan") == LINKS["wan"] == Link(100e6, 100e6, 0.025)
    assert read_link("20mbit/100Mbit/40ms") == Link(20e6, 100e6, 0.02)
    assert read_link("1.5gbit/300us") == Link(1.5e9, 1.5e9, 150e-6)
    assert str(read_link("20mbit/100mbit/40ms")) == "20mbit/100mbit/40ms"


@pytest.mark.parametrize("text", ["dsl", "20mbit", "20mbit/40", "a/b/c", "1mbit/1mbit/1mbit/1ms", "0mbit/1ms", "40ms"])
def test_a_wrong_link_is_refused_with_what_would_work(text):
    with pytest.raises(
        ValueError, match=r"unknown link '.*'; known are loopback, lan, wan, wireless, and up/down/round"
    ):
        read_link(text)


@given(st.floats(1, 1e12), st.floats(1, 1e12))
def test_slots_lose_to_no_other_division(up, down):
    best = split(1e9, up, down, 0.001)
    assert best.up + best.down == pytest.approx(1e9)
    for share in (0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
        assert best.seconds(up, down) <= Link(share * 1e9, (1 - share) * 1e9).seconds(up, down) * (1 + 1e-9)
    assert split(inf, up, down) == Link(inf, inf)


def test_a_profile_says_what_it_lacks():
    with pytest.raises(ValueError, match=r"'unit' of 2026-01-01 has no time for 'gc-sign'; measure it again"):
        UNIT.seconds({"gc-sign": 3})


@pytest.mark.parametrize("kind", ["tls.send", "tls.receive", "worker"])
def test_a_profile_without_a_time_for_bytes_or_workers_says_so(kind: str):
    units = {name: seconds for name, seconds in UNIT.units.items() if name != kind}
    with pytest.raises(ValueError, match=rf"^profile .* has no time for '{kind}'; measure it again"):
        compute_schedule([segment("server", 8, 1.0, parallel=2)], replace(UNIT, units=units), SLOW, workers=2)
