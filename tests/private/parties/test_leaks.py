"""What must not show: secrets in texts and files, inputs in lengths, one key at two places."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import algorithms
from support.programs import random_inputs, random_program, run_both, squares_relus_and_signs
from support.relay import PATIENT, Attack, Fault, Keys, Outcome, Relay, Talk, converse

from deepreshape.private.arith import rng as streams
from deepreshape.private.arith.ring import Ring, Words
from deepreshape.private.crypto.labels import Context
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.sessions import InferenceClient, serve
from deepreshape.private.parties.store import Store
from deepreshape.private.program.ops import Flatten, Linear, Relu, Sign, Square, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols.base import ReluProtocol
from deepreshape.private.transport.tls import Endpoint

INPUT = np.array([[1234567891, -1987654321, 1357924681], [1122334455, -1029384756, 1470258369]])
BIAS = np.array([123456789012, -987654321098, 135792468013, 246801357924])
SHIFT = np.array([-135797531864, 246813579753, -112233445566, 198765432123])
THRESHOLD = np.array([271845904523, -173205080756, 577215664901, -693147180559])
CONSTANT = np.array([-314159265358, 271828182845, -161803398874, 141421356237])


def planted_program() -> Program:
    """Inputs and biases of ten digits and more, which nothing shows by chance."""
    rng = np.random.default_rng(1)
    ops = (
        Flatten("flat", ("input",)),
        Linear("fc", ("flat",), 4, 3, 3),
        Square("square", ("fc",), 38, 0),
        Sign("sign", ("fc",)),
        Relu("relu", ("fc",), 3, np.array([True, False, True, True])),
    )
    weights = {"fc": Weights(rng.integers(-8, 9, (4, 6)), BIAS), "square": Weights(SHIFT, CONSTANT)}
    weights["sign"] = Weights(THRESHOLD, np.zeros(4, np.int64))
    return Program(Ring(44), (2, 3), 40, 1 << 31, ops, weights, outputs=("relu",))


def with_sign(program: Program) -> Program:
    """The signs of what the program gave."""
    last = program.ops[-1].name
    none = np.zeros(program.values[last].shape[0], np.int64)
    ops, weights = (*program.ops, Sign("sign", (last,))), dict(program.weights) | {"sign": Weights(none, none)}
    return replace(program, ops=ops, weights=weights, outputs=("sign",))


class Watch:
    """Knows the secrets of a run, and looks for them in whatever form they would be written."""

    def __init__(self, keys: Keys) -> None:
        self.numbers: set[int] = {*map(int, [*INPUT.reshape(-1), *BIAS, *SHIFT, *THRESHOLD, *CONSTANT])}
        self.octets: set[bytes] = set()
        for credentials in (keys.client, keys.server):
            lines = credentials.key.read_text().splitlines()
            self.octets |= {line.encode() for line in lines if "PRIVATE" not in line}

    def add_share(self, share: Words) -> None:
        self.numbers |= {int(number) for number in share.reshape(-1) if number >= 10**10}

    def found_in(self, data: bytes) -> list[bytes]:
        words = [str(abs(number)).encode() for number in self.numbers]
        words += [number.to_bytes(8, "little", signed=True) for number in self.numbers]
        for secret in self.octets:
            words += [secret, secret.hex().encode(), repr(secret)[2:-1].encode()]
        return [word for word in words if word in data]

    def check(self, texts: Iterable[str]) -> None:
        together = "\n".join(texts)
        assert self.found_in(together.encode()) == [], together


def our_objects() -> Iterator[Any]:
    """Every object of the private runtime that is alive."""
    for thing in gc.get_objects():
        if str(getattr(type(thing), "__module__", "")).startswith("deepreshape.private"):
            yield thing


@pytest.mark.parametrize("relu", ["gc-full", "ot"])
def test_planted_secrets_are_in_no_text_and_no_file(
    relu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(0)
    keys = Keys.make(tmp_path / "keys")
    watch = Watch(keys)
    drawn = os.urandom

    def remembered(count: int) -> bytes:
        data = drawn(count)
        watch.octets.add(data)
        return data

    monkeypatch.setattr(streams.os, "urandom", remembered)  # seeds of labels, offsets and masks
    program = planted_program()
    plan = Plan(program.public(), ReluConfig.parse(relu))
    model = Model(program, plan)
    stores = {role: Store(tmp_path / role) for role in ("client", "server")}
    texts: list[str] = []

    def look(when: str, share: Words) -> None:
        watch.add_share(share)
        if when == "relu":
            texts.extend(map(repr, our_objects()))

    def party(endpoint: Endpoint, port: int) -> InferenceClient:
        return InferenceClient(endpoint, "127.0.0.1", port, plan, stores["client"])

    def prepare(endpoint: Endpoint, port: int) -> bytes:
        prepared = party(endpoint, port).prepare(look)
        texts.append(repr(prepared))
        return prepared.batch.encode()

    def query(endpoint: Endpoint, port: int) -> bytes:
        answer = party(endpoint, port).infer(INPUT)
        texts.extend(map(repr, our_objects()))
        return answer.output.tobytes()

    def attend(channel: Any) -> bytes:
        return bytes([serve(channel, model, stores["server"]) > 0])

    def outcomes(act: Any, attack: Attack | None = None) -> tuple[Outcome, Outcome]:
        if "query" in act.__name__ and not any((tmp_path / "client" / "fresh").iterdir()):
            outcomes(prepare)
        ends = converse(keys, PATIENT, Relay(attack), frames=True, talk=Talk(act, attend))
        for end in ends:
            if isinstance(end, Exception):
                texts.extend((str(end), repr(end), repr(end.__cause__), repr(end.__context__)))
        return ends

    assert isinstance(outcomes(query)[0], bytes)
    faults = [Attack(Fault.FLIP, way, k, 0) for way in ("up", "down") for k in (1, 3, 5)]
    assert all(isinstance(outcomes(act, fault)[0], Exception) for fault in faults for act in (prepare, query))
    outcomes(prepare)
    watch.octets |= {path.read_bytes() for path in tmp_path.glob("*/keys/*.key")}
    assert len(watch.numbers) > 20
    assert len(watch.octets) > 10
    told = capfd.readouterr()
    watch.check({*texts, caplog.text, told.out, told.err})
    written = [path for role in stores for path in (tmp_path / role).rglob("*") if path.is_file()]
    assert len(written) > 10
    for path in written:
        if path.parent.name != "keys":  # a batch's key lies there and nowhere else
            assert watch.found_in(path.read_bytes()) == [], path


@pytest.mark.parametrize("kind", ["prepare", "query"])
def test_lengths_on_the_network_do_not_depend_on_inputs_or_weights(kind: str, tmp_path: Path) -> None:
    """What an attacker below TLS sees: the lengths of all records, both ways, in order."""
    keys = Keys.make(tmp_path / "keys")
    program = squares_relus_and_signs()
    other = replace(
        program, weights={name: Weights(0 * layer.weight, 0 * layer.bias) for name, layer in program.weights.items()}
    )
    seen: list[list[tuple[str, int]]] = []
    runs = [(program, random_inputs(program, 1, 1)[0]), (program, 0 * INPUT), (other, 0 * INPUT + 99)]
    for number, (variant, x) in enumerate(runs):
        stores = {role: Store(tmp_path / f"{role}-{number}") for role in ("client", "server")}
        model = Model(variant, Plan(variant.public()))

        def visit(endpoint: Endpoint, port: int, stores: Any = stores, x: Any = x, asked: str = kind) -> bytes:
            client = InferenceClient(endpoint, "127.0.0.1", port, Plan(program.public()), stores["client"])
            return client.infer(x).output.tobytes() if asked == "query" else client.prepare().batch.encode()

        def attend(channel: Any, stores: Any = stores, model: Model = model) -> bytes:
            return bytes([serve(channel, model, stores["server"]) > 0])

        if kind == "query":
            converse(keys, PATIENT, talk=Talk(partial(visit, asked="prepare"), attend))
        relay = Relay()
        ends = converse(keys, PATIENT, relay, talk=Talk(visit, attend))
        assert not any(isinstance(end, Exception) for end in ends)
        seen.append([(way, len(unit)) for way in relay.seen for unit in relay.seen[way]])
    assert len(seen[0]) > 20
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("relu", ["gc-full", "gc-sign", "gc-stochastic:drop=2", "gc-full beside squares"])
def test_no_key_is_set_up_twice_by_a_party_nor_again_in_another_session(
    relu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of AES is the seed of a stream or the tweak of a hash: neither may come back, nor a place of garbling."""
    used: list[tuple[int, str, bytes]] = []
    aes, keys_of = algorithms.AES, Context.keys

    def recorded_aes(key: Any) -> Any:
        used.append((threading.get_ident(), "stream" if len(bytes(key)) == 32 else "hash", bytes(key)))
        return aes(key)

    def recorded(context: Context, count: int, tweak: str = "") -> Any:
        keys = keys_of(context, count, tweak)
        used.extend((threading.get_ident(), "pad" if tweak else "gate", key.tobytes()) for key in keys)
        return keys

    for name, module in list(sys.modules.items()):
        if name.startswith("deepreshape.private.") and hasattr(module, "algorithms"):
            monkeypatch.setattr(module, "algorithms", SimpleNamespace(AES=recorded_aes))
    monkeypatch.setattr(Context, "keys", recorded)
    program = squares_relus_and_signs() if relu.endswith("squares") else with_sign(random_program(13))
    config = ReluConfig.parse(relu.removesuffix(" beside squares"))
    plan = Plan(program.public(), config)
    before: set[bytes] = set()
    roles: tuple[Role, ...] = ("server", "client")
    for garbler in (*roles, *roles):
        used.clear()
        run_both(program, random_inputs(program, 1, 1)[0], garbler, 5, config)
        counted = Counter(used)
        assert sum(kind == "gate" for _, kind, _ in used) > 100
        again = Counter(kind for (_, kind, _), times in counted.items() if times > 1)
        # whoever knows both labels of a wire makes the pads of both under one tweak, whose key comes of a stream each
        # time; and a garbler expands the seed of its own labels once more when it sends them
        assert set(again) == {"pad", "stream"}
        assert again["stream"] == again["pad"] + sum(isinstance(step.protocol, ReluProtocol) for step in plan.steps)
        assert max(counted.values()) == 2
        now = {key for _, _, key in used}
        assert not now & before
        before |= now
