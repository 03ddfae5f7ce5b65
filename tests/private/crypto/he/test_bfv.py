"""BFV behind he.py: what arrives is checked before SEAL sees it, what leaves is flooded, re-randomised and exact."""

from __future__ import annotations

import re

import numpy as np
import pytest

from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.he import bfv as he
from deepreshape.private.crypto.he import seal_container
from deepreshape.private.crypto.he.bfv import ClientKey, Responder
from deepreshape.private.crypto.he.parameters import (
    ERROR_BOUND,
    STATISTICAL_BITS,
    Parameters,
    ResponseFormat,
    known_parameters,
)
from deepreshape.private.crypto.he.residues import pack_residues, residue_bytes, uniform, unpack_residues
from deepreshape.private.crypto.he.seal_container import content_of, load_into, saved_container
from deepreshape.private.errors import ProtocolError

SMALL = Parameters(2**37, (60, 60))
WEIGHT_SUM = 576 << 8
REVEALED = 4096


@pytest.fixture(scope="module")
def session():
    key = ClientKey(SMALL)
    return key, Responder(SMALL, key.public_key())


def negacyclic(x, w, modulus):
    """Their product modulo X^N + 1, in Python integers."""
    n = len(x)
    total = np.zeros(n, object)
    for j in np.flatnonzero(w):
        turned = np.concatenate([-x[n - j :].astype(object), x[: n - j].astype(object)]) if j else x.astype(object)
        total = total + int(w[j]) * turned
    return total % modulus


def one_response(key, responder, positions, seed=0):
    parameters = key.parameters
    rng = np.random.default_rng(seed)
    form = parameters.response_format(WEIGHT_SUM, REVEALED)
    xs = [uniform(Randomness(), parameters.degree, parameters.modulus) for _ in range(2)]
    ws = [np.zeros(parameters.degree, np.int64) for _ in xs]
    for w in ws:
        w[rng.choice(parameters.degree, 280, replace=False)] = rng.choice([-255, 255], 280)
    mask = uniform(Randomness(), len(positions), parameters.modulus)
    pairs = [(responder.receive(key.encrypt(x)), he.encode(parameters, w)) for x, w in zip(xs, ws, strict=True)]
    response = responder.respond([pairs], mask, form, positions)
    expected = sum(negacyclic(x, w, parameters.modulus) for x, w in zip(xs, ws, strict=True))[positions]
    return response, form, (expected + mask) % parameters.modulus


@pytest.mark.parametrize("modulus", [2**20, 2**41, 2061584302081])
def test_every_coefficient_and_the_budget_left(modulus):
    """All coefficients revealed, worst weights: exact, and SEAL's own budget agrees that a bit or more is left."""
    for parameters in (p for p in known_parameters(modulus) if p.prime_bits[0] == 60):
        try:
            form = parameters.response_format(WEIGHT_SUM, REVEALED)
        except ValueError:
            continue
        key = ClientKey(parameters)
        everywhere = np.arange(parameters.degree)
        response, form, expected = one_response(key, Responder(parameters, key.public_key()), everywhere)
        assert len(response) == parameters.response_bytes(form, parameters.degree)
        assert (key.decrypt(response, form, everywhere).astype(object) == expected).all()
        assert key._decryptor.invariant_noise_budget(key._from_wire(response, form, everywhere)) >= 1
        return
    pytest.fail("no parameters fitted")


def test_formulas():
    form = SMALL.response_format(WEIGHT_SUM, REVEALED)
    noise = SMALL.noise_bound(WEIGHT_SUM)
    assert noise >= 21.5 * WEIGHT_SUM + 42 * 8192 + 0.5
    assert REVEALED * noise <= 2 ** (form.flood_bits + 1 - STATISTICAL_BITS) < 2 * REVEALED * noise
    packed = SMALL.response_format(WEIGHT_SUM, REVEALED, interleave=64)
    noise += 63 * SMALL.switch_noise
    assert SMALL.noise_bound(WEIGHT_SUM, 64) == noise > 2 * SMALL.noise_bound(WEIGHT_SUM)
    assert SMALL.switch_noise >= 21 * 8192 * sum(SMALL.primes) / SMALL.all_primes[-1] + 4096.5
    assert REVEALED * noise <= 2 ** (packed.flood_bits + 1 - STATISTICAL_BITS) < 2 * REVEALED * noise
    assert SMALL.fresh_bytes == 2 * 15 * 8192 // 2 + 64
    assert SMALL.special_bits == 60
    assert Parameters(2**37, (60, 60, 60)).special_bits == 38
    for parameters in known_parameters(2**37):
        assert parameters.degree == 8192
        assert all(
            p % (2 * 8192) == 1 and p.bit_length() == b
            for p, b in zip(parameters.primes, parameters.prime_bits, strict=True)
        )


