"""Labels: Delta, the keys of contexts, and blinds."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from support.two_parties import fixed

from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, Field, Ring
from deepreshape.private.crypto.labels import Context, Delta, derive_blinds, hash_labels, pick


def test_no_key_repeats_over_many_sessions_layers_and_batches() -> None:
    keys = [
        key.tobytes()
        for session in (b"", b"a", b"ab", b"b")
        for layer in ("", "a", "ab", "b", "a\0")
        for batch in range(12)
        for key in Context(session, layer, batch).keys(64)
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_delta_cannot_be_copied(again: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        again(Delta(fixed(1)))


def test_delta_has_its_permute_bit_and_does_not_show_itself() -> None:
    assert all(int(Delta(fixed(i)).words[0]) >> 63 == 1 for i in range(20))
    others = np.bitwise_or.reduce([Delta(fixed(i)).words for i in range(20)])
    assert others.tolist() == [2**64 - 1] * 2
    delta = Delta(fixed(1))
    assert str(int(delta.words[1])) not in repr(delta)


def test_pick_moves_labels_by_the_delta() -> None:
    labels, delta = fixed(1).labels(3), Delta(fixed(2)).words
    moved = pick(labels, delta, np.array([0, 1, 1], np.uint8))
    np.testing.assert_array_equal(moved, [labels[0], labels[1] ^ delta, labels[2] ^ delta])


def test_pick_wants_one_bit_a_label_and_writes_where_it_is_told() -> None:
    labels, delta = fixed(1).labels(3), Delta(fixed(2)).words
    bits = np.array([0, 1, 1], np.uint8)
    expected = pick(labels, delta, bits)
    assert pick(labels, delta, bits, labels) is labels
    np.testing.assert_array_equal(labels, expected)
    with pytest.raises(ValueError, match="cannot pick from labels"):
        pick(labels, delta, bits[:2])
    with pytest.raises(ValueError, match="cannot pick from labels"):
        pick(labels, delta, bits, np.empty((6, 2), np.uint64)[::2])


def test_blinds_are_the_hash_below_the_modulus() -> None:
    labels, here = fixed(1).labels(100), Context(b"session", "layer", 0)
    hashes = [low | high << 64 for low, high in hash_labels(labels, here, "use").tolist()]
    for modulus in (Ring(2), Ring(37), Ring(63), Field(3), Field(CIRCA_PRIME), Field(DELPHI_PRIME), Field(2**63 - 25)):
        assert derive_blinds(labels, here, "use", modulus).tolist() == [value % modulus.order for value in hashes]
