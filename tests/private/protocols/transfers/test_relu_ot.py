"""The protocol ``ot`` between two parties: right, and bytes and stored arrays as declared, whatever its settings."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from support.two_parties import fixed, in_parallel

from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring
from deepreshape.private.program.ops import ProgramError, Relu, Sign
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.base import Prepared, Run, side_by_side
from deepreshape.private.protocols.choose import relu_protocol
from deepreshape.private.protocols.transfers.relu_ot import TREE_SAVES, OtLayer, ReluOt
from deepreshape.private.protocols.transfers.transfer_relu import ChainRelu, TreeRelu
from deepreshape.private.transport.memory import memory_pair

CASES: list[tuple[str, Ring | Field, int]] = [
    ("ot", Ring(37), 12),
    ("ot:window", Ring(37), 12),
    ("ot:window,neg-pass,batch=333", Ring(37), 12),
    ("ot:tree,cot=softspoken,batch=500", Ring(29), 10),
    ("ot:chain,cot=iknp", Ring(24), 0),
    ("ot:tree,cot=iknp,batch=100", Field(CIRCA_PRIME), 5),
    ("ot:drop=4", Field(CIRCA_PRIME), 1),
    ("ot:drop=4,neg-pass,tree", Field(CIRCA_PRIME), 5),
]


class Inference:
    """Both parties with shares of random values, all layers side by side offline, one after the other online."""

    def __init__(self, protocol: ReluOt, layers: list[OtLayer], thresholds: Mapping[str, np.ndarray] = {}) -> None:
        here, there = memory_pair()
        self.layers, self.protocols = layers, (protocol, replace(protocol, thresholds=thresholds))
        self.runs = Run(here, b"id", "client", fixed(1)), Run(there, b"id", "server", fixed(2))
        self.ends = in_parallel(lambda: self.setup(0), lambda: self.setup(1))
        self.values, self.shares = [], []
        for number, layer in enumerate(layers):
            modulus, room = layer.relu.modulus, min(protocol.max_input(layer), 1 << 20)
            values = np.random.default_rng(number).integers(-room + 1, room, layer.count)
            values[:9] = np.arange(9) - 4
            client, mask = (modulus.random(layer.count, fixed(10 + number + at)) for at in (0, 100))
            self.values.append(values)
            self.shares.append((client, modulus.sub(modulus.encode(values), client), mask))

    def setup(self, party: int):
        with self.runs[party].channel.ledger.at("", "setup"):
            return self.protocols[party].setup(self.runs[party], self.layers)

    def offline(self, party: int) -> list[list[Prepared]]:
        kept: list[list[Prepared]] = [[] for _ in self.layers]
        steps = []
        for layer, (client, _, mask) in zip(self.layers, self.shares, strict=True):
            given = (None, None) if party else (client, mask)
            steps.append((layer.name, self.protocols[party].offline(self.runs[party], self.ends[party], layer, *given)))
        side_by_side(self.runs[party], "offline", steps, lambda number, prepared: kept[number].append(prepared))
        return kept

    def online(self, party: int, kept: list[list[Prepared]]) -> list[np.ndarray | None]:
        outputs = []
        for layer, (_, server, _), prepared in zip(self.layers, self.shares, kept, strict=True):
            step = self.protocols[party].online(self.runs[party], layer, iter(prepared), server if party else None)
            outputs += side_by_side(self.runs[party], "online", [(layer.name, step)])
        return outputs


def layers_of(protocol: ReluOt, modulus: Ring | Field, shift: int, *counts: int) -> list[OtLayer]:
    ops = [Relu(f"relu{at}", ("x",), shift=shift, low=6, high=14) for at in range(len(counts))]
    return [protocol.layer(modulus, op, count) for op, count in zip(ops, counts, strict=True)]


@pytest.mark.parametrize(("word", "modulus", "shift"), CASES, ids=str)
def test_layers_are_right_and_cost_what_they_declare(word: str, modulus: Ring | Field, shift: int):
    protocol = relu_protocol(ReluConfig.parse(word))
    layers = layers_of(protocol, modulus, shift, 700, 17)
    run = Inference(protocol, layers)
    traffic = run.runs[0].channel.ledger.traffic
    sent = {
        role: sum(m.nbytes for m in protocol.setup_declared(layers) if m.sender == role)
        for role in ("client", "server")
    }
    assert (traffic["", "setup"].sent, traffic["", "setup"].received) == (sent["client"], sent["server"])
    kept = in_parallel(lambda: run.offline(0), lambda: run.offline(1))
    for number, layer in enumerate(layers):
        sizes = tuple(sum(prepared.nbytes for prepared in party[number]) for party in kept)
        assert sizes == protocol.declared(layer).stored
    _, outputs = in_parallel(lambda: run.online(0, kept[0]), lambda: run.online(1, kept[1]))
    for layer, values, (client, _, mask), output in zip(layers, run.values, run.shares, outputs, strict=True):
        got = modulus.decode(modulus.add(output, mask))
        np.testing.assert_array_equal(got, protocol.replay(layer, values, client))
        for phase in ("offline", "online"):
            row = traffic[layer.name, phase]
            assert (row.sent, row.received) == protocol.declared(layer).traffic[phase]
    with pytest.raises(RuntimeError, match="used"):
        run.online(0, kept[0])


@pytest.mark.parametrize(
    "word", ["ot", "ot:drop=4,neg-pass", "ot:window,tree,batch=100", "ot:window,neg-pass", "ot:chain,cot=iknp"]
)
def test_signs_beside_relus_cost_what_they_declare_and_are_exact_without_a_window(word: str):
    """Fixed numbers of low bits are for ReLUs alone, and windows for signs that have one by calibration."""
    ring, protocol = Ring(29), relu_protocol(ReluConfig.parse(word))
    assert isinstance(protocol, ReluOt)
    ops = [Sign(f"sign{high}", ("x",), high) for high in (2, 11, 0)]
    ops += [Sign("narrow", ("x",), 20, 0, 9), Sign("seen", ("x",), 0, 5, 14)]
    signs = [protocol.layer(ring, op, 300) for op in ops]
    thresholds = {layer.name: ring.encode(np.arange(300) % 7 - 3) for layer in signs[1:]}
    thresholds[signs[0].name] = np.zeros(300, np.uint64)
    run = Inference(protocol, [*layers_of(protocol, ring, 4, 50), *signs], thresholds)
    kept = in_parallel(lambda: run.offline(0), lambda: run.offline(1))
    _, outputs = in_parallel(lambda: run.online(0, kept[0]), lambda: run.online(1, kept[1]))
    traffic = run.runs[0].channel.ledger.traffic
    for number, layer in enumerate(run.layers):
        declared, output = protocol.declared(layer), outputs[number]
        for phase in ("offline", "online"):
            row = traffic[layer.name, phase]
            assert (row.sent, row.received) == declared.traffic[phase]
        assert tuple(sum(prepared.nbytes for prepared in party[number]) for party in kept) == declared.stored
        assert output is not None
        got = ring.decode(ring.add(output, run.shares[number][2]))
        if number:
            moved = run.values[number] + ring.decode(thresholds[layer.name])
            np.testing.assert_array_equal(got, protocol.replay(layer, moved, run.shares[number][0]))
            inside = np.abs(moved) <= protocol.max_input(layer)
            if "window" not in word or layer.name != "seen":
                np.testing.assert_array_equal(got[inside], np.where(moved > 0, 1, -1)[inside])
            assert {*got.tolist()} == {-1, 1}
            assert declared.counts["online"] == {"signs": 300}
        else:
            np.testing.assert_array_equal(got, protocol.replay(layer, run.values[0], run.shares[0][0]))


def test_a_narrow_sign_costs_a_few_bytes_and_primes_are_refused():
    protocol = relu_protocol(ReluConfig.parse("ot"))
    declared = protocol.declared(protocol.layer(Ring(37), Sign("s", ("x",), 11), 8000))
    assert sum(declared.traffic["online"]) == 8000 * 13.625
    assert sum(declared.traffic["offline"]) == 8000 * 5.875
    with pytest.raises(ProgramError, match="s: signs are computed over a ring, not over Field"):
        protocol.layer(Field(CIRCA_PRIME), Sign("s", ("x",)), 8)


def test_a_layer_is_prepared_once():
    protocol = relu_protocol(ReluConfig.parse("ot"))
    run = Inference(protocol, layers_of(protocol, Ring(20), 4, 9))
    in_parallel(lambda: run.offline(0), lambda: run.offline(1))
    with pytest.raises(RuntimeError, match="prepared before"):
        run.offline(1)


def test_a_large_layer_takes_the_tree_where_it_saves_more_than_its_trips():
    protocol = relu_protocol(ReluConfig.parse("ot"))
    saved = 108.25 - 35
    few, many = (int(TREE_SAVES * 6 / saved * factor) for factor in (0.99, 1.01))
    small, large, window = (
        protocol.layer(Ring(37), Relu("r", ("x",), shift=12), few),
        protocol.layer(Ring(37), Relu("r", ("x",), shift=12), many),
        relu_protocol(ReluConfig.parse("ot:window")).layer(Ring(37), Relu("r", ("x",), shift=12, low=6, high=14), many),
    )
    assert [type(layer.relu) for layer in (small, large, window)] == [ChainRelu, TreeRelu, ChainRelu]


def test_a_shift_that_leaves_no_bits_is_refused_with_the_layers_name():
    protocol = relu_protocol(ReluConfig.parse("ot:drop=19"))
    with pytest.raises(ProgramError, match=r"^r: "):
        protocol.layer(Ring(20), Relu("r", ("x",), shift=4), 8)


@pytest.mark.parametrize("word", ["ot", "ot:window", "ot:tree", "ot:drop=3,neg-pass,chain,cot=iknp,batch=100"])
def test_words_are_the_inverse_of_configs(word: str):
    assert str(ReluConfig.parse(word)) == word


def test_exact_is_another_word_for_the_default():
    assert ReluConfig.parse("ot:exact") == ReluConfig.parse("ot")
    with pytest.raises(ValueError, match="unknown setting 'exact'"):
        ReluConfig.parse("ot:window,exact")
    with pytest.raises(ValueError, match="ot takes no garbler"):
        ReluConfig.parse("ot:garbler=client")
    with pytest.raises(ValueError, match="gc-sign takes no cot"):
        ReluConfig.parse("gc-sign:cot=iknp")
