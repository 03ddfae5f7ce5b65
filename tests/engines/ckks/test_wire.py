"""Keys and ciphertexts as bytes: what a peer sends is residues below their primes, of a known length, or refused."""

import numpy as np
import pytest

from deepreshape.engines.ckks import wire
from deepreshape.engines.ckks.parameters import CkksParameters
from deepreshape.engines.ckks.scheme import SQUARE, CkksEvaluator, Holder, Scheme
from deepreshape.private.crypto.he.seal_container import SEED_BYTES

VALUES = np.random.default_rng(0).normal(size=4096)


@pytest.fixture(scope="module")
def parties() -> tuple[Scheme, Holder]:
    scheme = Scheme(CkksParameters(8192, 30, 2, 46, 1))
    return scheme, Holder(scheme)


def test_what_travels_has_its_length_and_comes_back(parties: tuple[Scheme, Holder]):
    scheme, holder = parties
    evaluator = CkksEvaluator(scheme)
    for name in (SQUARE, "rotate-64"):
        data = wire.key(scheme, name, holder.evaluation_key(name))
        assert len(data) == wire.key_bytes(scheme)
        evaluator.add_key(name, wire.read_key(scheme, name, data))
    up = wire.fresh(scheme, holder.encrypt(VALUES))
    assert len(up) == wire.fresh_bytes(scheme)
    x = evaluator.rotate(wire.read_fresh(scheme, up), 64)
    squared = evaluator.rescale(evaluator.square(x), scheme.scale)
    lowest = evaluator.lower(squared, 0)
    lowest.raw.scale = scheme.scale
    down = wire.answer(scheme, lowest)
    assert len(down) == wire.answer_bytes(scheme)
    got = holder.decrypt(wire.read_answer(scheme, down))
    assert np.allclose(got, np.roll(VALUES, -64) ** 2, atol=0.01)


def test_a_saved_secret_key_decrypts(parties: tuple[Scheme, Holder]):
    scheme, holder = parties
    data = wire.secret(scheme, holder.saved_secret())
    again = Holder(scheme, wire.read_secret(scheme, data))
    x = wire.read_fresh(scheme, wire.fresh(scheme, again.encrypt(VALUES)))
    assert np.allclose(holder.decrypt(x), VALUES, atol=1e-3)
    with pytest.raises(ValueError, match="a secret key of 100 bytes"):
        wire.read_secret(scheme, data[:100])
    with pytest.raises(ValueError, match="a residue that is not below its prime"):
        wire.read_secret(scheme, b"\xff" * 8 + data[8:])


def test_other_lengths_and_residues_are_refused(parties: tuple[Scheme, Holder]):
    scheme, holder = parties
    key = wire.key(scheme, SQUARE, holder.evaluation_key(SQUARE))
    up = wire.fresh(scheme, holder.encrypt(VALUES))
    x = CkksEvaluator(scheme).lower(wire.read_fresh(scheme, up), 0)
    down = wire.answer(scheme, x)
    readers = (
        (key, lambda data: wire.read_key(scheme, SQUARE, data)),
        (up, lambda data: wire.read_fresh(scheme, data)),
        (down, lambda data: wire.read_answer(scheme, data)),
    )
    for good, read in readers:
        read(good)
        for bad in (b"", good[:-1], good + b"\0"):
            with pytest.raises(ValueError, match=r"of [\d,]+ bytes; with these parameters it has"):
                read(bad)
        with pytest.raises(ValueError, match="a residue that is not below its prime"):
            read(b"\xff" * 16 + good[16:])


def test_any_bytes_below_the_primes_are_harmless(parties: tuple[Scheme, Holder]):
    """A peer may send any ciphertext or key of the right form; it spoils its own answer and nothing else."""
    scheme, holder = parties
    key = bytearray(wire.key(scheme, "rotate-1", holder.evaluation_key("rotate-1")))
    key[100:200] = bytes(100)
    key[-SEED_BYTES:] = bytes(SEED_BYTES)
    evaluator = CkksEvaluator(scheme)
    evaluator.add_key("rotate-1", wire.read_key(scheme, "rotate-1", bytes(key)))
    x = wire.read_fresh(scheme, wire.fresh(scheme, holder.encrypt(VALUES)))
    assert not np.allclose(holder.decrypt(evaluator.rotate(x, 1)), np.roll(VALUES, -1), atol=0.1)


def test_a_key_of_another_rotation_gives_another_rotation_and_no_error(parties: tuple[Scheme, Holder]):
    """The bytes of a key do not say what it is for; a client that mixes them up gets nonsense."""
    scheme, holder = parties
    evaluator = CkksEvaluator(scheme)
    evaluator.add_key(
        "rotate-1", wire.read_key(scheme, "rotate-1", wire.key(scheme, SQUARE, holder.evaluation_key(SQUARE)))
    )
    x = wire.read_fresh(scheme, wire.fresh(scheme, holder.encrypt(VALUES)))
    assert not np.allclose(holder.decrypt(evaluator.rotate(x, 1)), np.roll(VALUES, -1), atol=0.1)


def test_what_a_client_makes_is_fresh_each_time(parties: tuple[Scheme, Holder]):
    scheme, holder = parties
    one, other = (wire.fresh(scheme, holder.encrypt(VALUES)) for _ in range(2))
    assert one[-SEED_BYTES:] != other[-SEED_BYTES:]
    assert one[:1000] != other[:1000]
    keys = [wire.key(scheme, SQUARE, holder.evaluation_key(SQUARE)) for _ in range(2)]
    assert keys[0][-SEED_BYTES:] != keys[1][-SEED_BYTES:]


def test_the_holder_of_a_key_does_not_show_it(parties: tuple[Scheme, Holder]):
    assert repr(parties[1]).startswith("Holder(N = 8192")
