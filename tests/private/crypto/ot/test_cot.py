"""Every protocol for correlated transfers against the ideal transfer, and what IKNP sends."""

import numpy as np
import pytest
from support.two_parties import fixed, in_parallel

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.crypto.labels import Delta, permute_bits
from deepreshape.private.crypto.ot.cot import Cot
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.crypto.ot.lpn import Size
from deepreshape.private.crypto.ot.silent import Silent
from deepreshape.private.crypto.ot.softspoken import SOFTSPOKEN
from deepreshape.private.errors import ProtocolError
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.memory import memory_pair

SMALL_SILENT = Silent(small=Size(6, 5, 9), large=Size(8, 6, 10))
"""Rounds of every kind for few transfers; no security."""

PROTOCOLS = {"iknp": IKNP, "softspoken": SOFTSPOKEN, "silent": SMALL_SILENT}


class Ends:
    """Both ends of a protocol after the set-up, each on its channel; every call is made at both."""

    def __init__(self, protocol: Cot, *sessions: bytes) -> None:
        self.here, self.there = memory_pair()
        one, two = sessions or (b"session", b"session")
        self.sender, self.receiver = in_parallel(
            lambda: protocol.sender(self.here, one, Delta(fixed(1)), fixed(2)),
            lambda: protocol.receiver(self.there, two, fixed(3)),
        )

    def reserve(self, count: int) -> None:
        in_parallel(
            lambda: self.sender.reserve(self.here, count),
            lambda: self.receiver.reserve(self.there, count),
        )

    def chosen(self, choices: Bits) -> tuple[Words, Words]:
        return in_parallel(
            lambda: self.sender.chosen(self.here, len(choices)),
            lambda: self.receiver.chosen(self.there, choices),
        )

    def random(self, count: int) -> tuple[Words, Words]:
        return in_parallel(
            lambda: self.sender.random(self.here, count),
            lambda: self.receiver.random(self.there, count),
        )

    def traffic(self) -> tuple[int, int]:
        """Bytes so far, (receiver to sender, sender to receiver)."""
        row = self.here.ledger.current()
        return row.received, row.sent


def ideal(zero: Words, delta: Words, choices: Bits) -> Words:
    """What a trusted third party would hand to the receiver."""
    return np.where(choices[:, None] == 1, zero ^ delta, zero)


@pytest.fixture(params=PROTOCOLS.values(), ids=list(PROTOCOLS))
def protocol(request: pytest.FixtureRequest) -> Cot:
    return request.param


def test_transfers_are_the_ideal_ones(protocol: Cot) -> None:
    ends, labels = Ends(protocol), list[Words]()
    delta = ends.sender.delta.words
    for count in (1, 7, 8, 1001, 1001, 40_000):
        ends.reserve(2 * count)
        choices = fixed(count % 250).bytes(count) & np.uint8(1)
        zero, label = ends.chosen(choices)
        np.testing.assert_array_equal(label, ideal(zero, delta, choices))
        labels.append(zero)
        zero, label = ends.random(count)
        np.testing.assert_array_equal(label, ideal(zero, delta, permute_bits(label)))
        assert not permute_bits(zero).any()
        labels.append(zero)
    assert 0.47 < permute_bits(label).mean() < 0.53  # 12 standard deviations
    seen = np.concatenate(labels)
    assert len(np.unique(seen, axis=0)) == len(seen)


def test_bytes_are_as_declared(protocol: Cot) -> None:
    ends, counts = Ends(protocol), (8, 1001)
    declared = [protocol.setup_bytes]
    sums = [ends.traffic()]
    for count in counts:
        declared += [protocol.reserve_bytes(2 * count), (protocol.chosen_bytes(count), 0)]
        declared += [(protocol.random_bytes(count), 0)]
        ends.reserve(2 * count)
        sums.append(ends.traffic())
        ends.chosen(np.ones(count, np.uint8))
        sums.append(ends.traffic())
        ends.random(count)
        sums.append(ends.traffic())
    assert [list(total) for total in sums] == np.cumsum(declared, axis=0).tolist()


def test_sessions_are_unrelated(protocol: Cot) -> None:
    ends = Ends(protocol, b"one", b"two")
    ends.reserve(64)
    zero, label = ends.chosen(np.zeros(64, np.uint8))
    assert not (zero == label).all(axis=1).any()


def test_what_iknp_sends_does_not_repeat_under_equal_choices() -> None:
    ends, sent = Ends(IKNP), list[bytes]()
    for _ in range(2):
        ends.receiver.chosen(ends.there, np.ones(64, np.uint8))
        payload = ends.here.receive(Frame.EXTENSION, IKNP.chosen_bytes(64))
        sent.append(bytes(payload))
        ends.there.send(Frame.EXTENSION, payload)
        ends.sender.chosen(ends.here, 64)
    first, second = (np.frombuffer(columns, np.uint8).reshape(128, -1) for columns in sent)
    assert not (first == second).all(axis=1).any()


def test_iknp_refuses_a_short_extension() -> None:
    ends = Ends(IKNP)
    ends.there.send(Frame.EXTENSION, bytes(IKNP.chosen_bytes(64) - 1))
    with pytest.raises(ProtocolError, match="expected EXTENSION of 1024 bytes"):
        ends.sender.chosen(ends.here, 64)
