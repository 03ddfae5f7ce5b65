"""The engines give the same bytes: tables, labels, hashes and transposes, whoever garbles and whoever evaluates."""

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.circuits import evaluate_plain
from support.programs import random_inputs, random_program, run_both

from deepreshape.private.arith.ring import DELPHI_PRIME, PRIME_32, Field, Modulus, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto import backend as engines
from deepreshape.private.crypto.backend import Engine, engine, engine_name, named, using
from deepreshape.private.crypto.backend.numpy import Reference
from deepreshape.private.crypto.circuit import Builder, Circuit
from deepreshape.private.crypto.gc.halfgates import table_shape
from deepreshape.private.crypto.gc.relu_circuits import relu_circuit
from deepreshape.private.crypto.labels import Context, Delta, permute_bits, pick
from deepreshape.private.parties import client, server
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.ops import Relu
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols.choose import Protocols

try:
    from deepreshape.private.crypto.backend.fused import Fused, widths

    HERE = widths()
except ImportError:
    HERE = []

FUSED = [
    pytest.param(
        lanes,
        threads,
        id=f"{lanes} labels, {threads} threads",
        marks=pytest.mark.skipif(lanes not in HERE, reason="needs llvmlite and the instructions"),
    )
    for lanes, threads in ((1, 1), (2, 1), (4, 1), (1, 3))
]
needs_fused = pytest.mark.skipif(not HERE, reason="needs llvmlite and AES instructions")
GUARD = np.uint64(0x5A5A5A5A5A5A5A5A)


@pytest.fixture
def fresh_choice() -> Generator[None]:
    engines._default.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield
    engines._default.cache_clear()  # pyright: ignore[reportPrivateUsage]


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    """Any gates on any wires, the same wire twice and unused wires among them."""
    build = Builder()
    wires = build.input("garbler", "a", draw(st.integers(1, 3))) + build.input(
        "evaluator", "b", draw(st.integers(1, 3))
    )
    for kind in draw(st.lists(st.sampled_from(["and", "and", "xor", "not"]), max_size=25)):
        a, b = (wires[draw(st.integers(0, len(wires) - 1))] for _ in range(2))
        wires.append(build.not_(a) if kind == "not" else build.and_(a, b) if kind == "and" else build.xor(a, b))
    return build.build(draw(st.lists(st.sampled_from(wires), min_size=1, max_size=4)))


def garbled(chosen: Engine, circuit: Circuit, count: int, seed: bytes) -> tuple[Words, Words, Words]:
    """Tables, output labels of zero, and output labels of random inputs, evaluated by the same engine.

    What lies behind the tables must stay as it was.
    """
    rng = Randomness(seed)
    offset, labels = Delta(rng), rng.labels(circuit.width * count).reshape(-1, count, 2)
    bits = rng.bytes(circuit.width * count).reshape(-1, count) & np.uint8(1)
    keys = Context(seed, "layer", 0).keys(2 * circuit.and_gates)
    size = int(np.prod(table_shape(circuit, count)))
    room = np.full(size + 64, GUARD)
    tables = room[:size].reshape(table_shape(circuit, count))
    zero = chosen.garble(circuit, offset.words, list(labels), keys, tables)
    active = chosen.evaluate(circuit, tables, list(pick(labels, offset.words, bits)), keys)
    assert (room[size:] == GUARD).all()
    inverted = np.array([inverted for _, inverted in circuit.schedule.outputs], np.uint8)[:, None]
    np.testing.assert_array_equal(permute_bits(zero) ^ inverted ^ permute_bits(active), evaluate_plain(circuit, bits))
    return tables, zero, active


@pytest.mark.parametrize(("lanes", "threads"), FUSED)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    circuit=circuits(),
    count=st.one_of(st.integers(1, 20), st.sampled_from([255, 256, 257, 511, 513, 1030])),
    seed=st.binary(min_size=32, max_size=32),
)
def test_fused_equals_numpy_on_any_circuit(lanes: int, threads: int, circuit: Circuit, count: int, seed: bytes) -> None:
    expected = garbled(Reference(), circuit, count, seed)
    for one, two in zip(garbled(Fused(lanes, threads), circuit, count, seed), expected, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("lanes", "threads"), FUSED)
