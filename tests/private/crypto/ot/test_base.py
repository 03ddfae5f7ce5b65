"""Base transfers against the ideal one, and points that give the receiver's choices away."""

import threading

import numpy as np
import pytest
from nacl.bindings import crypto_core_ed25519_add, crypto_scalarmult_ed25519_base_noclamp
from support.two_parties import fixed, in_parallel

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.ot import base
from deepreshape.private.crypto.ot.base import BASE_BYTES, receive_base, send_base
from deepreshape.private.errors import ProtocolError
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.memory import memory_pair

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


def test_base_transfers_are_the_ideal_ones() -> None:
    here, there = memory_pair()
    choices = fixed(1).bytes(128) & np.uint8(1)
    pairs, keys = in_parallel(
        lambda: send_base(here, b"session", fixed(2)), lambda: receive_base(there, b"session", choices, fixed(3))
    )
    assert keys == [pair[choice] for pair, choice in zip(pairs, choices.tolist(), strict=True)]
    assert len({key for pair in pairs for key in pair}) == 256
    row = here.ledger.current()
    assert (row.sent, row.received) == BASE_BYTES


def test_base_keys_are_bound_to_the_session() -> None:
    here, there = memory_pair()
    choices = np.zeros(128, np.uint8)
    pairs, keys = in_parallel(
        lambda: send_base(here, b"one", fixed(2)), lambda: receive_base(there, b"two", choices, fixed(3))
    )
    assert not {key for pair in pairs for key in pair} & set(keys)


@pytest.mark.parametrize("name", BAD_POINTS)
def test_points_outside_the_group_are_refused(name: str) -> None:
    here, there = memory_pair()
    there.send(Frame.BASE_OT, BAD_POINTS[name])
    with pytest.raises(ProtocolError, match="not in the prime-order group"):
        receive_base(here, b"", np.zeros(128, np.uint8), fixed(1))

    here, there = memory_pair()
    good = crypto_scalarmult_ed25519_base_noclamp(bytes([9]) + bytes(31))
    there.send(Frame.BASE_OT, good * 127 + BAD_POINTS[name])
    with pytest.raises(ProtocolError, match="not in the prime-order group"):
        send_base(here, b"", fixed(1))


def test_a_libsodium_that_misses_such_points_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "crypto_core_ed25519_is_valid_point", lambda _: True)
    with pytest.raises(ImportError, match=r"CVE-2025-69277.*PyNaCl 1\.6\.2"):
        base._refuse_old_libsodium()  # pyright: ignore[reportPrivateUsage]


def test_default_randomness_makes_sessions_differ() -> None:
    points: list[bytes] = []
    for _ in range(2):
        here, there = memory_pair()
        thread = threading.Thread(target=receive_base, args=(there, b"", np.zeros(128, np.uint8), Randomness()))
        thread.start()
        pairs = send_base(here, b"", Randomness())
        thread.join()
        points.append(pairs[0][0])
    assert points[0] != points[1]
