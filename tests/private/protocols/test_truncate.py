"""Truncation by one transfer: every share of every value over a small modulus, and the rules of its use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.labels import Context, derive_blinds
from deepreshape.private.errors import ProtocolError
from deepreshape.private.program.program import truncation_room
from deepreshape.private.program.relu_config import Role
from deepreshape.private.protocols import truncate
from deepreshape.private.protocols.base import Prepared, Run, side_by_side
from deepreshape.private.protocols.truncate import Truncation, TruncationLayer
from deepreshape.private.transport.channel import Channel, Frame
from deepreshape.private.transport.ledger import Ledger
from deepreshape.private.transport.memory import memory_pair

PROTOCOL = Truncation()
MODULI = [Ring(8), Field(251), Field(257)]


def run(
    layer: TruncationLayer, client_share: Words, server_share: Words, mask: Words
) -> tuple[Words, Ledger, tuple[int, int]]:
    """The server's share of the output, the client's ledger, and the stored bytes."""
    ends = memory_pair()
    shares: dict[Role, tuple[Words | None, Words | None]] = {"client": (client_share, mask), "server": (None, None)}

    def act(end: Channel, role: Role, share: Words | None) -> tuple[Words | None, int]:
        run, kept = Run(end, b"session", role, Randomness()), list[Prepared]()
        setup = PROTOCOL.setup(run, [layer])
        step = PROTOCOL.offline(run, setup, layer, *shares[role])
        side_by_side(run, "offline", [("t", step)], lambda _, prepared: kept.append(prepared))
        nbytes = sum(one.nbytes for one in kept)
        return side_by_side(run, "online", [("t", PROTOCOL.online(run, layer, iter(kept), share))])[0], nbytes

    with ThreadPoolExecutor(1) as threads:
        client = threads.submit(act, ends[0], "client", None)
        out, kept = act(ends[1], "server", server_share)
        assert out is not None
        return out, ends[0].ledger, (client.result()[1], kept)


@pytest.mark.parametrize("modulus", MODULI)
@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_every_share_of_every_value(modulus: Ring | Field, shift: int) -> None:
    room = truncation_room(modulus, shift)
    values = np.arange(-room, room + 1, dtype=np.int64)
    shares = np.arange(modulus.order, dtype=np.uint64)
    x, client_share = (grid.reshape(-1) for grid in np.meshgrid(values, shares))
    mask = modulus.random(x.size, Randomness())
    layer = TruncationLayer("t", modulus, shift, x.size)
    server_share, ledger, stored = run(layer, client_share, modulus.sub(modulus.encode(x), client_share), mask)
    result = modulus.decode(modulus.add(mask, server_share))
    assert np.array_equal(result, PROTOCOL.replay(layer, x, client_share))
    off = result - (x >> shift)
    if isinstance(modulus, Ring):
        assert set(off.tolist()) == {0, 1}
        # over all shares of one value the mean is the value itself
        assert np.array_equal(result.reshape(modulus.order, -1).sum(0) << shift, values * modulus.order)
    else:
        assert set(off.tolist()) <= {-1, 0, 1}
    declared = PROTOCOL.declared(layer)
    counted = {phase: (row.sent, row.received) for (name, phase), row in ledger.traffic.items() if name == "t"}
    assert counted == declared.traffic
    assert stored == declared.stored


def test_messages_look_uniform_to_the_peer_and_pads_are_fresh() -> None:
    layer = TruncationLayer("t", Ring(12), 4, 4096)
    labels = Randomness().labels(4096)
    message, here = layer.truncation.message, Context(b"a", "t", 0)
    blinds = derive_blinds(labels, here, truncate.TWEAK, message)
    assert np.bincount(blinds.astype(np.int64), minlength=16).min() > 150  # 256 expected, deviation 16
    for elsewhere in (Context(b"b", "t", 0), Context(b"a", "u", 0)):
        assert np.mean(derive_blinds(labels, elsewhere, truncate.TWEAK, message) == blinds) < 0.2


def test_a_layer_is_prepared_once_and_its_material_used_once() -> None:
    layer, zero = TruncationLayer("t", Ring(12), 4, 1), np.zeros(1, np.uint64)
    ends = memory_pair()
    client_run, server_run = Run(ends[0], b"s", "client", Randomness()), Run(ends[1], b"s", "server", Randomness())
    with ThreadPoolExecutor(1) as threads:
        sender = threads.submit(PROTOCOL.setup, server_run, [layer])
        receiver = PROTOCOL.setup(client_run, [layer])
        next(PROTOCOL.offline(client_run, receiver, layer, zero, zero))
        prepared = next(PROTOCOL.offline(server_run, sender.result(), layer, None, None))
    assert prepared is not None
    next(PROTOCOL.online(server_run, layer, iter([prepared]), zero))
    with pytest.raises(RuntimeError, match="was used"):
        next(PROTOCOL.online(server_run, layer, iter([prepared]), zero))
    with pytest.raises(RuntimeError, match="'t' was prepared before"):
        next(PROTOCOL.offline(client_run, receiver, layer, zero, zero))


def test_an_answer_outside_the_field_is_refused() -> None:
    layer, zero = TruncationLayer("t", Field(251), 2, 1), np.zeros(1, np.uint64)
    ends = memory_pair()
    ends[0].send(Frame.SHARES, bytes([251]))
    run = Run(ends[1], b"s", "server", Randomness())
    step = PROTOCOL.online(run, layer, iter([Prepared({"zero": zero, "difference": zero})]), zero)
    with pytest.raises(ProtocolError, match="not an element"):
        list(step)


@pytest.mark.parametrize(("shift", "count"), [(0, 1), (10, 1), (1, 0)])
def test_layers_that_make_no_sense(shift: int, count: int) -> None:
    with pytest.raises(ValueError, match="needs a shift of 1 to 9"):
        TruncationLayer("t", Ring(12), shift, count)
