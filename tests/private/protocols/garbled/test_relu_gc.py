"""The whole step: two threads, both garbling roles, against integers; bytes against what is declared."""

import copy
import hashlib
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sessions import (
    ROLES,
    SESSION,
    Session,
    Tap,
    client_offline,
    client_online,
    fixed,
    names,
    protocol_of,
    role_of,
    server_offline,
    server_online,
)

from deepreshape.private.arith.ring import CIRCA_PRIME, PRIME_32, Field, Modulus, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.gc.relu_circuits import relu_and_gates, relu_circuit
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.errors import ProtocolError
from deepreshape.private.program.relu_config import Role
from deepreshape.private.protocols.base import Prepared
from deepreshape.private.protocols.garbled.label_transfer import GarbledLayer, Garbler
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.ledger import Phase
from deepreshape.private.transport.memory import memory_pair


def traffic(layer: GarbledLayer) -> dict[Phase, tuple[int, int]]:
    return protocol_of(layer).declared(layer).traffic


def transfers(layer: GarbledLayer) -> int:
    """Oblivious transfers a ReLU."""
    return protocol_of(layer).declared(layer).counts["offline"]["transfers"] // layer.count


@pytest.fixture(scope="module", params=ROLES)
def session(request: pytest.FixtureRequest) -> Session:
    return Session.start(request.param)


def check(session: Session, modulus: Ring | Field, shift: int, x: Words, batch: int, rng: Randomness) -> str:
    """A run of the layer for what it can take of ``x``: larger values are set to its room."""
    layer = GarbledLayer(f"layer {next(names)}", modulus, shift, x.size, role_of(session), batch)
    x = modulus.encode(np.minimum(modulus.decode(x), protocol_of(layer).max_input(layer)))
    share, mask = modulus.random(x.size, rng), modulus.random(x.size, rng)
    prepared = session.offline(layer, share, mask)
    taken = [[part.take() for part in side] for side in prepared]
    kept = tuple(sum(array.nbytes for part in side for array in part.values()) for side in taken)
    assert kept == protocol_of(layer).declared(layer).stored
    prepared = [Prepared(part) for part in taken[0]], [Prepared(part) for part in taken[1]]
    result = modulus.add(session.online(layer, prepared, modulus.sub(x, share)), mask)
    expected = [math.floor(Fraction(max(v, 0), 2**shift) + Fraction(1, 2)) for v in modulus.decode(x).tolist()]
    assert modulus.decode(result).tolist() == expected
    return layer.name


