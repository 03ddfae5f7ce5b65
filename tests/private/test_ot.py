"""Oblivious transfer, base and extended, against the ideal one."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest
from nacl.bindings import crypto_core_ed25519_add, crypto_scalarmult_ed25519_base_noclamp

from deepreshape.private.arith.ring import Bits, Randomness, Words
from deepreshape.private.crypto.backend import engine
from deepreshape.private.crypto.gc.halfgates import Offset
from deepreshape.private.crypto.ot import iknp as ot
from deepreshape.private.transport.channel import Frame, MemoryChannel, ProtocolError, memory_pair

A = TypeVar("A")
B = TypeVar("B")

ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
BAD_POINTS = {
    "the identity": bytes([1]) + bytes(31),
    "order two": (2**255 - 20).to_bytes(32, "little"),
    "order eight": ORDER_8,
    "a good point plus one of order eight": crypto_core_ed25519_add(
        crypto_scalarmult_ed25519_base_noclamp(bytes([7]) + bytes(31)), ORDER_8
    ),
    "a good point plus one of order two": crypto_core_ed25519_add(
        crypto_scalarmult_ed25519_base_noclamp(bytes([7]) + bytes(31)), (2**255 - 20).to_bytes(32, "little")
    ),
    "not canonical": (2**255 - 19 + 1).to_bytes(32, "little"),
    "not on the curve": bytes([2]) + bytes(31),
    "zeros": bytes(32),
    "ones": b"\xff" * 32,
}


def fixed(number: int) -> Randomness:
    return Randomness(bytes([number]) * 32)


def both(left: Callable[[], A], right: Callable[[], B]) -> tuple[A, B]:
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(left), pool.submit(right)
        return one.result(), two.result()


def ideal(zero: Words, offset: Words, choices: Bits) -> Words:
    """What a trusted third party would hand to the receiver."""
    return np.where(choices[:, None] == 1, zero ^ offset, zero)


@pytest.fixture(scope="module")
def ends() -> tuple[ot.CorrelatedSender, MemoryChannel, ot.CorrelatedReceiver, MemoryChannel]:
    here, there = memory_pair()
    sender, receiver = both(
        lambda: ot.CorrelatedSender.start(here, b"session", Offset(fixed(1)), fixed(2)),
        lambda: ot.CorrelatedReceiver.start(there, b"session", fixed(3)),
    )
    return sender, here, receiver, there


def test_base_transfers_are_the_ideal_ones() -> None:
    here, there = memory_pair()
    choices = fixed(1).bytes(128) & np.uint8(1)
    pairs, keys = both(
        lambda: ot.send_base(here, b"session", fixed(2)), lambda: ot.receive_base(there, b"session", choices, fixed(3))
    )
    assert keys == [pair[choice] for pair, choice in zip(pairs, choices.tolist(), strict=True)]
    assert len({key for pair in pairs for key in pair}) == 256
    row = here.ledger.row()
    assert (row.sent, row.received) == ot.SETUP_BYTES


def test_base_keys_are_bound_to_the_session() -> None:
    here, there = memory_pair()
    choices = np.zeros(128, np.uint8)
    pairs, keys = both(
        lambda: ot.send_base(here, b"one", fixed(2)), lambda: ot.receive_base(there, b"two", choices, fixed(3))
    )
    assert not {key for pair in pairs for key in pair} & set(keys)


@pytest.mark.parametrize("name", BAD_POINTS)
def test_points_outside_the_group_are_refused(name: str) -> None:
    here, there = memory_pair()
    there.send(Frame.BASE_OT, BAD_POINTS[name])
    with pytest.raises(ProtocolError, match="not in the prime-order group"):
        ot.receive_base(here, b"", np.zeros(128, np.uint8), fixed(1))

    here, there = memory_pair()
    good = crypto_scalarmult_ed25519_base_noclamp(bytes([9]) + bytes(31))
    there.send(Frame.BASE_OT, good * 127 + BAD_POINTS[name])
    with pytest.raises(ProtocolError, match="not in the prime-order group"):
        ot.send_base(here, b"", fixed(1))


def test_a_libsodium_that_misses_such_points_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ot, "crypto_core_ed25519_is_valid_point", lambda _: True)
    with pytest.raises(ImportError, match=r"CVE-2025-69277.*PyNaCl 1\.6\.2"):
        ot._refuse_old_libsodium()  # pyright: ignore[reportPrivateUsage]


def test_extended_transfers_are_the_ideal_ones(
    ends: tuple[ot.CorrelatedSender, MemoryChannel, ot.CorrelatedReceiver, MemoryChannel],
) -> None:
    sender, here, receiver, there = ends
    seen: list[bytes] = []
    for count in (1, 7, 8, 1001, 1001, 40_000):
        choices = fixed(count % 250).bytes(count) & np.uint8(1)
        before = there.ledger.row().sent
        got = receiver.extend(there, choices)
        assert there.ledger.row().sent - before == ot.extension_bytes(count)
        zero = sender.extend(here, count)
        np.testing.assert_array_equal(got, ideal(zero, sender.offset.words, choices))
        seen += [label.tobytes() for label in zero]
    assert len(set(seen)) == len(seen)


def test_what_the_receiver_sends_does_not_repeat_under_equal_choices(
    ends: tuple[ot.CorrelatedSender, MemoryChannel, ot.CorrelatedReceiver, MemoryChannel],
) -> None:
    sender, here, receiver, there = ends
    sent: list[bytes] = []
    for _ in range(2):
        receiver.extend(there, np.ones(64, np.uint8))
        payload = here.receive(Frame.EXTENSION, ot.extension_bytes(64))
        sent.append(bytes(payload))
        there.send(Frame.EXTENSION, payload)
        sender.extend(here, 64)
    first, second = (np.frombuffer(columns, np.uint8).reshape(128, -1) for columns in sent)
    assert not (first == second).all(axis=1).any()


def test_a_short_extension_is_refused(
    ends: tuple[ot.CorrelatedSender, MemoryChannel, ot.CorrelatedReceiver, MemoryChannel],
) -> None:
    sender, here, _, there = ends
    there.send(Frame.EXTENSION, bytes(ot.extension_bytes(64) - 1))
    with pytest.raises(ProtocolError, match="expected EXTENSION of 1024 bytes"):
        sender.extend(here, 64)


@pytest.mark.parametrize("m", [1, 3, 64, 2047, 2048, 2049])
def test_bit_transpose(m: int) -> None:
    columns = fixed(m % 250).bytes(128 * m).reshape(128, m)
    rows = np.unpackbits(engine().transpose(columns).view(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(rows, np.unpackbits(columns, axis=1, bitorder="little").T)


def test_default_randomness_makes_sessions_differ() -> None:
    points: list[bytes] = []
    for _ in range(2):
        here, there = memory_pair()
        thread = threading.Thread(target=ot.receive_base, args=(there, b"", np.zeros(128, np.uint8), Randomness()))
        thread.start()
        pairs = ot.send_base(here, b"", Randomness())
        thread.join()
        points.append(pairs[0][0])
    assert points[0] != points[1]
