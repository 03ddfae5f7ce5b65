"""Squares between two parties: right bit for bit, bytes and stored arrays as declared, beside ReLUs and without."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from support.programs import run_both, slow
from support.two_parties import fixed, in_parallel

from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring, Words
from deepreshape.private.arith.square import Squaring
from deepreshape.private.crypto.labels import Context, hash_labels
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.server import Model
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.encoding import from_bytes, to_bytes
from deepreshape.private.program.ops import Add, Conv2d, Flatten, Linear, ProgramError, Relu, Square, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols import square
from deepreshape.private.protocols.base import Prepared, Run, side_by_side
from deepreshape.private.protocols.choose import Protocols
from deepreshape.private.protocols.square import Constants, Squares, SquaringLayer
from deepreshape.private.protocols.transfers.transfer_ends import COTS
from deepreshape.private.transport.memory import memory_pair

CASES = [
    (31, 7, 10, "silent"),
    (31, 7, 10, "iknp"),
    (37, 12, 9, "silent"),
    (24, 0, 3, "softspoken"),
    (12, 3, 0, "iknp"),
]


class Inference:
    """Both parties with shares of random values of full range, one layer after the other."""

    def __init__(self, protocol: Squares, layers: list[SquaringLayer], seed: int = 0) -> None:
        here, there = memory_pair()
        self.layers = layers
        rng = np.random.default_rng(seed)
        self.coins: dict[str, Words] = {}
        self.runs = (
            Run(here, b"id", "client", fixed(1), lambda name, coins: self.coins.update({name: coins})),
            Run(there, b"id", "server", fixed(2)),
        )
        self.values, self.shares, served = [], [], {}
        for number, layer in enumerate(layers):
            modulus, limit = layer.squaring.modulus, layer.squaring.limit
            values = rng.integers(-limit, limit, layer.count, endpoint=True)
            values[:3] = limit, -limit, 0
            shift, client, blind, constant = (
                modulus.random(layer.count, fixed(10 + number + at)) for at in (0, 50, 100, 150)
            )
            self.values.append(values)
            self.shares.append((client, modulus.sub(modulus.sub(modulus.encode(values), shift), client), blind))
            served[layer.name] = Constants(shift, constant)
        self.protocols = protocol, Squares(protocol.cot, served)
        self.ends = in_parallel(lambda: self.setup(0), lambda: self.setup(1))

    def setup(self, party: int):
        with self.runs[party].channel.ledger.at("", "setup"):
            return self.protocols[party].setup(self.runs[party], self.layers)

    def offline(self, party: int) -> list[list[Prepared]]:
        kept: list[list[Prepared]] = [[] for _ in self.layers]
        steps = []
        for layer, (client, _, blind) in zip(self.layers, self.shares, strict=True):
            given = (None, None) if party else (client, blind)
            step = self.protocols[party].offline(self.runs[party], self.ends[party], layer, *given)
            steps.append((layer.name, step))
        side_by_side(self.runs[party], "offline", steps, lambda number, prepared: kept[number].append(prepared))
        return kept

    def online(self, party: int, kept: list[list[Prepared]]) -> list[Words | None]:
        outputs = []
        for layer, (_, server, _), prepared in zip(self.layers, self.shares, kept, strict=True):
            given = server if party else None
            step = self.protocols[party].online(self.runs[party], layer, iter(prepared), given)
            outputs += side_by_side(self.runs[party], "online", [(layer.name, step)])
        return outputs


def layers_of(squaring: Squaring, *counts: int, batch: int = 200) -> list[SquaringLayer]:
    return [SquaringLayer(f"square{at}", squaring, count, batch, slice(None), count) for at, count in enumerate(counts)]


@pytest.mark.parametrize(("bits", "before", "after", "cot"), CASES)
def test_layers_are_right_and_cost_what_they_declare(bits: int, before: int, after: int, cot: str):
    squaring = Squaring(Ring(bits), before, after)
    layers, protocol = layers_of(squaring, 700, 17), Squares(COTS[cot])
    run = Inference(protocol, layers)
    traffic = run.runs[0].channel.ledger.traffic
    declared = protocol.setup_declared(layers)
    sent = [sum(message.nbytes for message in declared if message.sender == role) for role in ("client", "server")]
    assert [traffic["", "setup"].sent, traffic["", "setup"].received] == sent
    kept = in_parallel(lambda: run.offline(0), lambda: run.offline(1))
    for number, layer in enumerate(layers):
        sizes = tuple(sum(prepared.nbytes for prepared in party[number]) for party in kept)
        assert sizes == protocol.declared(layer).stored
    _, outputs = in_parallel(lambda: run.online(0, kept[0]), lambda: run.online(1, kept[1]))
    for layer, values, (client, _, blind), output in zip(layers, run.values, run.shares, outputs, strict=True):
        opened = squaring.modulus.add(output, blind)
        got = squaring.modulus.decode(squaring.modulus.sub(opened, run.protocols[1].served[layer.name].constant))
        replayed = protocol.replay(layer, values, client, run.coins[plain.coins_of(layer.name)])
        np.testing.assert_array_equal(got, replayed)
        root = values >> before
        assert ((got >= (root * root >> after) - 1) | (got >= (root + 1) ** 2 >> after)).all()
        for phase in ("offline", "online"):
            row = traffic[layer.name, phase]
            assert (row.sent, row.received) == protocol.declared(layer).traffic[phase]
    with pytest.raises(RuntimeError, match="used"):
        run.online(0, kept[0])
    with pytest.raises(RuntimeError, match="prepared before"):
        run.offline(1)


@pytest.mark.parametrize("cot", ["silent", "iknp"])
def test_no_transfer_and_no_hash_key_is_used_twice(cot: str, monkeypatch: pytest.MonkeyPatch):
    """The product takes both blinds of a transfer at the server and one at the client, the transfer back reversed."""
    hashed: dict[int, list[tuple[bytes, Words]]] = {}

    def recorded(labels: Words, context: Context, tweak: str) -> Words:
        calls = hashed.setdefault(threading.get_ident(), [])
        calls.append((context.keys(1, tweak).tobytes(), labels.reshape(-1, 2).copy()))
        return hash_labels(labels, context, tweak)

    monkeypatch.setattr(square, "hash_labels", recorded)
    layers = layers_of(Squaring(Ring(31), 7, 10), 23, 10, batch=10)
    run = Inference(Squares(COTS[cot]), layers)
    in_parallel(lambda: run.offline(0), lambda: run.offline(1))
    product, total = layers[0].squaring.product, sum(layer.count for layer in layers)
    counted: list[int] = []
    for calls in hashed.values():
        labels = np.concatenate([under for _, under in calls])
        assert len(np.unique(labels, axis=0)) == len(labels)
        counted.append(len(labels))
        by_key: dict[bytes, list[Words]] = {}
        for key, under in calls:
            by_key.setdefault(key, []).append(under)
        assert len(by_key) == 4 * (product + 1)  # of four batches
        for pair in by_key.values():
            assert len(pair) <= 2
            apart = pair[0] ^ pair[-1]  # by Delta everywhere: both are of the same transfers
            assert (apart == apart[0]).all()
    assert sorted(counted) == [total * (product + 2), total * (2 * product + 1)]
    run.ends[0].layers.clear()
    with pytest.raises(RuntimeError, match=r"batch 0 of layer 'square0' was garbled before under this Delta"):
        next(run.protocols[0].offline(run.runs[0], run.ends[0], layers[0], *run.shares[0][::2]))


def test_a_square_takes_nine_bytes_online_and_few_offline():
    layer = layers_of(Squaring(Ring(31), 7, 10), 188_416, batch=1 << 13)[0]
    for cot, most in (("silent", 46), ("iknp", 460)):
        protocol = Squares(COTS[cot])
        declared, reserved = protocol.declared(layer), protocol.setup_declared([layer])
        assert sum(declared.traffic["online"]) / layer.count <= 9.01
        base = sum(message.nbytes for message in Squares(COTS[cot]).setup_declared(layers_of(layer.squaring, 1)))
        offline = sum(declared.traffic["offline"]) + sum(message.nbytes for message in reserved) - base
        assert offline / layer.count <= most


def client_views(root: int, *, reuse: bool = False) -> dict[tuple[int, ...], Counter[int]]:
    """For k = 2 and all pads: by what the client sees of the product, how often each u occurs.

    ``reuse`` takes the second transfer's pads from the first's: what must not be done.
    """
    seen: dict[tuple[int, ...], Counter[int]] = {}
    for blinds in range(1 << 6):
        first, second = (blinds & 3, blinds >> 2 & 3), (blinds >> 4 & 1, blinds >> 5 & 1)
        second = (first[0] & 1, first[1] & 1) if reuse else second
        bits = root & 1, root >> 1
        u = (first[1] - first[0]) % 4
        correction = (u - second[1] + second[0]) % 2
        v = (first[bits[0]] + 2 * (second[bits[1]] + bits[1] * correction)) % 4
        assert (v - (first[0] + 2 * second[0]) - root * u) % 4 == 0
        view = first[bits[0]], second[bits[1]], correction
        seen.setdefault(view, Counter())[u] += 1
    return seen


@pytest.mark.parametrize("root", range(4))
def test_the_client_sees_nothing_of_u_in_the_product(root: int):
    views = client_views(root)
    assert len(views) == 4 * 2 * 2
    assert all(set(view.values()) == {1} and len(view) == 4 for view in views.values())


def test_a_pad_that_is_used_twice_would_show_u():
    assert any(len(view) < 4 for view in client_views(1, reuse=True).values())


def network(mask: np.ndarray | None, bits: int = 32) -> Program:
    """Two convolutions with squares of constants, a skip past the second, a ReLU or not, and a linear layer."""
    rng = np.random.default_rng(3)
    shift = 0 if mask is None else 5
    ops = (
        Conv2d("one", ("input",), 3, 3, 3, 5, 1, 1),
        Square("square", ("one",), 4, 6, shift, mask),
        Conv2d("two", ("square",), 3, 3, 3, 0, 1, 1),
        Add("sum", ("two", "square")),
        Square("last", ("sum",), 0, 5),
        Flatten("flat", ("last",)),
        Linear("head", ("flat",), 4, 3, 3),
        *([] if mask is None else [Relu("relu", ("head",), 3)]),
    )
    shapes = {"one": (3, 2, 3, 3), "two": (3, 3, 3, 3), "head": (4, 60), "square": (3,), "last": (3,)}
    weights = {
        name: Weights(rng.integers(-8, 9, shape), rng.integers(-99, 100, shape[:1])) for name, shape in shapes.items()
    }
    limits = {"square": 2000, "two": 6000, "sum": 7000, "last": 1 << 21}
    return Program(Ring(bits), (2, 5, 4), 4, 7, ops, weights, limits)


MASK = np.arange(60).reshape(3, 5, 4) % 3 == 0
PROGRAMS = {"squares alone": network(None), "ReLUs among them": network(MASK)}


@pytest.mark.parametrize("relu", ["gc-full", "gc-sign", "ot", "ot:cot=iknp"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_networks_of_squares_and_mixed_ones_run(name: str, relu: str):
    program, config = PROGRAMS[name], replace(ReluConfig.parse(relu), batch=7)
    program.check()
    x = np.random.default_rng(5).integers(-7, 8, (1, 2, 5, 4))
    run, plan = run_both(program, x[0], relu=config), Plan(program.public(), config)
    replayed = plain.run(program, x, client=run.client_shares, protocols=Protocols(config))
    assert np.array_equal(run.output, replayed[0])
    assert plan.steps.stored == run.stored
    report = plan.declared()
    for layer in report.layers:
        for phase in ("offline", "online"):
            rows = report.only(layer=layer, phase=phase).rows
            sent = sum(row.bytes_up for row in rows), sum(row.bytes_down for row in rows)
            counted = run.client.traffic.get((layer, phase))
            assert sent == ((counted.sent, counted.received) if counted else (0, 0))
    squares = [row.squares for row in report.only(phase="online").rows]
    assert sum(squares) == program.squares == 120 - (name != "squares alone") * 20
    mixed = report.only(layer="square", phase="online")
    assert sum(row.rounds for row in mixed.rows) == 1
    assert program.relus == (0 if name == "squares alone" else 24)
    exact = slow(program, x[0])[program.outputs[0]].astype(np.int64)
    assert np.array_equal(plain.run(program, x)[0], exact)
    assert np.array_equal(plain.run(from_bytes(to_bytes(program)), x)[0], exact)


def test_a_square_costs_one_wait_and_its_client_share_is_chosen_offline():
    plan = Plan(PROGRAMS["squares alone"].public())
    assert sum(row.rounds for row in plan.declared().only(phase="online").rows) == 3  # two squares, and the output
    assert plan.levels[0] == [op for op in plan.program.ops if isinstance(op, Conv2d | Linear)]


def test_outside_its_range_the_plain_interpreter_raises_and_a_program_is_refused():
    op = Square("square", ("input",), 1, 1)
    secret = {"square": Weights(np.array([3]), np.array([0]))}
    limit = op.squaring(Ring(12)).limit
    program = Program(Ring(12), (1,), 4, limit - 3, (op,), secret)
    program.check()
    for protocols in (None, Protocols()):
        plain.run(program, np.array([[limit - 3]]), protocols=protocols)
        beyond = replace(program, input_bound=limit)
        with pytest.raises(OverflowError, match=rf"input: values from {limit + 1} to .* square can square: {limit}"):
            plain.run(beyond, np.array([[limit - 2]]), protocols=protocols)
    with pytest.raises(ProgramError, match=f"input: values may reach {limit + 1}, which square squares, and only"):
        replace(program, input_bound=limit - 2).check()
    with pytest.raises(ProgramError, match="input: values may reach"):
        Model(beyond, Plan(beyond.public()))


@pytest.mark.parametrize(
    ("op", "modulus", "words"),
    [
        (Square("s", ("input",), 1, 1), Field(CIRCA_PRIME), "s: squares are computed over a ring, not over"),
        (Square("s", ("input",), 4, 0), Ring(6), "s: a square over"),
        (Square("s", ("input",), 5, 0), Ring(20), "s: drops 5 and 0 bits around the square of 4"),
        (Square("s", ("input",), 1, 1, 3, np.ones((2, 2), np.bool_)), Ring(20), "s: its ReLUs drop 3 bits; .* drop -1"),
        (Square("s", ("input",), 2, 2, 2, np.ones(4, np.bool_)), Ring(20), "s: its mask is bool of shape"),
    ],
)
def test_squares_that_do_not_fit_are_refused(op: Square, modulus: Ring | Field, words: str):
    with pytest.raises(ProgramError, match=words):
        Program(modulus, (2, 2), 4, 9, (op,))
