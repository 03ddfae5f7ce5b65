"""Leveled CKKS: packing against plain arithmetic, and whole circuits against the layers they are made of."""

from collections.abc import Sequence

import numpy as np
import pytest

from deepreshape.engines.ckks.circuit import compiled
from deepreshape.engines.ckks.evaluate import EncodedCircuit
from deepreshape.engines.ckks.local import run_encrypted
from deepreshape.engines.ckks.packing import Diagonals, Entries, SlotLayout, convolution, diagonals, reduction
from deepreshape.engines.ckks.parameters import LIMITS, CkksParameters, choose_modulus
from deepreshape.engines.ckks.scheme import CkksEvaluator, Holder, Scheme
from deepreshape.private.program.graph import Conv, Dense, Flat, Layer, Pool, Quadratic, Rectify, Sum
from deepreshape.private.program.ops import INPUT, ProgramError

RNG = np.random.default_rng(0)


def convolved(x: np.ndarray, weight: np.ndarray, stride: int, padding: int, groups: int = 1) -> np.ndarray:
    kernel = weight.shape[2]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    parts = zip(np.split(windows, groups), np.split(weight, groups), strict=True)
    return np.concatenate([np.einsum("chwij,ocij->ohw", part, rows) for part, rows in parts])


def computed(layers: Sequence[Layer], x: np.ndarray) -> np.ndarray:
    """What the layers give in floating point."""
    values = {INPUT: x}
    for layer in layers:
        inputs = [values[name] for name in layer.inputs]
        match layer:
            case Conv():
                y = convolved(inputs[0], layer.weight, layer.stride, layer.padding, layer.groups)
                values[layer.name] = y + layer.bias[:, None, None]
            case Quadratic():
                constant, linear, square = layer.coefficients.T.reshape(3, -1, *[1] * (inputs[0].ndim - 1))
                values[layer.name] = constant + linear * inputs[0] + square * inputs[0] ** 2
            case Sum():
                values[layer.name] = np.sum(inputs, axis=0)
            case Pool():
                ones = np.ones((len(inputs[0]), 1, *layer.kernel))
                values[layer.name] = convolved(inputs[0], ones, layer.stride[0], 0, len(inputs[0]))
            case Flat():
                values[layer.name] = inputs[0].ravel()
            case Dense():
                values[layer.name] = layer.weight @ inputs[0] + layer.bias
            case _:
                raise AssertionError(layer)
    return values[layers[-1].name]


def conv(name: str, source: str, ins: int, outs: int, stride: int = 1, kernel: int = 3) -> Conv:
    weight = RNG.normal(size=(outs, ins, kernel, kernel)) / np.sqrt(ins * kernel * kernel)
    return Conv(name, (source,), weight, 0.1 * RNG.normal(size=outs), stride, kernel // 2)


def quadratic(name: str, source: str, channels: int) -> Quadratic:
    """With squares of either sign."""
    square = 0.2 * RNG.choice([-1, 1], channels) * RNG.uniform(0.5, 1, channels)
    return Quadratic(name, (source,), np.stack([0.1 * RNG.normal(size=channels), np.full(channels, 0.5), square], 1))


def residual() -> list[Layer]:
    """Two squares in a row, a strided layer, an identity and a projected shortcut."""
    return [
        conv("stem", INPUT, 3, 4),
        quadratic("q1", "stem", 4),
        conv("down", "q1", 4, 5, 2),
        conv("shortcut", "q1", 4, 5, 2, 1),
        Sum("add", ("down", "shortcut")),
        quadratic("q2", "add", 5),
        Pool("pool", ("q2",), (4, 4), (4, 4)),
        Flat("flat", ("pool",)),
        Dense("head", ("flat",), RNG.normal(size=(3, 5)) / 16, RNG.normal(size=3)),
    ]


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
    assert np.abs(answer.outputs - expected).max() < 16 * circuit.parameters.expected_error
    assert min(answer.bytes.values()) > 0


def test_only_an_answer_comes_back():
    """The server's partial sums stay out of the other slots."""
    layers, x = residual(), RNG.normal(size=(3, 8, 8))
    circuit = compiled(layers, (3, 8, 8))
    plain = circuit.pack(x[None])
    scheme = Scheme(circuit.parameters)
    holder, evaluator = Holder(scheme), CkksEvaluator(scheme)
    for name, key in holder.evaluation_keys(circuit.rotation_steps):
        evaluator.add_key(name, key, circuit.rotation_steps)
    up = scheme.load_ciphertext(holder.encrypt(plain), circuit.parameters.levels)
    slots = holder.decrypt(evaluator.saved(EncodedCircuit(circuit).evaluate(evaluator, up)))
    width = circuit.output.size
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
        ([conv("stem", INPUT, 3, 4), Rectify("relu", ("stem",)), conv("last", "relu", 4, 2)], "relu: a Rectify is not"),
        (
            [
                conv("stem", INPUT, 3, 2),
                Quadratic("flat", ("stem",), np.array([[0, 1, 0.5], [0, 1, 0]])),
                conv("last", "flat", 2, 2),
            ],
            r"flat: channel 1 has no square \(a = 0\)",
        ),
        (
            [
                conv("stem", INPUT, 3, 1),
                Quadratic("mixed", ("stem",), np.ones((1, 3)), np.eye(8, dtype=bool)[None]),
                conv("last", "mixed", 1, 2),
            ],
            "mixed: 8 ReLUs are left",
        ),
        ([conv("stem", INPUT, 3, 1), quadratic("last", "stem", 1)], "last: the answer .* comes from a linear layer"),
    ],
)
def test_what_is_no_square_is_refused(layers: list[Layer], reason: str):
    with pytest.raises(ProgramError, match=reason):
        compiled(layers, (3, 8, 8))