@pytest.mark.parametrize("modulus", [Ring(16), Ring(32), Ring(37), Field(CIRCA_PRIME)], ids=str)
@pytest.mark.parametrize("shift", [0, 6])
def test_shares_of_the_truncated_relu(session: Session, modulus: Modulus, shift: int) -> None:
    order, rng = modulus.order, fixed(3)
    edges = [0, 1, 2**shift // 2, 2**shift, order // 2 - 1, order // 2, (order - 1) // 2, (order + 1) // 2]
    edges += [max(2**shift // 2 - 1, 0), order - 2, order - 1]
    x = np.concatenate([np.array(edges, np.uint64), modulus.random(91, rng)])
    check(session, modulus, shift, x, 48, rng)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_small_layer(session: Session, data: st.DataObject) -> None:
    modulus = data.draw(st.sampled_from([Ring(2), Ring(5), Field(3), Field(7), Field(13), Ring(9)]))
    shift = data.draw(st.integers(0, modulus.bits - 2))
    values = data.draw(st.lists(st.integers(0, modulus.order - 1), min_size=1, max_size=9))
    batch = data.draw(st.integers(1, 10))
    rng = Randomness(data.draw(st.binary(min_size=32, max_size=32)))
    check(session, modulus, shift, np.array(values, np.uint64), batch, rng)


@pytest.mark.parametrize("modulus", [Ring(32), Ring(37), Field(PRIME_32)], ids=str)
@pytest.mark.parametrize("batch", [13, 40, 100])
def test_declared_bytes_and_rounds_are_those_of_the_ledger(session: Session, modulus: Modulus, batch: int) -> None:
    layer = check(session, modulus, 3, modulus.random(40, fixed(4)), batch, fixed(5))
    for phase, (there, back) in traffic(GarbledLayer(layer, modulus, 3, 40, role_of(session), batch)).items():
        client, server = (end.ledger.traffic[layer, phase] for end in (session.client, session.server))
        assert (client.sent, client.received) == (server.received, server.sent) == (there, back)
        # the evaluator opens each phase and then waits, but online a garbling server opens and waits
        opener = session.client if (role_of(session) == "server") == (phase == "offline") else session.server
        assert opener.ledger.traffic[layer, phase].rounds == 1


def test_set_up_bytes() -> None:
    session = Session.start("server")
    row = session.client.ledger.traffic["", "setup"]
    assert (row.sent, row.received) == IKNP.setup_bytes


@pytest.mark.parametrize("role", ROLES)
def test_bytes_stay_within_the_target(role: Role) -> None:
    count = 100_000
    total = sum(sum(way) for way in traffic(GarbledLayer("r", Ring(32), 0, count, role)).values())
    assert total / count < 4_010
    assert relu_and_gates(Ring(32), 0) * 32 <= 100 * 32
    assert (relu_and_gates(Field(PRIME_32), 0), transfers(GarbledLayer("r", Ring(32), 0, 1, role))) == (253, 32)
    assert relu_and_gates(Ring(32), 7) == relu_circuit(Ring(32), 7).and_gates


def test_frames_do_not_depend_on_the_inputs(session: Session) -> None:
    modulus, shapes = Ring(16), []
    for value in (0, 1, 2**15):
        taps = Tap(session.client), Tap(session.server)
        tapped = Session(*taps, session.engines)
        check(tapped, modulus, 2, np.full(10, value, np.uint64), 4, fixed(6))
        shapes.append([[(kind, len(data)) for kind, data in tap.frames] for tap in taps])
    assert shapes[0] == shapes[1] == shapes[2]


TRACES: dict[Role, dict[str, str]] = {
    "server": {"client": "8b601592879c6bb5", "server": "e6b6a9703aecef84"},
    "client": {"client": "1194596c2ca62c46", "server": "8caad402be8a9d3f"},
}


@pytest.mark.parametrize("role", ROLES)
def test_bytes_on_the_wire_are_those_of_the_baseline(role: Role) -> None:
    """All randomness fixed, every byte sent must stay as it was; an intended change shows here as a changed line."""
    client, server = (Tap(end) for end in memory_pair())
    session = Session.start(role, client, server)
    modulus, rng = Field(CIRCA_PRIME), fixed(11)
    share, mask, theirs = (modulus.random(6, rng) for _ in range(3))
    layer = GarbledLayer("stage1.relu", modulus, 4, 6, role, batch=4)
    session.online(layer, session.offline(layer, share, mask), theirs)
    digests = {
        name: hashlib.sha256(b"".join(bytes([kind]) + data for kind, data in tap.frames)).hexdigest()[:16]
        for name, tap in (("client", client), ("server", server))
    }
    assert digests == TRACES[role]


def test_what_is_opened_online_is_masked(session: Session) -> None:
    """The same x, share and mask twice: nothing that crosses the wire or is decoded in between may recur."""
    modulus = Ring(32)
    x, share, mask = (fixed(number).words(200) >> np.uint64(32) for number in (7, 8, 9))
    sent: list[list[bytes]] = []
    for _ in range(2):
        taps = Tap(session.client), Tap(session.server)
        tapped = Session(*taps, session.engines)
        layer = GarbledLayer(f"layer {next(names)}", modulus, 0, 200, role_of(session))
        prepared = tapped.offline(layer, share, mask)
        tapped.online(layer, prepared, modulus.sub(x, share))
        sent.append([data for tap in taps for _, data in tap.frames])
    for first, second in zip(*sent, strict=True):
        agree = np.unpackbits(np.frombuffer(first, np.uint8) ^ np.frombuffer(second, np.uint8)).mean()
        assert 0.3 < agree < 0.7


def test_masks_are_uniform_over_the_whole_modulus(session: Session) -> None:
    """What the evaluator sees of one value, many times: evenly spread, at the client with its own mask left out."""
    modulus, count = Field(5), 4000
    layer, zeros = GarbledLayer(f"layer {next(names)}", modulus, 0, count, role_of(session)), np.zeros(count, np.uint64)
    taps = Tap(session.client), Tap(session.server)
    tapped = Session(*taps, session.engines)
    tapped.online(layer, tapped.offline(layer, zeros, zeros), zeros + np.uint64(2))
    evaluator = taps[0 if role_of(session) == "server" else 1]
    shown = np.frombuffer(next(data for kind, data in evaluator.frames if kind is Frame.SHARES), np.uint8)
    cells = 5 if role_of(session) == "server" else 8  # the value with the server's mask; three corrections a value
    if role_of(session) == "client":
        bits = np.unpackbits(shown, count=3 * count).reshape(3, count)
        shown = bits[0] + 2 * bits[1] + 4 * bits[2]
    counts = np.bincount(shown, minlength=cells)
    assert counts.size == cells
    assert np.abs(counts - count / cells).max() < 5 * np.sqrt(count / cells)


def test_the_evaluator_never_holds_both_labels_of_a_wire(session: Session) -> None:
    """Of all the blocks that reach the evaluator or that it derives, no two may differ by the offset."""
    modulus, seen = Ring(16), set[tuple[int, int]]()
    garbler, evaluator = (0, 1) if role_of(session) == "client" else (1, 0)
    for number in (1, 2):
        taps = Tap(session.client), Tap(session.server)
        tapped = Session(*taps, session.engines)
        layer = GarbledLayer(f"layer {next(names)}", modulus, 0, 30, role_of(session), batch=8)
        share, mask, theirs = (modulus.random(30, fixed(number)) for _ in range(3))
        prepared = tapped.offline(layer, share, mask)
        head, *batches = [part.take() for part in prepared[evaluator]]
        stored_labels = np.concatenate([part["labels"] for part in batches])
        derived = Randomness(head["seed"].tobytes()).labels(2 * modulus.bits * 30)
        prepared[evaluator][:] = [Prepared(part) for part in (head, *batches)]
        tapped.online(layer, prepared, theirs)
        labels = [data for kind, data in taps[garbler].frames if kind is Frame.LABELS][1:]  # the first is the seed
        online = np.frombuffer(b"".join(labels), np.uint64).reshape(-1, 2)
        sent = np.frombuffer(b"".join(d for _, d in taps[garbler].frames if len(d) % 16 == 0), np.uint64).reshape(-1, 2)
        for blocks in (stored_labels, derived, online, stored_labels ^ online, sent):
            seen |= {(low, high) for low, high in blocks.tolist()}
    engine = session.engines[garbler]
    assert isinstance(engine, Garbler)
    low, high = engine.transfers.delta.words.tolist()
    assert (low, high) not in seen
    assert not any((a ^ low, b ^ high) in seen for a, b in seen)


def test_material_is_used_once(session: Session) -> None:
    modulus = Ring(8)
    layer = GarbledLayer(f"layer {next(names)}", modulus, 0, 5, role_of(session))
    zeros = np.zeros(5, np.uint64)
    prepared = session.offline(layer, zeros, zeros)
    session.online(layer, prepared, zeros)
    with pytest.raises(RuntimeError, match="was used"):
        client_online(session.client, layer, SESSION, prepared[0])
    with pytest.raises(RuntimeError, match="was used"):
        server_online(session.server, layer, SESSION, prepared[1], zeros)
    with pytest.raises(ValueError, match="nothing prepared was given"):
        client_online(session.client, layer, SESSION, [])


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_no_copy_gives_a_second_use(again: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        again(Prepared({"seed": np.zeros(32, np.uint8)}))


def test_material_survives_a_store_as_raw_bytes(session: Session) -> None:
    modulus, rng = Ring(13), fixed(10)
    layer = GarbledLayer(f"layer {next(names)}", modulus, 1, 9, role_of(session), batch=4)
    x, share, mask = (modulus.random(9, rng) for _ in range(3))

    def stored_and_loaded(part: Prepared) -> Prepared:
        raw = {name: (array.tobytes(), array.dtype, array.shape) for name, array in part.take().items()}
        return Prepared({name: np.frombuffer(data, kind).reshape(shape) for name, (data, kind, shape) in raw.items()})

    client, server = ([stored_and_loaded(part) for part in side] for side in session.offline(layer, share, mask))
    result = modulus.add(session.online(layer, (client, server), modulus.sub(x, share)), mask)
    assert result.tolist() == [(max(v, 0) + 1) >> 1 for v in modulus.decode(x).tolist()]


def test_missing_material_is_named() -> None:
    session = Session.start("server")
    layer, zeros = GarbledLayer("r", Ring(8), 0, 5, "server", batch=2), np.zeros(5, np.uint64)
    client, server = session.offline(layer, zeros, zeros)
    assert (len(client), len(server)) == (4, 1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server_online, session.server, layer, SESSION, server, zeros)
        with pytest.raises(ValueError, match="layer 'r' has 3 batches, and 2 were given"):
            client_online(session.client, layer, SESSION, client[:-1])
        session.client.send(Frame.SHARES, bytes(5))
        answer.result()


def test_what_concerns_the_layer_is_overwritten_after_use(session: Session) -> None:
    layer, mask = GarbledLayer(f"layer {next(names)}", Ring(8), 0, 5, role_of(session)), np.arange(5, dtype=np.uint64)
    prepared = session.offline(layer, mask, mask)
    heads = [side[0].take() for side in prepared]
    arrays = [array for head in heads for array in head.values()]
    client, server = ([Prepared(head), *side[1:]] for head, side in zip(heads, prepared, strict=True))
    session.online(layer, (client, server), mask)
    assert not any(array.any() for array in arrays)
    assert mask.tolist() == [0, 1, 2, 3, 4]


def test_a_layer_is_prepared_once_in_a_session() -> None:
    session = Session.start("server")
    layer, zeros = GarbledLayer("stage1.relu", Ring(8), 0, 5, "server"), np.zeros(5, np.uint64)
    session.offline(layer, zeros, zeros)
    with pytest.raises(RuntimeError, match=r"'stage1.relu' was prepared before"):
        next(server_offline(session.server, layer, session.engines[1]))
    with pytest.raises(RuntimeError, match=r"'stage1.relu' was prepared before"):
        next(client_offline(session.client, layer, session.engines[0], zeros, zeros))


def test_an_answer_that_is_no_share_is_refused() -> None:
    session = Session.start("server")
    modulus = Field(7)
    layer, zeros = GarbledLayer("r", modulus, 0, 5, "server"), np.zeros(5, np.uint64)
    prepared = session.offline(layer, zeros, zeros)
    session.client.send(Frame.SHARES, bytes([0, 1, 2, 6, 7]))
    with pytest.raises(ProtocolError, match="not an element"):
        server_online(session.server, layer, SESSION, prepared[1], zeros)


def test_tables_that_give_no_shares_are_refused(session: Session) -> None:
    modulus = Field(5)
    layer, zeros = GarbledLayer(f"layer {next(names)}", modulus, 0, 60, role_of(session)), np.zeros(60, np.uint64)
    client, server = session.offline(layer, zeros, zeros)
    evaluator = client if role_of(session) == "server" else server
    broken = evaluator[1].take()
    evaluator[1] = Prepared({**broken, "decode": ~broken["decode"]})  # 60 values below 5, mapped to 7 minus them
    server_share = np.zeros(60, np.uint64)
    with ThreadPoolExecutor(1) as pool:
        if role_of(session) == "server":
            garbled = pool.submit(server_online, session.server, layer, SESSION, server, server_share)
            with pytest.raises(ProtocolError, match="gives a value not in Field"):
                client_online(session.client, layer, SESSION, client)
            session.client.send(Frame.SHARES, bytes(60))
        else:
            garbled = pool.submit(client_online, session.client, layer, SESSION, client)
            with pytest.raises(ProtocolError, match="gives a value not in Field"):
                server_online(session.server, layer, SESSION, server, server_share)
        garbled.result()


def test_bad_arguments_are_refused(session: Session) -> None:
    layer = GarbledLayer("r", Field(7), 0, 3, role_of(session))
    good = np.zeros(3, np.uint64)
    client, engine = session.client, session.engines[0]
    with pytest.raises(ValueError, match=r"share of layer 'r' is uint64 of shape \(4,\)"):
        next(client_offline(client, layer, engine, np.zeros(4, np.uint64), good))
    with pytest.raises(ValueError, match="blind of layer 'r' is int64"):
        next(client_offline(client, layer, engine, good, np.zeros(3, np.int64)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="not in Field"):
        next(client_offline(client, layer, engine, good + np.uint64(7), good))
    with pytest.raises(TypeError, match="needs the run's"):
        next(client_offline(client, layer, session.engines[1], good, good))
    with pytest.raises(ValueError, match="at least 1"):
        GarbledLayer("r", Field(7), 0, 0, "server")


def test_secrets_are_not_shown(session: Session) -> None:
    layer = GarbledLayer(f"layer {next(names)}", Ring(8), 0, 5, role_of(session))
    zeros = np.zeros(5, np.uint64)
    prepared = session.offline(layer, zeros, zeros)
    shown = repr(prepared) + repr(session.engines)
    assert "array" not in shown
    assert "seed" not in shown
