"""Leveled CKKS: packing against plain arithmetic, and whole circuits against the layers they are made of."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.ckks import computed, conv, convolved, quadratic, residual

from deepreshape.engines.ckks import local, wire
from deepreshape.engines.ckks.circuit import compiled
from deepreshape.engines.ckks.evaluate import EncodedCircuit
from deepreshape.engines.ckks.local import run_encrypted
from deepreshape.engines.ckks.packing import Diagonals, Entries, SlotLayout, convolution, diagonals, reduction
from deepreshape.engines.ckks.parameters import LIMITS, MARGIN, PRECISION, choose_modulus
from deepreshape.engines.ckks.scheme import CkksEvaluator, Holder, Scheme
from deepreshape.private.errors import PrivateError
from deepreshape.private.program.graph import Layer, Quadratic, Rectify
from deepreshape.private.program.ops import INPUT, ProgramError

RNG = np.random.default_rng(0)
ERRORS = Path(__file__).parents[3] / "benchmarks" / "results" / "ckks-errors.jsonl"


def applied(matrix: Diagonals, x: np.ndarray) -> np.ndarray:
    """With rotations of a plain vector."""
    total, last = np.zeros_like(x), 0
    for giant, terms in matrix.giants:
        part = sum(vector * np.roll(x, -(row * matrix.row + column)) for (row, column), vector in terms)
        total, last = np.roll(total, -(last - giant)) + part, giant
    return np.roll(total, -last)


@pytest.mark.parametrize(
    ("ins", "outs", "side", "stride", "gap", "kernel", "groups"),
    [
        (3, 8, 8, 1, 1, 3, 1),
        (8, 16, 8, 2, 1, 3, 1),
        (16, 8, 4, 2, 2, 3, 1),
        (5, 7, 6, 2, 1, 1, 1),
        (4, 8, 5, 1, 1, 3, 4),
    ],
)
def test_diagonals_are_the_convolution(ins: int, outs: int, side: int, stride: int, gap: int, kernel: int, groups: int):
    whole = SlotLayout.of(ins, side * gap, side * gap)
    source = SlotLayout(ins, side, side, gap, whole.rows, whole.columns)
    x, weight = RNG.normal(size=(ins, side, side)), RNG.normal(size=(outs, ins // groups, kernel, kernel))
    expected = convolved(x, weight, stride, kernel // 2, groups)
    target = source.strided(*expected.shape, stride)
    matrix = diagonals(convolution(weight, x.shape, stride, kernel // 2, groups), source, target, 2048)
    out = applied(matrix, source.packed(x, 2048))
    assert np.allclose(target.unpacked(out), expected)
    assert np.allclose(out.reshape(-1, target.size), out[: target.size])  # repeated, as the next layer needs it
    assert matrix.steps <= {1, 2047, matrix.row} | {
        high - low for high, _ in matrix.giants for low in [*(giant for giant, _ in matrix.giants), 0]
    }


def test_every_slot_of_a_dense_layer_is_an_output_or_zero():
    source, weight = SlotLayout.of(6, 4, 4), RNG.normal(size=(5, 96))
    x = RNG.normal(size=(6, 4, 4))
    rows, columns = np.indices(weight.shape)
    matrix = reduction(Entries(rows.ravel(), columns.ravel(), weight.ravel()), 5, source, 1024)
    packed = source.packed(x, 1024)
    out = sum(vector * np.roll(packed, -shift) for shift, vector in enumerate(matrix.vectors))
    for step in matrix.halvings:
        out = out + np.roll(out, -step)
    assert np.allclose(out.reshape(-1, 8), np.append(weight @ x.ravel(), [0, 0, 0]))


@pytest.mark.parametrize("images", [1, 3])
def test_a_circuit_gives_what_its_layers_give(images: int):
    layers, x = residual(), RNG.normal(size=(images, 3, 8, 8))
    circuit = compiled(layers, (3, 8, 8), images)
    assert (circuit.parameters.degree, circuit.parameters.levels, circuit.squares) == (8192, 5, 2)
    answer = run_encrypted(circuit, x)
    expected = np.stack([computed(layers, image) for image in x])
    assert answer.outputs.shape == expected.shape
    assert np.abs(answer.outputs - expected).max() < MARGIN * circuit.parameters.expected_error * np.abs(expected).max()
    assert min(answer.bytes.values()) > 0


def test_the_margin_covers_what_the_fit_leaves_over():
    """Of random networks of one to five squares, the largest error and the one expected, of the largest output."""
    rows = [json.loads(line) for line in ERRORS.read_text().splitlines()]
    over = [row["error"] / (row["expected"] * row["largest_output"]) for row in rows]
    assert {row["squares"] for row in rows} == {1, 2, 3, 4, 5}
    assert (round(min(over), 2), round(max(over), 1)) == (0.19, 1.2)
    spread = np.log2(over)
    assert np.log2(MARGIN) > spread.mean() + 3 * spread.std()
    for squares in range(1, 12):
        assert choose_modulus(2 * squares + 1, squares, 1024).expected_error * MARGIN <= PRECISION


def test_only_an_answer_comes_back():
    """The server's partial sums stay out of the other slots."""
    layers, x = residual(), RNG.normal(size=(3, 8, 8))
    circuit = compiled(layers, (3, 8, 8))
    public, scheme = circuit.public, Scheme(circuit.parameters)
    holder, evaluator = Holder(scheme), CkksEvaluator(scheme)
    for name in public.key_names:
        key = wire.key(scheme, name, holder.evaluation_key(name))
        evaluator.add_key(name, wire.read_key(scheme, name, key))
    up = wire.read_fresh(scheme, wire.fresh(scheme, holder.encrypt(public.pack(x[None]))))
    down = wire.answer(scheme, EncodedCircuit(circuit).evaluate(evaluator, up))
    slots = holder.decrypt(wire.read_answer(scheme, down))
    width = public.output.size
    assert np.allclose(slots.reshape(-1, width), slots[:width], atol=1e-2)
    assert np.allclose(slots[3:width], 0, atol=1e-2)