def test_product_of_dropped_bits_with_the_key():
    """Hoeffding's bound: far over what is seen, far under the worst case, by which it is never more."""
    revealed, error = 1 << 14, 1 << 15
    bound = SMALL.largest_product(error, revealed)
    assert bound - 4096 >= error * (2 * 8192 * np.log(2.0**65 * revealed)) ** 0.5
    assert bound < 8192 * error / 8
    assert [SMALL.largest_product(small, revealed) for small in (0, 1)] == [0, 5044]
    rng = np.random.default_rng(0)
    errors = rng.integers(1 - error, error + 1, (200, 8192))
    seen = np.abs(errors @ rng.integers(-1, 2, 8192)).max()
    assert seen < bound / 3 < 4 * seen
    ones = np.full(8192, error)  # errors that are not independent of a key exceed it
    assert int(ones.sum()) > bound


def test_security_table_is_enforced():
    with pytest.raises(ValueError, match="make 260 bits; degree 8192 allows 218"):
        Parameters(2**37, (60, 60, 60, 60))
    with pytest.raises(ValueError, match="degree 4096 allows 109"):
        Parameters(2**37, (60, 60), degree=4096)


@pytest.mark.parametrize("modulus", [2, 2**60])
def test_impossible_plaintext_modulus(modulus):
    """Modulo 2 the ternary polynomial that re-randomises would not be ternary."""
    with pytest.raises(ValueError, match=rf"plaintext modulus {modulus} must lie in \[3, 2\^60\)"):
        Parameters(modulus, (60, 60))


def test_budget_refusal_says_how_much():
    with pytest.raises(ValueError, match=r"too small by about \d+ bits.*narrower"):
        Parameters(2**41, (56, 48)).response_format(2**30, REVEALED)


def test_only_what_is_asked_for_travels(session):
    key, responder = session
    positions = np.array([3, 5000, 8191])
    response, form, expected = one_response(key, responder, positions)
    assert len(response) == residue_bytes(3, form.c0_bits) + residue_bytes(8192, form.c1_bits)
    assert (key.decrypt(response, form, positions).astype(object) == expected).all()


def test_wire_matches_seal(session):
    """Our container around residues and seed is the ciphertext SEAL made: same c0, and c1 expanded alike."""
    key, _ = session
    plain = he._plaintext(SMALL, uniform(Randomness(), 8192, SMALL.modulus))
    saved = key._encryptor.encrypt_symmetric(plain)
    ciphertext = he._fresh(SMALL, key._to_wire(saved))
    again = he.seal.Ciphertext()
    load_into(again, he._context(SMALL), saved_container(saved))
    assert saved_container(again) == saved_container(ciphertext)


@pytest.mark.parametrize("change", [-1, 1, None])
def test_wrong_lengths(session, change):
    key, responder = session
    good = key.encrypt(np.zeros(8192, np.uint64))
    bad = b"" if change is None else good[:change] if change < 0 else good + b"\0"
    for receive in (responder.receive, lambda data: Responder(SMALL, data)):
        with pytest.raises(ProtocolError, match=f"of {len(bad)} bytes; these parameters make it 122944"):
            receive(bad)
    form = SMALL.response_format(WEIGHT_SUM, REVEALED)
    with pytest.raises(ProtocolError, match="response of"):
        key.decrypt(bad, form, np.arange(3))


def tampered(data: bytes, row: int, at: int, value: int) -> bytes:
    """A fresh ciphertext with one residue of one prime replaced."""
    size = residue_bytes(8192, 60)
    residues = unpack_residues(data[row * size : (row + 1) * size], 8192, 60)
    residues[at] = value
    return data[: row * size] + pack_residues(residues, 60) + data[(row + 1) * size :]


