"""Signs between two parties: exact for every value of the window, in both roles, for the bytes declared."""

from dataclasses import replace

import numpy as np
import pytest
from support.two_parties import fixed, in_parallel

from deepreshape.private.arith.ring import Field, Ring, Words
from deepreshape.private.program.ops import ProgramError, Sign
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols.base import Prepared, Run, side_by_side
from deepreshape.private.protocols.garbled import sign_garbled
from deepreshape.private.protocols.garbled.sign_garbled import GarbledSign
from deepreshape.private.transport.memory import memory_pair

RING = Ring(20)


def run(word: str, x: np.ndarray, op: int | Sign, thresholds: np.ndarray) -> np.ndarray:
    """What both parties make of ``x``; both count what was declared, and keep what was. It is what the replay gives."""
    protocol = GarbledSign(ReluConfig.parse(word))
    op = op if isinstance(op, Sign) else Sign("layer", ("input",), op)
    layer = protocol.layer(RING, op, len(x))
    serving = replace(protocol, thresholds={"layer": RING.encode(thresholds)})
    client_share, blind = (RING.random(len(x), fixed(number)) for number in (3, 4))
    shares = {"client": client_share, "server": RING.sub(RING.encode(x), client_share)}
    channels = dict(zip(("client", "server"), memory_pair(), strict=True))
    stored: dict[str, int] = {}

    def act(role: Role, party: GarbledSign) -> Words | None:
        this, prepared = Run(channels[role], bytes(16), role, fixed(len(role))), list[Prepared]()
        client = role == "client"
        with channels[role].ledger.at("(setup)", "offline"):
            setup = party.setup(this, [layer])
        offline = party.offline(this, setup, layer, shares[role] if client else None, blind if client else None)
        side_by_side(this, "offline", [("layer", offline)], lambda _, part: prepared.append(part))
        stored[role] = sum(part.nbytes for part in prepared)
        online = party.online(this, layer, iter(prepared), None if client else shares[role])
        return side_by_side(this, "online", [("layer", online)])[0]

    _, share = in_parallel(lambda: act("client", protocol), lambda: act("server", serving))
    assert share is not None
    declared = protocol.declared(layer)
    for phase in ("offline", "online"):
        for role, expected in (("client", declared.traffic[phase]), ("server", declared.traffic[phase][::-1])):
            traffic = channels[role].ledger.traffic["layer", phase]
            assert (traffic.sent, traffic.received) == expected, (role, phase)
    assert (stored["client"], stored["server"]) == declared.stored
    signs = RING.decode(RING.add(share, blind))
    assert np.array_equal(signs, protocol.replay(layer, x + thresholds, client_share))
    return signs


WORDS = ["gc-full", "gc-sign", "gc-stochastic:drop=3", "gc-full:garbler=client", "gc-sign:batch=50"]


@pytest.mark.parametrize("word", WORDS)
def test_every_value_of_a_window_has_its_sign_and_zero_is_minus_one(word: str):
    high = 7
    x = np.arange(-(2 ** (high - 1)) + 1, 2 ** (high - 1))
    signs = run(word, x, high, np.zeros_like(x))
    assert signs.tolist() == np.where(x > 0, 1, -1).tolist()


def test_thresholds_are_the_servers_and_move_the_sign():
    x = np.arange(-20, 21)
    thresholds = np.where(np.arange(41) % 2, 5, -5)
    signs = run("gc-full", x, 6, thresholds)
    assert signs.tolist() == np.where(x + thresholds > 0, 1, -1).tolist()


def test_all_bits_are_read_where_no_window_is_proven():
    x = np.array([-(2**19) + 1, -1, 0, 1, 2**19 - 1])
    signs = run("gc-full", x, 0, np.zeros_like(x))
    assert signs.tolist() == [-1, -1, -1, 1, 1]


