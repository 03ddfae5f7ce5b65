"""Ring packing: what counts is kept exactly, all else is gone, and what the client sends for it is checked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.he import bfv, galois
from deepreshape.private.crypto.he.bfv import ClientKey, Responder
from deepreshape.private.crypto.he.parameters import Parameters
from deepreshape.private.crypto.he.residues import pack_residues, residue_bytes, uniform, unpack_residues
from deepreshape.private.crypto.he.seal_container import load_into, saved_container, seal
from deepreshape.private.errors import ProtocolError

PARAMETERS = Parameters(2**31, (60, 52), galois_keys=3)
N = PARAMETERS.degree


@pytest.fixture(scope="module")
def session() -> tuple[ClientKey, Responder]:
    key = ClientKey(PARAMETERS)
    return key, Responder(PARAMETERS, key.public_key(), key.galois_keys())


def packed(key: ClientKey, responder: Responder, leaves: int, interleave: int, *, divided: bool = True):
    """The decrypted packing of so many random polynomials, they themselves, and the noise budget that is left."""
    parameters, evaluator = key.parameters, bfv._evaluator(key.parameters)
    plain = [uniform(Randomness(), parameters.degree, parameters.modulus) for _ in range(leaves)]
    nodes = [responder.receive(key.encrypt(each), interleave if divided else 1) for each in plain]
    for node in nodes:
        evaluator.transform_from_ntt_inplace(node)
    root = galois.packed(evaluator, responder._keys, nodes, parameters.degree, interleave)
    result = seal.Plaintext()
    key._decryptor.decrypt(root, result)
    return bfv._coefficients(parameters, result), plain, key._decryptor.invariant_noise_budget(root)


@pytest.mark.parametrize(("interleave", "leaves"), [(1, 1), (2, 1), (2, 2), (4, 3), (8, 1), (8, 5), (8, 8)])
def test_what_counts_stays_and_all_else_is_gone(session, interleave, leaves):
    result, plain, _ = packed(*session, leaves, interleave)
    expected = np.zeros((N // interleave, interleave), np.uint64)
    for leaf, polynomial in enumerate(plain):
        expected[:, galois.residue(leaf, interleave)] = polynomial[::interleave]
    assert np.array_equal(result, expected.reshape(-1))


@pytest.mark.parametrize("opposite", [False, True])
def test_a_sum_or_a_difference_of_two_leaves_that_is_zero(session, opposite):
    """Where one is the other, shifted, as rows of the identity make them: SEAL refuses to hold a zero."""
    key, responder = session
    evaluator = bfv._evaluator(PARAMETERS)
    plain = uniform(Randomness(), N, PARAMETERS.modulus)
    first, second = responder.receive(key.encrypt(plain), 2), seal.Ciphertext()
    evaluator.transform_from_ntt_inplace(first)
    evaluator.multiply_plain(first, seal.Plaintext(f"1x^{N - 1}"), second)  # times -1/X
    if not opposite:
        evaluator.negate_inplace(second)
    root, result = galois.packed(evaluator, responder._keys, [first, second], N, 2), seal.Plaintext()
    key._decryptor.decrypt(root, result)
    expected = plain.copy()
    if opposite:
        expected[1::2] = (PARAMETERS.modulus - plain[1::2]) % PARAMETERS.modulus
    assert np.array_equal(bfv._coefficients(PARAMETERS, result), expected)


def test_each_leaf_has_residues_of_its_own():
    for interleave in (1, 2, 4, 64):
        assert sorted(galois.residue(leaf, interleave) for leaf in range(interleave)) == list(range(interleave))


def test_without_the_inverse_of_t_it_is_t_times_as_much(session):
    """And where the key is another client's, it is nothing."""
    key, responder = session
    result, (plain,), _ = packed(key, responder, 1, 4, divided=False)
    assert np.array_equal(result[::4], plain[::4] * np.uint64(4) % np.uint64(2**31))
    strange = Responder(PARAMETERS, key.public_key(), ClientKey(PARAMETERS).galois_keys())
    result, (plain,), budget = packed(key, strange, 1, 4)
    assert budget == 0
    assert np.mean(result[::4] == plain[::4]) < 0.01


