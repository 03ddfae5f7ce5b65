"""Truncation by one transfer: every share of every value over a small modulus, and the rules of its use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deepreshape.private.arith.ring import Field, Randomness, Ring, Words
from deepreshape.private.crypto.labels import Context, blinds
from deepreshape.private.program.ops import truncation_room
from deepreshape.private.protocols import truncate
from deepreshape.private.protocols.truncate import Receiver, Sender, TruncationLayer
from deepreshape.private.transport.channel import ProtocolError
from deepreshape.private.transport.ledger import Ledger
from deepreshape.private.transport.memory import memory_pair

MODULI = [Ring(8), Field(251), Field(257)]


def run(layer: TruncationLayer, mine: Words, theirs: Words, mask: Words) -> tuple[Words, Ledger, tuple[int, int]]:
    """The server's share of the output, the client's ledger, and the stored bytes."""
    ends = memory_pair()

    def act_as_client() -> int:
        receiver = Receiver.start(ends[0], b"session", Randomness())
        with ends[0].ledger.at("t", "offline"):
            prepared = truncate.client_offline(ends[0], layer, receiver, mine, mask)
        kept = prepared.nbytes
        with ends[0].ledger.at("t", "online"):
            truncate.client_send(ends[0], layer, truncate.client_receive(ends[0], layer, prepared))
        return kept

    with ThreadPoolExecutor(1) as threads:
        client = threads.submit(act_as_client)
        prepared = truncate.server_offline(ends[1], layer, Sender.start(ends[1], b"session", Randomness()))
        kept = prepared.nbytes
        own = truncate.server_send(ends[1], layer, prepared, theirs)
        out = truncate.server_receive(ends[1], layer, own)
        return out, ends[0].ledger, (client.result(), kept)


@pytest.mark.parametrize("modulus", MODULI)
@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_every_share_of_every_value(modulus: Ring | Field, shift: int) -> None:
    room = truncation_room(modulus, shift)
    values = np.arange(-room, room + 1, dtype=np.int64)
    shares = np.arange(modulus.order, dtype=np.uint64)
    x, mine = (grid.reshape(-1) for grid in np.meshgrid(values, shares))
    mask = modulus.random(x.size, Randomness())
    layer = TruncationLayer("t", modulus, shift, x.size)
    theirs, ledger, stored = run(layer, mine, modulus.sub(modulus.encode(x), mine), mask)
    result = modulus.decode(modulus.add(mask, theirs))
    assert np.array_equal(result, layer.division.rounded(x, mine))
    off = result - (x >> shift)
    if isinstance(modulus, Ring):
        assert set(off.tolist()) == {0, 1}
        # over all shares of one value the mean is the value itself
        assert np.array_equal(result.reshape(modulus.order, -1).sum(0) << shift, values * modulus.order)
    else:
        assert set(off.tolist()) <= {-1, 0, 1}
    declared = truncate.declared(layer)
    counted = {phase: (row.sent, row.received) for (name, phase), row in ledger.traffic.items() if name == "t"}
    assert counted == declared
    assert stored == truncate.stored(layer)


def test_messages_look_uniform_to_the_peer_and_pads_are_fresh() -> None:
    layer = TruncationLayer("t", Ring(12), 4, 4096)
    labels = Randomness().labels(4096)
    message, here = layer.division.message, Context(b"a", "t", 0)
    found = blinds(labels, here, truncate.TWEAK, message)
    assert np.bincount(found.astype(np.int64), minlength=16).min() > 150  # 256 expected, deviation 16
    for elsewhere in (Context(b"b", "t", 0), Context(b"a", "u", 0)):
        assert np.mean(blinds(labels, elsewhere, truncate.TWEAK, message) == found) < 0.2


def test_a_layer_is_prepared_once_and_its_material_used_once() -> None:
    layer = TruncationLayer("t", Ring(12), 4, 1)
    zero = np.zeros(1, np.uint64)
    ends = memory_pair()
    with ThreadPoolExecutor(1) as threads:
        sender = threads.submit(Sender.start, ends[1], b"s", Randomness())
        receiver = Receiver.start(ends[0], b"s", Randomness())
        truncate.client_offline(ends[0], layer, receiver, zero, zero)
        prepared = truncate.server_offline(ends[1], layer, sender.result())
    truncate.server_send(ends[1], layer, prepared, zero)
    with pytest.raises(RuntimeError, match="was used"):
        truncate.server_send(ends[1], layer, prepared, zero)
    with pytest.raises(RuntimeError, match="'t' was prepared before"):
        truncate.client_offline(ends[0], layer, receiver, zero, zero)


def test_an_answer_outside_the_field_is_refused() -> None:
    layer = TruncationLayer("t", Field(251), 2, 1)
    ends = memory_pair()
    truncate.client_send(ends[0], layer, np.array([251], np.uint64))
    with pytest.raises(ProtocolError, match="not an element"):
        truncate.server_receive(ends[1], layer, np.zeros(1, np.uint64))


@pytest.mark.parametrize(("shift", "count"), [(0, 1), (10, 1), (1, 0)])
def test_layers_that_make_no_sense(shift: int, count: int) -> None:
    with pytest.raises(ValueError, match="needs a shift of 1 to 9"):
        TruncationLayer("t", Ring(12), shift, count)