@pytest.mark.parametrize(("row", "at"), [(0, 0), (0, 8191), (1, 0), (1, 8191)])
def test_residue_not_below_its_prime(session, row, at, monkeypatch):
    key, responder = session
    good = key.encrypt(np.zeros(8192, np.uint64))
    prime = SMALL.primes[row]
    responder.receive(tampered(good, row, at, prime - 1))
    monkeypatch.setattr(he, "load_into", lambda *_: pytest.fail("reached SEAL"))
    with pytest.raises(ProtocolError, match=f"not below its prime {prime}"):
        responder.receive(tampered(good, row, at, prime))


@pytest.mark.parametrize("part", ["c0", "c1"])
def test_response_residue_not_below_its_prime(session, part, monkeypatch):
    key, _ = session
    form = ResponseFormat(flood_bits=70, c0_bits=60, c1_bits=60)
    c0, c1 = np.zeros(6, np.uint64), np.zeros(8192, np.uint64)
    (c0 if part == "c0" else c1)[-1] = SMALL.primes[0]
    monkeypatch.setattr(he, "load_into", lambda *_: pytest.fail("reached SEAL"))
    with pytest.raises(ProtocolError, match="not below its prime"):
        key.decrypt(pack_residues(c0, 60) + pack_residues(c1, 60), form, np.arange(6))


def test_keys_and_errors_are_what_the_bound_assumes():
    """SEAL's secret is uniform ternary, its errors lie within ERROR_BOUND with the variance of 21 coin pairs."""
    parameters = Parameters(2**58, (60,))  # t / q is 1/4: of eight times the phase, decryption shows twice the phase
    key = ClientKey(parameters)
    prime = parameters.primes[0]

    def phase(residues):
        """c0 + c1 s of a (2, N) ciphertext, while it is small."""
        plain = he.seal.Plaintext()
        eightfold = np.array([[int(r) * 8 % prime for r in part] for part in residues], np.uint64)[:, None]
        key._decryptor.decrypt(he._ciphertext(parameters, eightfold), plain)
        doubled = he._coefficients(parameters, plain).astype(np.int64)
        return np.where(doubled >= 2**57, doubled - 2**58, doubled) / 2

    values, counts = np.unique(phase(np.eye(1, 2 * 8192, 8192, dtype=np.uint64).reshape(2, -1)), return_counts=True)
    assert list(values) == [-1, 0, 1]
    assert np.abs(counts - 8192 / 3).max() < 250
    zero = content_of(saved_container(he._fresh(parameters, key.public_key())))[-16 * 8192 :]
    errors = phase(np.frombuffer(zero, np.uint64).reshape(2, -1))
    assert np.abs(errors).max() <= ERROR_BOUND
    assert (errors == np.rint(errors)).all()
    assert abs(errors.var() - 10.5) < 1


@pytest.mark.parametrize("weight", [0, 1, 4])
def test_returned_noise_is_the_flood(session, weight):
    """The noise that the client can see has the flood's size, whatever the weights."""
    key, responder = session
    form = ResponseFormat(SMALL.response_format(WEIGHT_SUM, REVEALED).flood_bits, c0_bits=60, c1_bits=60)
    everywhere = np.arange(8192)
    pairs = [(responder.receive(key.encrypt(np.zeros(8192, np.uint64))), he.encode(SMALL, np.full(8192, weight)))]
    response = responder.respond([pairs], np.zeros(8192, np.uint64), form, everywhere)
    budget = key._decryptor.invariant_noise_budget(key._from_wire(response, form, everywhere))
    # q0 / (2 t) over the flood that is left after switching from q0 q1 down to q0; rounding may cost one bit more
    assert budget - (60 - 37 - 1 - (form.flood_bits - 60)) in (-1, 0)


def test_what_is_added_before_switching(session, monkeypatch):
    """Flood in the revealed coefficients of c0, a small error in every coefficient of c1."""
    key, responder = session
    pairs = [
        (responder.receive(key.encrypt(np.zeros(8192, np.uint64))), he.encode(SMALL, np.eye(1, 8192, dtype=int)[0]))
    ]
    added = []
    real = he._ciphertext
    monkeypatch.setattr(he, "_ciphertext", lambda p, residues: added.append(residues.copy()) or real(p, residues))
    form = SMALL.response_format(WEIGHT_SUM, REVEALED)
    positions = np.array([7, 11])
    responder.respond([pairs], np.zeros(2, np.uint64), form, positions)
    [(flood, error)] = added
    assert (np.flatnonzero(flood.any(0)) == positions).all()
    for row, prime in zip(error, SMALL.primes, strict=True):
        signed = np.where(row > 100, row.astype(np.int64) - prime, row.astype(np.int64))
        assert np.abs(signed).max() <= ERROR_BOUND
        assert 9 < signed.var() < 12