@pytest.mark.parametrize("modulus", [Ring(37), Field(PRIME_32), Field(DELPHI_PRIME)], ids=str)
def test_fused_equals_numpy_on_every_relu(modulus: Modulus, lanes: int, threads: int) -> None:
    circuit, seed = relu_circuit(modulus, 0), bytes(range(32))
    expected = garbled(Reference(), circuit, 2051, seed)
    for one, two in zip(garbled(Fused(lanes, threads), circuit, 2051, seed), expected, strict=True):
        np.testing.assert_array_equal(one, two)


AES = [  # FIPS 197, appendices B and C.1
    ("2b7e151628aed2a6abf7158809cf4f3c", "3243f6a8885a308d313198a2e0370734", "3925841d02dc09fbdc118597196a0b32"),
    ("000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"),
]


def aes(chosen: Engine, key: bytes, blocks: bytes) -> bytes:
    """AES by way of the hash: the label of a block is what the orthomorphism takes to it."""
    block = np.frombuffer(blocks, np.uint64).reshape(-1, 2)
    label = np.stack([block[:, 1], block[:, 0] ^ block[:, 1]], axis=1)
    return (chosen.hash(label, np.frombuffer(key, np.uint8)) ^ block).tobytes()


@pytest.mark.parametrize(("key", "plain", "cipher"), AES)
def test_known_answers_of_aes(key: str, plain: str, cipher: str) -> None:
    for chosen in (Reference(), *(Fused(lanes, 1) for lanes in HERE)):
        for count in range(1, 6):
            assert aes(chosen, bytes.fromhex(key), count * bytes.fromhex(plain)).hex() == count * cipher


@pytest.mark.parametrize(("lanes", "threads"), FUSED[:3])
def test_key_schedule_and_hash_equal_those_of_the_library(lanes: int, threads: int) -> None:
    rng = Randomness(bytes(32))
    for count in (1, 2, 3, 4, 5, 300):
        labels, key = rng.labels(count), rng.bytes(16)
        np.testing.assert_array_equal(Fused(lanes, threads).hash(labels, key), Reference().hash(labels, key))


@pytest.mark.parametrize(("lanes", "threads"), FUSED[:3])
@pytest.mark.parametrize("m", [1, 63, 64, 65, 640, 1001])
def test_transposes_are_equal(m: int, lanes: int, threads: int) -> None:
    room = Randomness(bytes(32)).bytes(128 * (m + 7)).reshape(128, m + 7)
    columns = room[:, :m]
    rows = Fused(lanes, threads).transpose(columns)
    np.testing.assert_array_equal(rows, Reference().transpose(columns))
    np.testing.assert_array_equal(
        np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little"),
        np.unpackbits(columns, axis=1, bitorder="little").T,
    )