def test_a_window_that_is_too_narrow_is_wrong_there_and_the_layer_says_how_far_it_goes():
    layer = GarbledSign(ReluConfig()).layer(RING, Sign("layer", ("input",), 6), 1)
    assert GarbledSign(ReluConfig()).max_input(layer) == 31
    signs = run("gc-full", np.array([31, 33]), 6, np.zeros(2, np.int64))
    assert signs.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("word", "reads"),
    [
        ("gc-sign:window", (0, 12)),
        ("gc-stochastic:window", (4, 12)),
        ("gc-stochastic:window,neg-pass", (4, 12)),
        ("gc-stochastic:window,garbler=client", (4, 12)),
        ("gc-stochastic:drop=4", (0, 15)),
        ("gc-full", (0, 15)),
    ],
)
def test_a_calibrated_window_is_read_where_the_word_says_so_and_both_parties_have_the_same_faults(
    word: str, reads: tuple[int, int]
):
    op = Sign("layer", ("input",), 15, 4, 12)
    layer = GarbledSign(ReluConfig.parse(word)).layer(RING, op, 1)
    assert (layer.test.width, layer.test.compared_bits) == (reads[1] - reads[0], reads[1] - reads[0] - 1)
    x = np.concatenate([np.repeat(np.arange(-20, 21), 40), np.array([-2000, 2000])])
    thresholds = np.where(np.arange(len(x)) % 2, 3, -3)
    signs, exact = run(word, x, op, thresholds), np.where(x + thresholds > 0, 1, -1)
    wrong = signs != exact
    assert wrong.any() == (reads[0] > 0)
    assert np.abs(x + thresholds)[wrong].max(initial=0) < 1 << reads[0]


def test_a_narrow_sign_costs_a_fraction_of_a_wide_one():
    protocol = GarbledSign(ReluConfig())
    narrow, wide = (
        sum(map(sum, protocol.declared(protocol.layer(Ring(30), Sign("x", ("input",), high), 1000)).traffic.values()))
        for high in (11, 0)
    )
    assert narrow < 0.45 * wide


def test_what_signs_are_not_computed_by_is_refused():
    with pytest.raises(ProgramError, match="x: signs are computed over a ring"):
        GarbledSign(ReluConfig()).layer(Field(65537), Sign("x", ("input",)), 4)
    with pytest.raises(ProgramError, match="x: bit 20 is none of"):
        Program(RING, (4,), 0, 8, (Sign("x", ("input",), 21),))
    with pytest.raises(ProgramError, match="x: a sign test of 1 bits"):
        Program(RING, (4,), 0, 8, (Sign("x", ("input",), 1),))
    with pytest.raises(ProgramError, match="x: bit 20 is none of"):
        Program(RING, (4,), 0, 8, (Sign("x", ("input",), 0, 2, 21),))
    with pytest.raises(ProgramError, match="x: a sign test of the bits from 8 up to 9; it needs two bits"):
        Program(RING, (4,), 0, 8, (Sign("x", ("input",), 12, 8, 9),))
    with pytest.raises(ProgramError, match="x: a sign test of the bits from 3 up to 0"):
        Program(RING, (4,), 0, 8, (Sign("x", ("input",), 12, 3),))
    with pytest.raises(ProgramError, match="x: calibration reads 13 bits, and 12 are proven to be enough"):
        Program(RING, (4,), 0, 8, (Sign("x", ("input",), 12, 0, 13),))


@pytest.mark.parametrize("word", ["gc-full", "gc-full:garbler=client"])
def test_the_bit_that_the_evaluator_sees_says_nothing_of_the_sign(word: str, monkeypatch: pytest.MonkeyPatch):
    """It is the permute bit of a label: the sign plus the bit of the zero label, which only the garbler has."""
    seen: list[np.ndarray] = []
    permute_bits = sign_garbled.permute_bits

    def note(labels: Words) -> np.ndarray:
        seen.append(permute_bits(labels))
        return seen[-1]

    monkeypatch.setattr(sign_garbled, "permute_bits", note)
    x = np.where(np.arange(4_000) % 2, 5, -5)
    assert run(word, x, 7, np.zeros_like(x)).tolist() == np.sign(x).tolist()
    # the garbler speaks first, so its zero labels are looked at first
    zero, label = seen
    assert np.array_equal(zero ^ label, x > 0)
    for sign in (x > 0, x < 0):
        assert abs(label[sign].mean() - 0.5) < 5 * 0.5 / np.sqrt(2_000)