def test_work_is_what_the_steps_do():
    circuit = compiled(residual(), (3, 8, 8))
    work = circuit.work()
    assert sum(count for _, count in work["square"]) == circuit.squares == 2
    assert sum(count for _, count in work["rotate"]) == circuit.rotations
    assert sum(count for _, count in work["multiply"]) == circuit.products
    assert {level for level, _ in work["square"]} == {2, 4}


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (
            [conv("stem", INPUT, 3, 4, rng=RNG), Rectify("relu", ("stem",)), conv("last", "relu", 4, 2, rng=RNG)],
            "relu: a ReLU is not computed",
        ),
        (
            [
                conv("stem", INPUT, 3, 2, rng=RNG),
                Quadratic("flat", ("stem",), np.array([[0, 1, 0.5], [0, 1, 0]])),
                conv("last", "flat", 2, 2, rng=RNG),
            ],
            r"flat: channel 1 has no square \(a = 0\)",
        ),
        (
            [
                conv("stem", INPUT, 3, 1, rng=RNG),
                Quadratic("mixed", ("stem",), np.ones((1, 3)), np.eye(8, dtype=bool)[None]),
                conv("last", "mixed", 1, 2, rng=RNG),
            ],
            "mixed: 8 ReLUs are left",
        ),
        (
            [conv("stem", INPUT, 3, 1, rng=RNG), quadratic("last", "stem", 1, rng=RNG)],
            "last: the answer .* comes from a linear layer",
        ),
    ],
)
def test_what_is_no_square_is_refused(layers: list[Layer], reason: str):
    with pytest.raises(ProgramError, match=reason):
        compiled(layers, (3, 8, 8))


def test_a_deep_network_is_refused_with_what_would_fit():
    layers: list[Layer] = [conv("c0", INPUT, 1, 1, rng=RNG), quadratic("q0", "c0", 1, rng=RNG)]
    for at in range(1, 16):
        layers += [conv(f"c{at}", f"q{at - 1}", 1, 1, rng=RNG), quadratic(f"q{at}", f"c{at}", 1, rng=RNG)]
    with pytest.raises(ValueError, match=r"16 squares in a row \(33 levels\) are too deep .* where 11 fit"):
        compiled([*layers, conv("last", "q15", 1, 2, rng=RNG)], (1, 4, 4))


@pytest.mark.parametrize("squares", range(1, 12))
def test_moduli_lie_within_both_security_tables(squares: int):
    parameters = choose_modulus(2 * squares + 1, squares, 1024)
    assert sum(parameters.primes) <= LIMITS[parameters.degree]
    assert parameters.special >= parameters.bits
    assert {8192: min(218, 214), 16384: min(438, 430), 32768: min(881, 868)} == LIMITS
    Scheme(parameters)  # the library's own check


def test_a_map_too_large_for_a_ciphertext_is_refused():
    with pytest.raises(ValueError, match="a ciphertext holds 16,384 values, this network's largest map 32,768"):
        choose_modulus(3, 1, 32768)


def test_a_server_that_is_killed_is_an_error_that_commands_print_as_one_line(monkeypatch: pytest.MonkeyPatch):
    """As the system kills it where memory ends."""
    monkeypatch.setattr(local, "_serve", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(PrivateError, match=r"the server's process ended early \(out of memory\?\)"):
        run_encrypted(compiled(residual(), (3, 8, 8)), np.zeros((1, 3, 8, 8)))


SLOW = """
import time, typer
import numpy as np
from support.ckks import INPUT_SHAPE, single
from deepreshape.cli.console import NOTHING_KEPT, stoppable
from deepreshape.engines.ckks import local
from deepreshape.engines.ckks.circuit import compiled
from deepreshape.private.errors import PrivateError

def evaluate(*_):
    print("at work", flush=True)
    time.sleep(120)

local._Timed.evaluate = evaluate
try:
    stoppable(lambda: local.run_encrypted(compiled(single(), INPUT_SHAPE), np.zeros((1, *INPUT_SHAPE))), NOTHING_KEPT)
except typer.Exit as end:
    raise SystemExit(end.exit_code)
except PrivateError as error:
    raise SystemExit(str(error))
"""


@pytest.mark.parametrize(
    ("by", "to", "code", "line"),
    [
        (signal.SIGINT, "both", 130, "stopped; nothing was kept"),  # as the terminal sends it
        (signal.SIGTERM, "both", 143, "stopped; nothing was kept"),
        (signal.SIGTERM, "parent", 143, "stopped; nothing was kept"),
        (signal.SIGTERM, "child", 1, "the server's process ended early (out of memory?)"),
    ],
)
def test_a_signal_ends_both_processes_at_once_with_one_line(by: signal.Signals, to: str, code: int, line: str):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", SLOW],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdout
        assert run.stdout.readline() == "at work\n"
        (child,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        if to == "both":
            os.killpg(run.pid, by)
        else:
            os.kill(run.pid if to == "parent" else int(child), by)
        _, told = run.communicate(timeout=30)
    assert (run.returncode, told) == (code, f"{line}\n")
    assert not Path(f"/proc/{child}").exists()