def test_a_deep_network_is_refused_with_what_would_fit():
    layers: list[Layer] = [conv("c0", INPUT, 1, 1), quadratic("q0", "c0", 1)]
    for at in range(1, 16):
        layers += [conv(f"c{at}", f"q{at - 1}", 1, 1), quadratic(f"q{at}", f"c{at}", 1)]
    with pytest.raises(ValueError, match=r"16 squares in a row \(33 levels\) are too deep .* where 11 fit"):
        compiled([*layers, conv("last", "q15", 1, 2)], (1, 4, 4))


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


@pytest.fixture(scope="module")
def parties() -> tuple[Scheme, Holder]:
    scheme = Scheme(CkksParameters(8192, 30, 2, 46, 1))
    return scheme, Holder(scheme)


def test_bytes_that_are_no_ciphertext_are_refused(parties: tuple[Scheme, Holder]):
    scheme, holder = parties
    good = holder.encrypt(np.zeros(4096))
    scheme.load_ciphertext(good, 2)
    rng = np.random.default_rng(1)
    damaged = [b"", good[:100], good[:-1], rng.bytes(5000), bytes(scheme.ciphertext_bytes(3) + 1)]
    for at in rng.integers(0, 200, 40):
        changed = bytearray(good)
        changed[at] ^= 1 << rng.integers(0, 8)
        damaged.append(bytes(changed))
    for data in damaged[:5]:
        with pytest.raises(ValueError, match="ciphertext"):
            scheme.load_ciphertext(data, 2)
    for data in damaged[5:]:  # a change in the header's reserved bytes or in a seed is none that can be seen
        try:
            scheme.load_ciphertext(data, 2)
        except ValueError as error:
            assert "ciphertext" in str(error)  # noqa: PT017
    with pytest.raises(ValueError, match="at level 1"):
        scheme.load_ciphertext(good, 1)


def test_keys_of_other_rotations_or_parameters_are_refused(parties: tuple[Scheme, Holder]):
    scheme, holder = parties
    evaluator = CkksEvaluator(scheme)
    keys = dict(holder.evaluation_keys({1, 64}))
    with pytest.raises(ValueError, match="what was sent as rotate-1 is the key of another rotation"):
        evaluator.add_key("rotate-1", keys["rotate-64"], {1, 64})
    with pytest.raises(ValueError, match="no key 'rotate-2' is needed"):
        evaluator.add_key("rotate-2", keys["rotate-1"], {1, 64})
    with pytest.raises(ValueError, match="cannot be read"):
        evaluator.add_key("rotate-1", keys["rotate-1"][:-10], {1, 64})
    other = Holder(Scheme(CkksParameters(8192, 32, 2, 46, 1)))
    with pytest.raises(ValueError, match="cannot be read"):
        evaluator.add_key("square", dict(other.evaluation_keys([]))["square"], {1, 64})
    evaluator.add_key("rotate-64", keys["rotate-64"], {1, 64})
    assert evaluator.missing({1, 64}) == ("square", "rotate-1")


def test_the_holder_of_a_key_does_not_show_it(parties: tuple[Scheme, Holder]):
    assert repr(parties[1]).startswith("Holder(N = 8192")