def test_responses_are_fresh(session):
    """Two responses to the same question share neither part."""
    key, responder = session
    pairs = [
        (responder.receive(key.encrypt(np.zeros(8192, np.uint64))), he.encode(SMALL, np.eye(1, 8192, dtype=int)[0]))
    ]
    form = SMALL.response_format(WEIGHT_SUM, REVEALED)
    positions = np.arange(500)
    a, b = (responder.respond([pairs], np.zeros(500, np.uint64), form, positions) for _ in range(2))
    split = residue_bytes(500, form.c0_bits)
    for part, count, bits in ((slice(split), 500, form.c0_bits), (slice(split, None), 8192, form.c1_bits)):
        same = unpack_residues(a[part], count, bits) == unpack_residues(b[part], count, bits)
        assert same.mean() < 0.01


def test_injected_randomness_alone_decides_the_response(session):
    key, _ = session
    public, sent = key.public_key(), key.encrypt(np.zeros(8192, np.uint64))
    form = SMALL.response_format(WEIGHT_SUM, REVEALED)
    responses = []
    for seed in (bytes(32), bytes(32), bytes([1] * 32)):
        responder = Responder(SMALL, public, rng=Randomness(seed))
        pairs = [(responder.receive(sent), he.encode(SMALL, np.eye(1, 8192, dtype=int)[0]))]
        responses.append(responder.respond([pairs], np.zeros(3, np.uint64), form, np.arange(3)))
    assert responses[0] == responses[1] != responses[2]


def test_without_memory_files(session, monkeypatch):
    """The fallback: ciphertexts through a private folder, plaintexts never through a file."""
    key, responder = session
    monkeypatch.setattr(seal_container, "MEMORY_FILES", False)
    opened = []
    real = seal_container.tempfile.TemporaryDirectory
    monkeypatch.setattr(seal_container.tempfile, "TemporaryDirectory", lambda **k: opened.append(k) or real(**k))
    plain = he._plaintext(SMALL, np.arange(8192, dtype=np.uint64))
    assert (he._coefficients(SMALL, plain) == np.arange(8192)).all()
    assert (he._coefficients(SMALL, he._plaintext(SMALL, np.zeros(8192, np.uint64))) == 0).all()
    assert not opened
    response, form, expected = one_response(key, responder, np.arange(9))
    assert opened
    assert (key.decrypt(response, form, np.arange(9)).astype(object) == expected).all()


def test_other_library_is_refused(monkeypatch):
    monkeypatch.setattr(seal_container, "_FORMAT", (3, 7))
    seal_container.check_library.cache_clear()
    with pytest.raises(ImportError, match=re.escape("format 4.3; this release was tested with tenseal 0.3.18")):
        seal_container.check_library()


def test_other_ciphertext_layout_is_refused(session, monkeypatch):
    monkeypatch.setattr(he, "GENERATOR", he.GENERATOR[:-1] + b"\2")
    with pytest.raises(RuntimeError, match="unknown layout; this release was tested with"):
        session[0].public_key()


def test_hostile_but_well_formed_peer(session):
    """All residues zero, or all ones less than their prime: no error that a peer could see, and nothing to crash."""
    key, responder = session
    form = ResponseFormat(flood_bits=70, c0_bits=60, c1_bits=60)
    for residue in (0, SMALL.primes[0] - 1):
        c0, c1 = (pack_residues(np.full(count, residue, np.uint64), 60) for count in (6, 8192))
        assert key.decrypt(c0 + c1, form, np.arange(6)).shape == (6,)
    nothing = bytes(SMALL.fresh_bytes)
    pairs = [(responder.receive(nothing), he.encode(SMALL, np.eye(1, 8192, dtype=int)[0]))]
    assert Responder(SMALL, nothing).respond([pairs], np.zeros(6, np.uint64), form, np.arange(6))


def test_nothing_secret_in_repr(session):
    key, responder = session
    assert re.fullmatch(r"<.*ClientKey object at 0x[0-9a-f]+>", repr(key))
    assert re.fullmatch(r"<.*Responder object at 0x[0-9a-f]+>", repr(responder))
