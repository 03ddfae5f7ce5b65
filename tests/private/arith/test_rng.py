"""The random stream: what it is, and that nobody gets it twice."""

import copy
import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from support.two_parties import fixed

from deepreshape.private.arith.rng import Randomness


def test_stream_is_aes_in_counter_mode_and_runs_on() -> None:
    key = bytes(range(32))
    expected = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(200))
    stream = Randomness(key)
    pieces = [stream.bytes(5).tobytes(), stream.labels(3).tobytes(), stream.words(2).tobytes(), stream.seed()]
    assert b"".join(pieces) == expected[: 5 + 48 + 16 + 32]


def test_streams_differ_unless_seeded_alike() -> None:
    assert Randomness().seed() != Randomness().seed()
    assert fixed(1).seed() == fixed(1).seed()
    with pytest.raises(ValueError, match="32 bytes, got 16"):
        Randomness(bytes(16))


def test_a_stream_does_not_show_or_copy_its_key() -> None:
    assert "01010101" not in repr(fixed(1))
    with pytest.raises(TypeError):
        copy.deepcopy(fixed(1))


def test_a_forked_process_cannot_repeat_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = fixed(1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="another process"):
        stream.seed()
    fixed(1).seed()