@pytest.mark.parametrize("bits", [(60, 52), (60, 60, 60)])
def test_noise_of_switching_is_within_its_bound(bits):
    """Also where little is left for the special prime; the fresh error and rounding are V of weight one."""
    parameters = Parameters(2**31, bits, galois_keys=3)
    key = ClientKey(parameters)
    responder = Responder(parameters, key.public_key(), key.galois_keys())
    _, _, budget = packed(key, responder, 8, 8)
    largest = np.prod([float(prime) for prime in parameters.primes]) / 2**32 / 2.0**budget
    bound = 21.5 + 7 * parameters.switch_noise
    assert largest / 2 < bound
    if len(bits) == 3:  # it is the noise of switching: budgets are whole bits, and typical sums far below the largest
        assert largest * 2**12 > bound


def test_switches_are_counted(session, monkeypatch):
    key, responder = session
    counted = []

    class Counting:
        def __getattr__(self, name):
            if name == "apply_galois":
                counted.append(name)
            return getattr(bfv._evaluator(PARAMETERS), name)

    for leaves, interleave in ((1, 8), (3, 8), (8, 8), (3, 4), (1, 1)):
        counted.clear()
        nodes = [responder.receive(key.encrypt(np.ones(N, np.uint64))) for _ in range(leaves)]
        for node in nodes:
            bfv._evaluator(PARAMETERS).transform_from_ntt_inplace(node)
        galois.packed(Counting(), responder._keys, nodes, N, interleave)
        assert len(counted) == galois.switches(leaves, interleave)
    assert galois.switches(8, 8) == 7


def test_keys_on_the_wire_are_those_that_seal_made(session):
    """Containers around residues and seeds are what SEAL writes: the same second halves are expanded."""
    context = bfv._context(PARAMETERS)
    generator = seal.KeyGenerator(context)
    one = Parameters(PARAMETERS.modulus, PARAMETERS.prime_bits, galois_keys=1)
    keys = generator.create_galois_keys([galois.element(N, 0)])
    [wire] = galois.made_keys(one, context, SimpleNamespace(create_galois_keys=lambda _: keys))
    assert len(wire) == one.switching_key_bytes == one.setup_bytes - one.fresh_bytes
    theirs = load_into(seal.GaloisKeys(), context, saved_container(keys))
    assert saved_container(galois.loaded_keys(one, context, [wire])) == saved_container(theirs)


def test_keys_are_fresh(session):
    key, _ = session
    seeds = [wire[-64:] for wire in key.galois_keys() + key.galois_keys()]
    assert len(set(seeds)) == 6


def test_wrong_numbers_and_lengths(session):
    key, _ = session
    public, keys = key.public_key(), key.galois_keys()
    for wrong in ([], keys[:2], [*keys, keys[0]], [*keys[:2], keys[2][:-1]], [*keys[:2], keys[2] + b"\0"]):
        with pytest.raises(ProtocolError, match=f"make it 3 of {PARAMETERS.switching_key_bytes}"):
            Responder(PARAMETERS, public, wrong)


@pytest.mark.parametrize(("row", "digit"), [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_residue_not_below_its_prime(session, row, digit, monkeypatch):
    key, _ = session
    keys = key.galois_keys()
    widths = [60, 52, 60]
    start = digit * (PARAMETERS.switching_key_bytes // 2) + sum(residue_bytes(N, bits) for bits in widths[:row])
    size = residue_bytes(N, widths[row])
    residues = unpack_residues(keys[1][start : start + size], N, widths[row])
    residues[-1] = PARAMETERS.all_primes[row]
    bad = keys[1][:start] + pack_residues(residues, widths[row]) + keys[1][start + size :]
    monkeypatch.setattr(galois, "load_into", lambda *_: pytest.fail("reached SEAL"))
    with pytest.raises(ProtocolError, match="switching key holds a residue that is not below its prime"):
        galois.loaded_keys(PARAMETERS, bfv._context(PARAMETERS), [keys[0], bad, keys[2]])


def test_other_layouts_of_keys_are_refused(session, monkeypatch):
    monkeypatch.setattr(galois, "GENERATOR", galois.GENERATOR[:-1] + b"\2")
    with pytest.raises(RuntimeError, match="key-switching keys of an unknown layout; this release was tested with"):
        session[0].galois_keys()
