"""The quotas of a server: what a client may have, how long it is remembered, and that it cannot be argued with."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepreshape.private.errors import CapError, SpentError, StoreError
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.store import Store
from deepreshape.private.service.quotas import DAY_S, HOUR_S, Caps, Quotas

ANN, BOB = "a" * 64, "b" * 64
CAPS = Caps(sessions=3, sessions_each=2, batches_each=2, queries_hour_each=2, queries_day_each=3)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, peer: str, number: int, program: str = "cd") -> str:
    """A batch, as a session for ``peer`` leaves it."""
    session = f"{number:064x}"
    with store.create(Binding(program * 32, peer, {}), session) as writer:
        writer.commit()
    return session


def test_queries_are_counted_by_the_hour_and_the_day(store: Store) -> None:
    clock = Clock()
    quotas = Quotas(CAPS, store, clock)
    for wait, refusal in ((0, ""), (1, ""), (1, "hour"), (HOUR_S, ""), (HOUR_S, "day"), (DAY_S - 2 * HOUR_S, "")):
        clock.now += wait
        if refusal:
            with pytest.raises(CapError, match=f"in an? {refusal}"):
                quotas.admit(ANN, "query")
        else:
            quotas.admit(ANN, "query")
        quotas.admit(BOB, "prepare")  # is no query
        quotas.close_session(BOB, {"prepare": 1}, "served")
    assert quotas.usage[ANN].refused == 2


def test_several_queries_are_admitted_all_or_none_and_a_restart_knows_each(store: Store) -> None:
    quotas = Quotas(CAPS, store, Clock())
    with pytest.raises(CapError, match="hour"):
        quotas.admit(ANN, "query", 3)
    quotas.admit(ANN, "query", 2)
    for each in (quotas, Quotas(CAPS, store, Clock())):
        assert len(each.usage[ANN].queries) == 2
        with pytest.raises(CapError, match="hour"):
            each.admit(ANN, "query")


def test_a_restart_and_a_torn_line_forget_nothing(store: Store) -> None:
    clock = Clock()
    quotas = Quotas(CAPS, store, clock)
    quotas.admit(ANN, "query")
    with open(store.folder / "queries", "a") as file:
        file.write("1000000.5 aaaa")  # the disk was full, or the machine went down
    quotas.admit(ANN, "query")
    for _ in range(2):  # what a restart has kept, the next one has to keep too
        again = Quotas(CAPS, store, clock)
        with pytest.raises(CapError, match="hour"):
            again.admit(ANN, "query")
    clock.now += DAY_S + 1
    Quotas(CAPS, store, clock).admit(ANN, "query")
    assert len((store.folder / "queries").read_text().split("\n")) < 4  # the old ones are gone


def test_a_clock_that_is_set_back_gives_nobody_more(store: Store) -> None:
    clock = Clock()
    quotas = Quotas(CAPS, store, clock)
    quotas.admit(ANN, "query")
    quotas.admit(ANN, "query")
    clock.now -= 10 * DAY_S
    with pytest.raises(CapError):
        quotas.admit(ANN, "query")
    with pytest.raises(CapError):
        Quotas(CAPS, store, clock).admit(ANN, "query")


def test_a_query_that_cannot_be_written_down_is_not_answered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    quotas = Quotas(CAPS, store, Clock())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device; no query is answered uncounted"):
        quotas.admit(ANN, "query")
    (store.folder / "queries").unlink()
    (store.folder / "queries").mkdir()
    with pytest.raises(StoreError, match="the caps on queries cannot be kept"):
        Quotas(CAPS, store, Clock())


def test_batches_are_counted_by_peer_whatever_the_program_and_those_being_made_too(store: Store) -> None:
    quotas = Quotas(CAPS, store, bindings=lambda peer: [Binding(program * 32, peer, {}) for program in ("cd", "ef")])
    put(store, ANN, 1)
    quotas.admit(ANN, "prepare")
    with pytest.raises(CapError, match="2 batches held"):
        quotas.admit(ANN, "prepare")
    quotas.close_session(ANN, {"prepare": 1}, "failed")
    with pytest.raises(CapError, match="2 batches held"):
        quotas.admit(ANN, "prepare", 2)
    put(store, ANN, 2, program="ef")
    with pytest.raises(CapError, match="2 batches held"):
        quotas.admit(ANN, "prepare")
    quotas.admit(BOB, "prepare", 2)
    quotas.close_session(BOB, {"prepare": 2}, "served")
    assert (quotas.usage[BOB].preparing, quotas.usage[BOB].prepared) == (0, 2)


def test_old_batches_are_spent_and_make_room(store: Store) -> None:
    quotas = Quotas(CAPS, store)
    old, new = put(store, ANN, 1), put(store, ANN, 2)
    long_ago = time.time() - CAPS.batch_days * DAY_S - 60
    os.utime(store.folder / "fresh" / old, (long_ago, long_ago))
    quotas.admit(ANN, "prepare")
    assert store.fresh(Binding("cd" * 32, ANN, {})) == (new,)
    assert not (store.keys / f"{old}.key").exists()
    with pytest.raises(SpentError):
        store.claim(Binding("cd" * 32, ANN, {}), old)


def test_at_the_cap_batches_without_a_use_make_way_and_then_those_of_an_hour_ago(store: Store) -> None:
    """Of a program that is served no more, or of a client that lost its store: it would be locked out for a month."""
    quotas = Quotas(CAPS, store, bindings=lambda peer: [Binding("cd" * 32, peer, {})])
    used, other = put(store, ANN, 1), put(store, ANN, 2, program="ef")
    bobs = put(store, BOB, 3, program="ef")
    fresh = store.folder / "fresh"
    with pytest.raises(CapError, match="2 batches held"):  # for two, one that was made just now would have to go
        quotas.admit(ANN, "prepare", 2)
    assert {path.name for path in fresh.iterdir()} == {used, other, bobs}
    with store.keep(Binding("ef" * 32, ANN, {}), other), pytest.raises(CapError, match="2 batches held"):
        quotas.admit(ANN, "prepare")
    assert quotas.admit(ANN, "prepare") == 1
    assert {path.name for path in fresh.iterdir()} == {used, bobs}
    assert not (store.keys / f"{other}.key").exists()
    with pytest.raises(SpentError):
        store.claim(Binding("ef" * 32, ANN, {}), other)
    with pytest.raises(CapError, match="2 batches held"):
        quotas.admit(ANN, "prepare")
    os.utime(fresh / used, (time.time() - HOUR_S - 60,) * 2)
    assert quotas.admit(ANN, "prepare") == 1
    assert {path.name for path in fresh.iterdir()} == {bobs}
    with pytest.raises(CapError, match="2 batches held"):  # those that are being made stay in any case
        quotas.admit(ANN, "prepare")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps=st.lists(st.tuples(st.sampled_from([ANN, BOB, "c" * 64]), st.booleans()), max_size=40))
def test_sessions_never_exceed_either_cap_and_are_refused_only_at_one(
    steps: list[tuple[str, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    quotas = Quotas(CAPS, Store(tmp_path_factory.getbasetemp() / "sessions"))
    running: list[str] = []
    for client, enters in steps:
        if not enters:
            if client in running:
                running.remove(client)
                quotas.close_session(client, {}, "served")
            continue
        full = len(running) == CAPS.sessions or running.count(client) == CAPS.sessions_each
        with suppress(CapError):
            quotas.open_session(client)
            assert not full
            running.append(client)
            continue
        assert full
    assert quotas.running == len(running)


@pytest.mark.parametrize("cap", ["sessions", "pending", "queries_day_each"])
def test_no_cap_is_below_one(cap: str) -> None:
    with pytest.raises(ValueError, match=f"{cap}=0: must be at least 1"):
        replace(CAPS, **{cap: 0})


def test_status_has_no_more_of_a_client_than_the_first_digits(store: Store) -> None:
    quotas = Quotas(CAPS, store)
    quotas.open_session(ANN)
    quotas.admit(ANN, "query")
    quotas.close_session(ANN, {"query": 1}, "served", sent=5, received=7, seconds=0.5)
    (row,) = quotas.status()
    assert row["client"] == ANN[:16]
    assert (row["queries"], row["answered"], row["bytes_sent"], row["bytes_received"], row["running"]) == (
        1,
        1,
        5,
        7,
        0,
    )


@pytest.mark.parametrize(
    "garbage", [b"\xff\xfe\n", b"9" * 400 + b".0 " + b"a" * 64 + b"\n", b"\x00" * 5000, b"1.5 \x1b[2J\n"]
)
def test_garbage_in_the_file_of_queries_is_passed_over(garbage: bytes, store: Store) -> None:
    clock = Clock()
    Quotas(CAPS, store, clock).admit(ANN, "query")
    path = store.folder / "queries"
    path.write_bytes(garbage + path.read_bytes() + garbage)
    again = Quotas(CAPS, store, clock)
    assert len(again.usage[ANN].queries) == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_of_queries_is_durable_before_the_old_one_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    before = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), before(descriptor))[1])
    Quotas(CAPS, store, Clock())
    assert len(synced) == 2  # the file, and the folder that names it
