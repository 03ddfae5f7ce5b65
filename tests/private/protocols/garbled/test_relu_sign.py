"""ReLUs of which only the sign is garbled: two threads, both roles, against the closed form and against integers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sessions import (
    ROLES,
    SESSION,
    Session,
    Tap,
    both,
    client_offline,
    client_online,
    fixed,
    names,
    prepared_by,
    protocol_of,
    role_of,
    server_offline,
    server_online,
)

from deepreshape.private.arith.drelu import Parity, Sign, Window, Wrap
from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.arith.truncation import ShareTruncation
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.errors import ProtocolError
from deepreshape.private.program.relu_config import Role
from deepreshape.private.protocols.base import Prepared
from deepreshape.private.protocols.garbled.label_transfer import GarbledLayer, Garbler
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.ledger import Phase

SMALL: list[Sign] = [
    Window(Ring(6), 0, 6),
    Window(Ring(6), 0, 4),
    Window(Ring(6), 2, 6, "pos-zero"),
    Window(Ring(6), 2, 5, "neg-pass"),
    Parity(Field(61)),
    Parity(Field(37)),
    Wrap(Field(61), 0),
    Wrap(Field(53), 2, "neg-pass"),
]
REAL: list[Sign] = [
    Window(Ring(37), 0, 37),
    Window(Ring(37), 12, 37, "neg-pass"),
    Window(Ring(37), 11, 26),
    Window(Ring(63), 0, 63),
    Parity(Field(DELPHI_PRIME)),
    Parity(Field(CIRCA_PRIME)),
    Wrap(Field(DELPHI_PRIME), 12),
]


def traffic(layer: GarbledLayer) -> dict[Phase, tuple[int, int]]:
    return protocol_of(layer).declared(layer).traffic


def transfers(layer: GarbledLayer) -> int:
    """Oblivious transfers a ReLU."""
    return protocol_of(layer).declared(layer).counts["offline"]["transfers"] // layer.count


@pytest.fixture(scope="module", params=ROLES)
def session(request: pytest.FixtureRequest) -> Session:
    return Session.start(request.param, mux=True)


def layer_of(session: Session, sign: Sign, shift: int, count: int, batch: int = 8192) -> GarbledLayer:
    return GarbledLayer(f"layer {next(names)}", sign.modulus, shift, count, role_of(session), batch, sign)


def run(session: Session, layer: GarbledLayer, x: np.ndarray, share: Words) -> np.ndarray:
    """The output of the two parties; kept bytes are checked on the way."""
    modulus = layer.modulus
    mask = modulus.random(x.size, Randomness())
    prepared = session.offline(layer, share, mask)
    assert tuple(sum(part.nbytes for part in side) for side in prepared) == protocol_of(layer).declared(layer).stored
    theirs = modulus.sub(modulus.encode(x), share)
    return modulus.decode(modulus.add(session.online(layer, prepared, theirs), mask))


def expected(sign: Sign, shift: int, x: np.ndarray, share: Words) -> np.ndarray:
    server = sign.modulus.sub(sign.modulus.encode(x), share)
    positive = sign.positive(sign.client_word(share), sign.server_word(server))
    return np.where(positive, ShareTruncation(sign.modulus, shift, sign.reach).rounded(x, share), 0)


@pytest.mark.parametrize("sign", SMALL, ids=str)
@pytest.mark.parametrize("shift", [0, 2, 3])
def test_every_share_of_every_value(session: Session, sign: Sign, shift: int) -> None:
    modulus = sign.modulus
    room = min(sign.max_input, ShareTruncation(modulus, shift, sign.reach).max_input)
    values, shares = np.arange(-room, room + 1), np.arange(modulus.order, dtype=np.uint64)
    x, share = (grid.reshape(-1) for grid in np.meshgrid(values, shares))
    result = run(session, layer_of(session, sign, shift, x.size, 1000), x, share)
    assert np.array_equal(result, expected(sign, shift, x, share))
    if isinstance(sign, Wrap) or sign.reach or getattr(sign, "low", 0):
        return
    off = result - (np.maximum(x, 0) >> shift)
    assert set(off.tolist()) <= ({0} if shift == 0 else {0, 1} if isinstance(modulus, Ring) else {-1, 0, 1})
    assert not result[x <= 0].any()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_layer_of_real_size(session: Session, data: st.DataObject) -> None:
    sign = data.draw(st.sampled_from(REAL))
    shift = data.draw(st.integers(0, 20))
    room = min(sign.max_input, ShareTruncation(sign.modulus, shift, sign.reach).max_input)
    values = data.draw(st.lists(st.integers(-room, room), min_size=1, max_size=9))
    x = np.array([*values, room, -room, 0, 1, -1])
    share = sign.modulus.random(x.size, Randomness(data.draw(st.binary(min_size=32, max_size=32))))
    share[:2] = (0, sign.modulus.order - 1)[: x.size]
    result = run(session, layer_of(session, sign, shift, x.size, data.draw(st.integers(1, 10))), x, share)
    assert np.array_equal(result, expected(sign, shift, x, share))
    if sign.reach == 0 and not getattr(sign, "low", 0):
        off = result - (np.maximum(x, 0) >> shift)
        assert set(off.tolist()) <= ({0} if shift == 0 else {-1, 0, 1} if isinstance(sign, Parity) else {0, 1})


@pytest.mark.parametrize("sign", [REAL[0], REAL[1], REAL[4], REAL[6]], ids=str)
@pytest.mark.parametrize("shift", [0, 11])
@pytest.mark.parametrize("batch", [13, 40])
def test_declared_bytes_and_rounds_are_those_of_the_ledger(
    session: Session, sign: Sign, shift: int, batch: int
) -> None:
    layer = layer_of(session, sign, shift, 40, batch)
    run(session, layer, np.arange(-20, 20), sign.modulus.random(40, fixed(5)))
    for phase, (there, back) in traffic(layer).items():
        client, server = (end.ledger.traffic[layer.name, phase] for end in (session.client, session.server))
        assert (client.sent, client.received) == (server.received, server.sent) == (there, back)
        # the evaluator opens offline, the server online; and then each waits once
        opener = session.client if layer.garbler == "server" and phase == "offline" else session.server
        assert opener.ledger.traffic[layer.name, phase].rounds == 1
    senders = [message.sender for segment in protocol_of(layer).declared(layer).offline for message in segment]
    assert senders == (["client", "server", "client"] if layer.garbler == "server" else ["server", "client"])


@pytest.mark.parametrize("role", ROLES)
def test_set_up_bytes(role: Role) -> None:
    session = Session.start(role, mux=True)
    client, server = (end.ledger.traffic["", "setup"] for end in (session.client, session.server))
    layer = layer_of(session, SMALL[0], 0, 1)
    sent = protocol_of(layer).setup_declared([layer])
    there, back = (sum(one.nbytes for one in sent if (one.sender == role) is first) for first in (True, False))
    garbler, evaluator = (client, server) if role == "client" else (server, client)
    assert (garbler.sent, evaluator.sent) == (there, back) == (sum(IKNP.setup_bytes),) * 2


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("sign", "total", "online"),
    [
        (Window(Ring(37), 0, 37), 2_600, 700),
        (Window(Ring(37), 12, 37), 1_800, 450),
        (Window(Ring(37), 12, 26), 1_000, 300),
        (Parity(Field(DELPHI_PRIME)), 2_800, 760),
    ],
    ids=str,
)
def test_bytes_stay_within_the_target(role: Role, sign: Sign, total: int, online: int) -> None:
    count = 100_000
    sent = traffic(GarbledLayer("r", sign.modulus, 12, count, role, sign=sign))
    assert sum(map(sum, sent.values())) / count <= total
    assert sum(sent["online"]) / count <= online
    assert transfers(GarbledLayer("r", sign.modulus, 12, count, role, sign=sign)) == sign.width + 2


def test_frames_do_not_depend_on_the_inputs(session: Session) -> None:
    shapes = []
    for value in (0, 1, -(2**14)):
        taps = Tap(session.client), Tap(session.server)
        tapped = Session(*taps, session.engines)
        layer = layer_of(session, Window(Ring(16), 2, 16), 2, 10, 4)
        run(tapped, layer, np.full(10, value), np.full(10, value % 7, np.uint64))
        shapes.append([[(kind, len(data)) for kind, data in tap.frames] for tap in taps])
    assert shapes[0] == shapes[1] == shapes[2]


def test_what_is_sent_never_recurs_and_is_balanced(session: Session) -> None:
    """The same x and share twice: whatever crosses the wire but for lengths is drawn anew."""
    x, share = np.arange(-100, 100), fixed(7).words(200) >> np.uint64(32)
    sent: list[list[bytes]] = []
    for _ in range(2):
        taps = Tap(session.client), Tap(session.server)
        run(Session(*taps, session.engines), layer_of(session, Window(Ring(32), 0, 32), 8, 200), x, share)
        sent.append([data for tap in taps for _, data in tap.frames])
    for first, second in zip(*sent, strict=True):
        agree = np.unpackbits(np.frombuffer(first, np.uint8) ^ np.frombuffer(second, np.uint8)).mean()
        assert 0.3 < agree < 0.7


@pytest.mark.parametrize("shift", [0, 2])
def test_each_message_is_uniform_to_its_reader(session: Session, shift: int) -> None:
    """One value and one share many times: rows, rests and shares are spread evenly over their modulus."""
    sign, count = Window(Ring(6), 0, 6), 6400
    layer = layer_of(session, sign, shift, count)
    taps = Tap(session.client), Tap(session.server)
    run(Session(*taps, session.engines), layer, np.full(count, 9), np.full(count, 50, np.uint64))
    seen = 0
    for tap in taps:
        for kind, data in tap.frames:
            if kind not in (Frame.ROWS, Frame.SHARES) or len(data) != count:
                continue
            values = np.frombuffer(data, np.uint8)
            cells = 64 if int(values.max()) > 3 else 4
            counts = np.bincount(values, minlength=cells)
            assert counts.size == cells
            assert np.abs(counts - count / cells).max() < 6 * np.sqrt(count / cells)
            seen += 1
    assert seen == (3 if shift == 0 else 5)


def test_the_bit_that_the_evaluator_learns_is_uniform(session: Session) -> None:
    sign, count = Window(Ring(6), 0, 6), 4000
    layer = layer_of(session, sign, 0, count)
    zeros = np.zeros(count, np.uint64)
    prepared = session.offline(layer, zeros, zeros)
    head = prepared[0 if layer.garbler == "client" else 1][0].take()
    ones = int(np.unpackbits(head["masks"], count=count).sum())
    assert abs(ones - count / 2) < 6 * np.sqrt(count / 4)


def test_the_evaluator_never_holds_both_labels_of_a_wire(session: Session) -> None:
    """Of all blocks that reach the evaluator or that it derives, no two differ by the offset."""
    sign, count, seen = Window(Ring(12), 0, 12), 30, set[tuple[int, int]]()
    garbler, evaluator = (0, 1) if role_of(session) == "client" else (1, 0)
    for number in (1, 2):
        taps = Tap(session.client), Tap(session.server)
        layer = layer_of(session, sign, 3, count, 8)
        tapped = Session(*taps, session.engines)
        share, mask, theirs = (sign.modulus.random(count, fixed(number)) for _ in range(3))
        prepared = tapped.offline(layer, share, mask)
        head, *batches = [part.take() for part in prepared[evaluator]]
        stored_labels = np.concatenate([part["labels"] for part in batches])
        derived = Randomness(head["seed"].tobytes()).labels(2 * sign.width * count)
        prepared[evaluator][:] = [Prepared(part) for part in (head, *batches)]
        tapped.online(layer, prepared, theirs)
        blocks = [data for kind, data in taps[garbler].frames if kind in (Frame.LABELS, Frame.TABLES)]
        sent = np.frombuffer(b"".join(d for d in blocks if len(d) % 16 == 0), np.uint64).reshape(-1, 2)
        labels = [data for kind, data in taps[garbler].frames if kind is Frame.LABELS][1:]
        online = np.frombuffer(b"".join(labels), np.uint64).reshape(-1, 2)
        arrays = [stored_labels, derived, sent]
        if role_of(session) == "client":
            arrays.append(stored_labels ^ online)
        seen |= {(low, high) for array in arrays for low, high in array.tolist()}
    engine = session.engines[garbler]
    assert isinstance(engine, Garbler)
    low, high = engine.transfers.delta.words.tolist()
    assert (low, high) not in seen
    assert not any((a ^ low, b ^ high) in seen for a, b in seen)


def test_material_is_used_once_and_overwritten(session: Session) -> None:
    layer, zeros = layer_of(session, SMALL[0], 1, 5, 2), np.zeros(5, np.uint64)
    prepared = session.offline(layer, zeros, zeros)
    heads = [side[0].take() for side in prepared]
    arrays = [array for head in heads for array in head.values()]
    client, server = ([Prepared(head), *side[1:]] for head, side in zip(heads, prepared, strict=True))
    session.online(layer, (client, server), zeros)
    assert not any(array.any() for array in arrays if array.flags.writeable)
    with pytest.raises(RuntimeError, match="was used"):
        client_online(session.client, layer, SESSION, client)
    with pytest.raises(RuntimeError, match="was used"):
        server_online(session.server, layer, SESSION, server, zeros)
    with pytest.raises(RuntimeError, match="was prepared before"):
        next(client_offline(session.client, layer, session.engines[0], zeros, zeros))


def test_material_survives_a_store_as_raw_bytes(session: Session) -> None:
    layer = layer_of(session, Window(Ring(13), 0, 13), 2, 9, 4)
    x, rng = np.arange(-4, 5) * 100, fixed(10)
    share, mask = (layer.modulus.random(9, rng) for _ in range(2))

    def stored_and_loaded(part: Prepared) -> Prepared:
        raw = {name: (array.tobytes(), array.dtype, array.shape) for name, array in part.take().items()}
        return Prepared({name: np.frombuffer(data, kind).reshape(shape) for name, (data, kind, shape) in raw.items()})

    client, server = ([stored_and_loaded(part) for part in side] for side in session.offline(layer, share, mask))
    theirs = layer.modulus.sub(layer.modulus.encode(x), share)
    result = layer.modulus.decode(layer.modulus.add(session.online(layer, (client, server), theirs), mask))
    assert np.array_equal(result, np.maximum(x, 0) >> 2)  # multiples of the unit: exact


def test_a_session_without_transfers_for_products_is_refused() -> None:
    session, zeros = Session.start("server"), np.zeros(1, np.uint64)
    layer = layer_of(session, SMALL[0], 0, 1)
    with pytest.raises(TypeError, match="mux=True"):
        next(client_offline(session.client, layer, session.engines[0], zeros, zeros))
    with pytest.raises(TypeError, match="mux=True"):
        next(server_offline(session.server, layer, session.engines[1]))


def test_rows_that_are_no_elements_are_refused() -> None:
    session = Session.start("server", mux=True)
    layer, zeros = layer_of(session, Parity(Field(61)), 0, 5), np.zeros(5, np.uint64)
    client, server = session.offline(layer, zeros, zeros)
    real = Tap(session.server)

    def spoilt(kind: Frame, payload: object) -> None:
        session.server.send(kind, bytes([61] * 5) if kind is Frame.ROWS else payload)  # pyright: ignore[reportArgumentType]

    real.send = spoilt  # pyright: ignore[reportAttributeAccessIssue]
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(server_online, real, layer, SESSION, server, zeros)
        with pytest.raises(ProtocolError, match="not an element"):
            client_online(session.client, layer, SESSION, client)
        session.client.send(Frame.SHARES, bytes(5))
        served.result()


def test_several_layers_go_side_by_side(session: Session) -> None:
    """Their steps wait together, whatever their protocols, and each layer gets what is its own."""
    signs: list[Sign | None] = [SMALL[0], None, SMALL[3]]
    count, modulus, role = 5, SMALL[0].modulus, role_of(session)
    layers = [GarbledLayer(f"layer {next(names)}", modulus, 1, count, role, 2, sign) for sign in signs]
    share, mask, x = fixed(3).words(count) % np.uint64(64), fixed(4).words(count) % np.uint64(64), np.arange(-4, 6, 2)

    def client() -> dict[str, list[Prepared]]:
        steps = [(one.name, client_offline(session.client, one, session.engines[0], share, mask)) for one in layers]
        return gathered(prepared_by(session.client, steps))

    def server() -> dict[str, list[Prepared]]:
        steps = [(one.name, server_offline(session.server, one, session.engines[1])) for one in layers]
        return gathered(prepared_by(session.server, steps))

    def gathered(kept: list[list[Prepared]]) -> dict[str, list[Prepared]]:
        return {layer.name: one for layer, one in zip(layers, kept, strict=True)}

    theirs = modulus.sub(modulus.encode(x), share)
    client_material, server_material = both(client, server)
    assert set(client_material) == set(server_material) == {layer.name for layer in layers}
    for layer in layers:
        out = session.online(layer, (client_material[layer.name], server_material[layer.name]), theirs)
        result = modulus.decode(modulus.add(out, mask))
        wanted = np.maximum(x, 0) >> 1 if layer.sign is None else expected(layer.sign, 1, x, share)
        assert np.array_equal(result, wanted)