@pytest.mark.parametrize("m", [1, 3, 64, 2047, 2048, 2049])
def test_a_transpose_is_that_of_the_bits(m: int) -> None:
    columns = Randomness(bytes([m % 250]) * 32).bytes(128 * m).reshape(128, m)
    rows = np.unpackbits(Reference().transpose(columns).view(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(rows, np.unpackbits(columns, axis=1, bitorder="little").T)


@needs_fused
@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_picks_are_equal(count: int) -> None:
    rng = Randomness(bytes(32))
    labels, delta, bits = rng.labels(count), rng.words(2), rng.bytes(count) & np.uint8(1)
    picked = [np.empty((count, 2), np.uint64) for _ in range(2)]
    for chosen, out in zip((Reference(), Fused(1, 1)), picked, strict=True):
        chosen.pick(labels, delta, bits, out)
    np.testing.assert_array_equal(*picked)


@needs_fused
@pytest.mark.parametrize("garbler", ["server", "client"])
@pytest.mark.parametrize("fused", ["server", "client"])
def test_parties_with_different_engines_agree(garbler: Role, fused: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    program = random_program(3)
    x = random_inputs(program, 1, 3)
    for role, party in (("client", client), ("server", server.Model)):
        chosen = Fused(HERE[0], 2) if role == fused else Reference()
        for step in ("offline", "online"):
            monkeypatch.setattr(party, step, within(chosen, getattr(party, step)))
    run = run_both(program, x[0], garbler)
    np.testing.assert_array_equal(run.output, plain.run(program, x, client=run.client_shares, protocols=Protocols())[0])


def within(chosen: Engine, step: Callable[..., Any]) -> Callable[..., Any]:
    def taken(*args: Any, **kwargs: Any) -> Any:
        with using(chosen):
            return step(*args, **kwargs)

    return taken


@needs_fused
@pytest.mark.parametrize("relu", ["gc-full", "gc-sign", "ot", "ot:tree"])
def test_a_prepared_engine_compiles_nothing_more(relu: str) -> None:
    from deepreshape.private.crypto.backend import fused

    chosen = Fused(HERE[0], 1)
    fused._compiled.cache_clear()  # pyright: ignore[reportPrivateUsage]
    chosen.prepare()
    compiled = fused._compiled.cache_info().misses  # pyright: ignore[reportPrivateUsage]
    program = random_program(0)
    assert any(isinstance(op, Relu) for op in program.ops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "_default", lambda: chosen)
        run_both(program, random_inputs(program, 1, 3)[0], relu=ReluConfig.parse(relu))
    assert fused._compiled.cache_info().misses == compiled  # pyright: ignore[reportPrivateUsage]


def test_an_engine_is_taken_in_its_own_thread_only() -> None:
    before, other = engine(), Reference()
    with using(other), ThreadPoolExecutor(1) as elsewhere:
        assert engine() is other
        assert elsewhere.submit(engine).result() is before
        assert engine_name() == "numpy (AES of the cryptography package)"
    assert engine() is before


@pytest.mark.usefixtures("fresh_choice")
def test_without_llvmlite_numpy_steps_in_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepreshape.private.crypto.backend.fused", raising=False)
    for module in ("llvmlite", "llvmlite.binding"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delenv(engines.ENGINE, raising=False)
    assert engine_name() == "numpy (pip install llvmlite for an engine several times as fast)"
    with pytest.raises(engines.UnavailableError, match="pip install"):
        named("fused")


def pretend(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processor have these features."""
    monkeypatch.setattr(
        "deepreshape.private.crypto.backend.fused.get_host_cpu_features", lambda: dict.fromkeys(features.split(), True)
    )


@needs_fused
@pytest.mark.usefixtures("fresh_choice")
def test_without_aes_instructions_numpy_steps_in_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("avx2", monkeypatch)
    monkeypatch.delenv(engines.ENGINE, raising=False)
    assert engine_name() == "numpy (the faster engine needs an x86-64 processor with AES instructions)"


@needs_fused
@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("", []),
        ("aes", [1]),
        ("aes avx2 vaes", [2, 1]),
        ("aes avx2 avx512f", [1]),
        ("aes avx2 avx512f vaes", [4, 2, 1]),
    ],
)
def test_vectors_are_as_wide_as_the_processor_allows(
    features: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(features, monkeypatch)
    assert widths() == expected


def test_the_environment_names_engine_and_threads(fresh_choice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines.ENGINE, "numpy")
    assert engine().name == "numpy"
    engines._default.cache_clear()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setenv(engines.ENGINE, "gpu")
    with pytest.raises(ValueError, match="no engine 'gpu'; take 'fused' or 'numpy'"):
        engine()
    if HERE:
        monkeypatch.setenv(engines.THREADS, "3")
        assert named("fused").about.endswith("3 threads")
        assert named("fused", 1).about.endswith("1 thread")
        for wrong in ("0", "-1", "many", ""):
            monkeypatch.setenv(engines.THREADS, wrong)
            with pytest.raises(ValueError, match=f"{engines.THREADS} is {wrong!r}; it must be a whole number"):
                named("fused")


def test_importing_the_runtime_compiles_nothing() -> None:
    code = "import sys, deepreshape.private.parties.sessions; sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 0
