"""Two parties compute what the plain interpreter computes, send what they declared, and show nothing by lengths."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import check_declared, grouped, interleaved, random_inputs, random_program, run_both

from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.parties import client, server
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.preprocessing import InMemory
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.ops import Conv2d, Linear, ProgramError, Raise, Relu, Truncate, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols import he_workers
from deepreshape.private.protocols.base import Prepared, Run
from deepreshape.private.protocols.choose import Protocols
from deepreshape.private.transport.memory import memory_pair

few = settings(max_examples=4, deadline=None, derandomize=True)


@pytest.mark.parametrize("garbler", ["server", "client"])
@pytest.mark.parametrize("prime", [False, True])
@few
@given(seed=st.integers(0, 10**6))
def test_two_parties_equal_plain_and_declared_equals_sent(garbler: Role, prime: bool, seed: int) -> None:
    program = random_program(seed, prime=prime)
    x = random_inputs(program, 1, seed)
    run = run_both(program, x[0], garbler)
    expected = plain.run(program, x, client=run.client_shares, protocols=Protocols())
    assert np.array_equal(run.output, expected[0])
    check_declared(program, garbler, (run.client, run.server), run.stored)


@pytest.mark.parametrize("workers", [1, 2])
def test_packed_responses_equal_plain_and_declared_equals_sent(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(he_workers, "PRODUCTS_EACH", 1)
    program = interleaved()
    plan = Plan(program.public())
    assert plan.parameters is not None
    assert plan.parameters.galois_keys >= 1
    assert plan.declared().only(kind="keys").bytes == plan.parameters.setup_bytes > plan.parameters.fresh_bytes
    assert any(layout.switches for layout in plan.layouts.values())
    x = random_inputs(program, 1, 1)
    run = run_both(program, x[0], workers=workers)
    assert np.array_equal(run.output, plain.run(program, x, client=run.client_shares, protocols=Protocols())[0])
    check_declared(program, "server", (run.client, run.server), run.stored)


@pytest.mark.parametrize("modulus", [Ring(22), Field(CIRCA_PRIME)])
def test_groups_that_share_ciphertexts_equal_plain(modulus: Ring | Field) -> None:
    program = grouped(modulus)
    assert [layer.copies for layer in Plan(program.public()).convolutions.values()] == [2, 2]
    x = random_inputs(program, 1, 1)
    run = run_both(program, x[0])
    assert np.array_equal(run.output, plain.run(program, x, client=run.client_shares, protocols=Protocols())[0])
    check_declared(program, "server", (run.client, run.server), run.stored)


@pytest.mark.parametrize("garbler", ["server", "client"])
@pytest.mark.parametrize("prime", [False, True])
@pytest.mark.parametrize("text", ["gc-sign", "gc-stochastic:drop=3,pos-zero", "gc-stochastic:drop=2,neg-pass"])
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_a_garbled_sign_equals_plain_with_the_same_shares(garbler: Role, prime: bool, text: str, seed: int) -> None:
    program, relu = random_program(seed, prime=prime), ReluConfig.parse(text)
    x = random_inputs(program, 1, seed)
    run = run_both(program, x[0], garbler, relu=relu)
    expected = plain.run(program, x, client=run.client_shares, protocols=Protocols(relu))
    assert np.array_equal(run.output, expected[0])
    check_declared(program, garbler, (run.client, run.server), run.stored, relu)


@pytest.mark.parametrize("prime", [False, True])
@pytest.mark.parametrize(
    "text", ["ot", "ot:tree", "ot:drop=2,neg-pass", "ot:drop=3,tree,cot=iknp", "ot:cot=softspoken"]
)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_transfers_equal_plain_with_the_same_shares(prime: bool, text: str, seed: int) -> None:
    program, relu = random_program(seed, prime=prime), ReluConfig.parse(text)
    x = random_inputs(program, 1, seed)
    run = run_both(program, x[0], relu=relu)
    expected = plain.run(program, x, client=run.client_shares, protocols=Protocols(relu))
    assert np.array_equal(run.output, expected[0])
    check_declared(program, "server", (run.client, run.server), run.stored, relu)


@pytest.mark.parametrize("garbler", ["server", "client"])
@pytest.mark.parametrize("word", ["gc-sign:window", "gc-stochastic:window,pos-zero"])
def test_each_layer_takes_its_own_window(garbler: Role, word: str) -> None:
    program = masked_program(np.ones((2, 3, 3), np.bool_))
    conv, relu = program.ops
    assert isinstance(relu, Relu)
    high = program.bounds()["conv"].bit_length() + 2
    windowed = replace(program, ops=(conv, replace(relu, low=3, high=high)))
    relu, x = ReluConfig.parse(word), random_inputs(windowed, 1, 5)
    run = run_both(windowed, x[0], garbler, relu=relu)
    expected = plain.run(windowed, x, client=run.client_shares, protocols=Protocols(relu))
    assert np.array_equal(run.output, expected[0])
    check_declared(windowed, garbler, (run.client, run.server), run.stored, relu)
    whole = Plan(windowed.public(), replace(relu, window=False))
    narrow = Plan(windowed.public(), relu)
    ignored = 20 - high + (3 if relu.protocol == "gc-stochastic" else 0)
    saved = _gates(whole) - _gates(narrow)
    assert saved == ignored > 0


def test_a_value_that_a_sign_test_has_no_room_for_is_refused() -> None:
    program = masked_program(np.ones((2, 3, 3), np.bool_))
    conv, relu = program.ops
    assert isinstance(relu, Relu)
    narrow = replace(program, ops=(conv, replace(relu, high=8)))
    plan = Plan(narrow.public(), relu=ReluConfig("gc-sign", window=True))
    with pytest.raises(ProgramError, match=r"^conv: values may reach \d+, which relu takes, and only 127 fits"):
        server.Model(narrow, plan)
    with pytest.raises(OverflowError, match=r"^conv: .*what relu can take by gc-sign:window: 127"):
        plain.run(narrow, np.full((1, 1, 3, 3), 15), protocols=plan.protocols, rng=Randomness())
    with pytest.raises(ProgramError, match=r"^relu: a sign test of bits 19 to 19"):
        Plan(program.public(), relu=ReluConfig("gc-stochastic", drop=19))


@pytest.mark.parametrize("garbler", ["server", "client"])
def test_without_linearised_positions_the_nearest_comes_out_exactly(garbler: Role) -> None:
    program = masked_program(np.ones((2, 3, 3), np.bool_))
    x = random_inputs(program, 1, 1)
    assert np.array_equal(run_both(program, x[0], garbler).output, plain.run(program, x)[0])


@pytest.mark.parametrize("prime", [False, True])
def test_a_raised_value_costs_no_message(prime: bool) -> None:
    program = random_program(7, prime=prime)
    (raised,) = (op for op in program.ops if isinstance(op, Raise))
    x = random_inputs(program, 1, 7)
    run = run_both(program, x[0])
    assert np.array_equal(run.output, plain.run(program, x, client=run.client_shares, protocols=Protocols())[0])
    assert not any(layer == raised.name for layer, _ in run.client.traffic)
    check_declared(program, "server", (run.client, run.server), run.stored)


def test_linearised_positions_are_off_by_one_unit_at_most_and_do_differ() -> None:
    program = masked_program(np.zeros((2, 3, 3), np.bool_))
    x = random_inputs(program, 1, 1)
    difference = run_both(program, x[0]).output - plain.run(program, x)[0]
    assert np.abs(difference).max() == 1


def _gates(plan: Plan) -> int:
    """AND gates of a ReLU of the program."""
    (step,) = plan.by_operation["relu"]
    return step.layer.circuit.and_gates


def masked_program(mask: np.ndarray) -> Program:
    rng = np.random.default_rng(3)
    conv = Conv2d("conv", ("input",), 2, 3, 3, 4, padding=1)
    weights = Weights(rng.integers(-8, 9, (2, 1, 3, 3)), rng.integers(-99, 99, 2))
    return Program(Ring(20), (1, 3, 3), 4, 15, (conv, Relu("relu", ("conv",), 4, mask)), {"conv": weights})


@pytest.mark.parametrize(("program", "factor"), [(random_program(11), -1), (grouped(Ring(22)), 0)])
def test_lengths_and_counts_of_frames_do_not_depend_on_inputs_or_weights(program: Program, factor: int) -> None:
    changed = {k: Weights(factor * v.weight, v.bias // 2) for k, v in program.weights.items()}
    other = replace(program, weights=changed)
    for garbler in ("server", "client"):
        runs = [run_both(program, random_inputs(program, 1, seed)[0], garbler) for seed in (1, 2)]
        runs.append(run_both(other, np.zeros(program.input_shape, np.int64), garbler))
        assert runs[0].client.traffic == runs[1].client.traffic == runs[2].client.traffic
        assert runs[0].server.traffic == runs[1].server.traffic == runs[2].server.traffic


def test_client_shares_are_fresh() -> None:
    program = masked_program(np.ones((2, 3, 3), np.bool_))
    x = random_inputs(program, 1, 5)[0]
    first, second = run_both(program, x), run_both(program, x)
    for name in program.values:
        assert not np.array_equal(first.client_shares[name], second.client_shares[name])


@pytest.mark.parametrize("garbler", ["server", "client"])
def test_runs_that_share_a_homomorphic_key_share_nothing_else(garbler: Role) -> None:
    program = masked_program(np.array([True, False, True] * 6).reshape(2, 3, 3))
    plan = Plan(program.public(), ReluConfig(garbler=garbler))
    model, ends = server.Model(program, plan), memory_pair()
    kept = [(InMemory(), InMemory()) for _ in range(2)]

    def act_as_client() -> None:
        key = client.offline(Run(ends[0], b"one", "client", Randomness()), plan, kept[0][0])
        assert client.offline(Run(ends[0], b"two", "client", Randomness()), plan, kept[1][0], key=key) is key

    def act_as_server() -> None:
        responder = model.offline(Run(ends[1], b"one", "server", Randomness()), kept[0][1])
        assert model.offline(Run(ends[1], b"two", "server", Randomness()), kept[1][1], responder=responder) is responder

    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(act) for act in (act_as_client, act_as_server)]
        assert [done.result() for done in both] == [None, None]
    assert sum(row.sent + row.received for row in ends[0].ledger.traffic.values()) == plan.offline_bytes(2)

    x = random_inputs(program, 2, 1)
    offsets = []
    for number, session in enumerate((b"one", b"two")):
        client_store, server_store = kept[number]
        garbling = server_store if garbler == "server" else client_store
        head, *rest = (prepared.take() for prepared in garbling.get(plan.stream("garble", "relu")))
        offsets.append(head["offset"].tolist())
        for arrays in (head, *rest):
            garbling.put(plan.stream("garble", "relu"), Prepared(arrays))
        with ThreadPoolExecutor(1) as threads:
            done = threads.submit(model.online, Run(ends[1], session, "server", Randomness()), server_store)
            output = client.online(Run(ends[0], session, "client", Randomness()), plan, client_store, x[number])
            done.result()
        assert np.abs(output - plain.run(program, x[number][None])[0]).max() <= 1
    assert offsets[0] != offsets[1]


def test_material_is_used_once_and_a_wrong_input_uses_none() -> None:
    program = masked_program(np.ones((2, 3, 3), np.bool_))
    plan = Plan(program.public())
    model, ends = server.Model(program, plan), memory_pair()
    runs = Run(ends[0], b"s", "client", Randomness()), Run(ends[1], b"s", "server", Randomness())
    kept = InMemory(), InMemory()
    x = random_inputs(program, 1, 5)[0]
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(model.offline, runs[1], kept[1])
        client.offline(runs[0], plan, kept[0])
        done.result()
        with pytest.raises(ValueError, match=r"absolute values up to 0\.9375"):
            client.online(runs[0], plan, kept[0], np.full(program.input_shape, 16))
        done = threads.submit(model.online, runs[1], kept[1])
        output = client.online(runs[0], plan, kept[0], x)
        done.result()
    assert np.abs(output - plain.run(program, x[None])[0]).max() <= 1
    with pytest.raises(RuntimeError, match="read before or never made"):
        client.online(runs[0], plan, kept[0], x)


def test_a_model_is_refused_for_another_plan_and_a_plan_for_weights() -> None:
    program = random_program(3)
    with pytest.raises(ValueError, match="not for"):
        server.Model(random_program(4), Plan(program.public()))
    with pytest.raises(ValueError, match=r"program\.public"):
        Plan(program)


def test_a_layer_too_wide_for_the_encryption_is_named() -> None:
    ops = Linear("classifier.0", ("input",), 2, 30, 0), Truncate("cut", ("classifier.0",), 0)
    with pytest.raises(ProgramError, match=r"^classifier\.0: no parameters are known"):
        Plan(Program(Ring(63), (4,), 0, 1, ops))
