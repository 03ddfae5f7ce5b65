"""Small random programs, slow references, and a whole run of two parties in two threads."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.parties import client, server
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.preprocessing import InMemory
from deepreshape.private.program.ops import (
    INPUT,
    Add,
    Concat,
    Conv2d,
    Fill,
    Flatten,
    Gather,
    Linear,
    Op,
    Raise,
    Relu,
    Rescale,
    Sign,
    Square,
    SumPool,
    Truncate,
    Weights,
)
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import GC_FULL, Assignment, ReluConfig, Role, takes
from deepreshape.private.protocols.base import Run as TwoRuns
from deepreshape.private.transport.ledger import Ledger
from deepreshape.private.transport.memory import memory_pair

Integers = NDArray[np.int64]


def random_program(seed: int, *, prime: bool = False, linear: int = 2) -> Program:
    """A program of up to ``linear`` convolutions, with residuals, masks, pools and truncations, and a classifier."""
    rng = np.random.default_rng(seed)
    side = int(rng.integers(3, 6))
    shape, fraction = (int(rng.integers(1, 3)), side, side), 4
    ops: list[Op] = []
    weights: dict[str, Weights] = {}
    last, size, wide = INPUT, shape, Ring(63)

    def append(op: Op) -> None:
        nonlocal last, size, fraction
        ops.append(op)
        last = op.name
        value = Program(wide, shape, 4, 7, tuple(ops)).values[last]
        size, fraction = value.shape, value.fraction

    def weigh(name: str, weight_shape: tuple[int, ...]) -> None:
        draw = rng.integers(-4, 5, weight_shape), rng.integers(-50, 51, weight_shape[0])
        weights[name] = Weights(draw[0].astype(np.int64), draw[1].astype(np.int64))

    for i in range(int(rng.integers(1, linear + 1))):
        before, fraction_before = last, fraction
        groups = int(rng.choice([1, size[0]]))
        kernel, stride = int(rng.choice([1, 3])), int(rng.choice([1, 2]))
        out = groups * int(rng.integers(1, 3))
        same = rng.random() < 0.5
        if same:
            stride, out = 1, size[0]
        padding = kernel // 2
        weigh(f"block.{i}.conv", (out, size[0] // groups, kernel, kernel))
        columns = None
        if rng.random() < 0.3:
            columns = rng.random([(n + 2 * padding - kernel) // stride + 1 for n in size[1:]]) < 0.6
            columns[0, 0] = True
        append(Conv2d(f"block.{i}.conv", (last,), out, kernel, 2, 3, stride, padding, groups, mask=columns))
        if rng.random() < 0.3:
            append(Truncate(f"block.{i}.cut", (last,), 3))
        elif rng.random() < 0.9:
            mask = rng.random(size) < rng.choice([0.0, 0.5, 1.0])
            append(Relu(f"block.{i}.relu", (last,), int(rng.choice([0, 3])), mask if rng.random() < 0.7 else None))
        if columns is not None:
            weigh(f"block.{i}.fill", size[:1])
            append(Fill(f"block.{i}.fill", (last,), columns))
        if same and fraction > fraction_before:
            ops.append(Raise(f"block.{i}.raise", (before,), fraction - fraction_before))
            before, fraction_before = ops[-1].name, fraction
        if same and fraction == fraction_before:
            append(Add(f"block.{i}.add", (before, last, last) if rng.random() < 0.3 else (last, before)))
    if rng.random() < 0.3:
        append(Rescale("scale", (last,), int(rng.choice([-3, -1, 5])), 1, int(rng.integers(-9, 10))))
    if rng.random() < 0.3:
        append(Concat("twice", (last, last)))
    if rng.random() < 0.3:
        append(Gather("gather", (last,), rng.integers(-1, np.prod(size), (2, 2, 3)).astype(np.int32)))
    if rng.random() < 0.6 and min(size[1:]) > 1:
        append(SumPool("pool", (last,), (2, min(2, size[2])), (1, 2)))
    append(Flatten("flatten", (last,)))
    weigh("head", (3, size[0]))
    append(Linear("head", (last,), 3, 2, 2))
    if rng.random() < 0.3:
        append(Relu("last", (last,), 1))

    loose = Program(wide, shape, 4, 7, tuple(ops), weights)
    if not prime:
        room = 2 + max(4, max(loose.bounds().values()).bit_length())
        return Program(Ring(room + 1), shape, 4, 7, tuple(ops), weights)
    field = Field(CIRCA_PRIME if max(loose.bounds().values()) < CIRCA_PRIME // 8 else DELPHI_PRIME)
    return Program(field, shape, 4, 7, tuple(ops), weights)


ONE_RELU = Program(Ring(16), (2, 3), 4, 99, (Flatten("f", ("input",)), Relu("r", ("f",), 2)))
"""A ReLU layer and nothing else: a run takes a tenth of a second."""


TWO_RELUS = Program(Ring(16), (2, 3), 4, 99, (Flatten("f", ("input",)), Relu("r", ("f",), 1), Relu("q", ("r",), 1)))
"""Two layers of ReLUs and nothing else: the least that two protocols can share."""


ONE_SQUARE = Program(
    Ring(20),
    (2, 3),
    4,
    99,
    (Flatten("f", ("input",)), Square("s", ("f",), 0, 2)),
    {"s": Weights(np.array([5, -6, 7, 0, 1, -90]), np.array([1, -2, 300, 0, 5, 6]))},
)
"""A layer of squares and nothing else."""


THRESHOLDS = Weights(np.array([50, -60, 7, 0, 1, -90]), np.zeros(6, np.int64))
ONE_SIGN = Program(Ring(16), (2, 3), 4, 99, (Flatten("f", ("input",)), Sign("g", ("f",), 9)), {"g": THRESHOLDS})
"""A layer of signs and nothing else, over nine bits of sixteen."""


def with_signs(program: Program) -> Program:
    """A program whose last value has six elements, with the signs of what that is made of as another output."""
    last = program.ops[-1]
    ops = (*program.ops, Sign("g", last.inputs, 9))
    return replace(program, ops=ops, weights=dict(program.weights) | {"g": THRESHOLDS}, outputs=(last.name, "g"))


def max_pool() -> Program:
    """The larger of every two neighbours, as lowering writes a max pool."""
    even, odd = (np.arange(first, 24, 2, dtype=np.int32).reshape(2, 3, 2) for first in (0, 1))
    ops = (
        Gather("left", ("input",), even),
        Gather("right", ("input",), odd),
        Rescale("negative", ("right",), -1),
        Add("difference", ("left", "negative")),
        Relu("larger", ("difference",)),
        Add("pool", ("right", "larger")),
    )
    return Program(Ring(16), (2, 3, 4), 4, 99, ops)


def squares_relus_and_signs() -> Program:
    """:func:`squares_and_relus` with signs of the linear layer beside them: an operation of every kind of protocol."""
    program = squares_and_relus()
    thresholds = Weights(np.array([40, -300, 0, 7]), np.zeros(4, np.int64))
    ops = (*program.ops, Sign("sign", ("fc",), 14))
    return replace(program, ops=ops, weights=dict(program.weights) | {"sign": thresholds}, outputs=("square", "sign"))


def squares_and_relus() -> Program:
    """A linear layer, and squares and ReLUs behind it in one operation."""
    rng = np.random.default_rng(6)
    mask = np.array([True, False, True, False])
    ops = (Flatten("flat", ("input",)), Linear("fc", ("flat",), 4, 3, 3), Square("square", ("fc",), 3, 3, 2, mask))
    weights = {
        "fc": Weights(rng.integers(-8, 9, (4, 6)), rng.integers(-99, 100, 4)),
        "square": Weights(rng.integers(-9, 10, 4), rng.integers(-99, 100, 4)),
    }
    return Program(Ring(26), (2, 3), 4, 99, ops, weights)


def every_kind() -> Program:
    """The smallest program whose run has frames of every kind: a linear layer, and a ReLU with a mask."""
    rng = np.random.default_rng(5)
    ops = (
        Flatten("flat", ("input",)),
        Linear("fc", ("flat",), 4, 3, 3),
        Relu("relu", ("fc",), 3, np.array([True, False, True, True])),
    )
    weights = {"fc": Weights(rng.integers(-8, 9, (4, 6)), rng.integers(-99, 100, 4))}
    return Program(Ring(20), (2, 3), 4, 99, ops, weights)


def grouped(modulus: Ring | Field) -> Program:
    """Two grouped convolutions, of each of which half the groups fill a polynomial: it travels as two copies."""
    rng = np.random.default_rng(0)
    ops = (
        Conv2d("deep", ("input",), 24, 3, 2, 3, 2, 1, 12),
        Relu("relu", ("deep",), 3),
        Conv2d("norm", ("relu",), 24, 1, 2, 3, 1, 0, 24),
        Relu("last", ("norm",), 3, rng.random((24, 5, 4)) < 0.05),
    )
    weights = {
        name: Weights(rng.integers(-4, 5, (24, 1, kernel, kernel)), rng.integers(-50, 51, 24))
        for name, kernel in (("deep", 3), ("norm", 1))
    }
    return Program(modulus, (12, 9, 7), 4, 7, ops, weights)


def interleaved() -> Program:
    """Three convolutions wide enough that the server packs responses under keys that the client sends."""
    rng = np.random.default_rng(0)
    ops = [Conv2d(f"conv{i}", (f"conv{i - 1}" if i else "input",), 64, 1, 2, 8) for i in range(3)]
    weights = {op.name: Weights(rng.integers(-4, 5, (64, 64, 1, 1)), rng.integers(-50, 51, 64)) for op in ops}
    return Program(Ring(37), (64, 8, 8), 4, 7, tuple(ops), weights)


def random_inputs(program: Program, count: int, seed: int) -> Integers:
    rng = np.random.default_rng(seed)
    return rng.integers(-program.input_bound, program.input_bound + 1, (count, *program.input_shape))


def slow(program: Program, x: Integers) -> dict[str, NDArray[np.object_]]:
    """Every value for one input, element by element, in Python integers; rounds to the nearest, squares down."""
    values: dict[str, NDArray[np.object_]] = {INPUT: x.astype(np.object_)}
    for op in program.ops:
        source, shape = values[op.inputs[0]], program.values[op.name].shape
        out = np.zeros(shape, np.object_)
        for at in np.ndindex(*shape):
            if isinstance(op, Conv2d):
                row, column = at[1:] if op.mask is None else np.argwhere(op.mask)[at[1]]
                weights, per_group = program.weights[op.name], op.out_channels // op.groups
                first = at[0] // per_group * weights.weight.shape[1]
                total = int(weights.bias[at[0]])
                for c, a, b in np.ndindex(*weights.weight.shape[1:]):
                    i, j = row * op.stride + a - op.padding, column * op.stride + b - op.padding
                    if 0 <= i < source.shape[1] and 0 <= j < source.shape[2]:
                        total += int(weights.weight[at[0], c, a, b]) * source[first + c, i, j]
                out[at] = total
            elif isinstance(op, Linear):
                weights = program.weights[op.name]
                out[at] = int(weights.bias[at[0]]) + sum(
                    int(w) * v for w, v in zip(weights.weight[at[0]], source, strict=True)
                )
            elif isinstance(op, Add):
                out[at] = sum(values[name][at] for name in op.inputs)
            elif isinstance(op, SumPool):
                i, j = at[1] * op.stride[0], at[2] * op.stride[1]
                out[at] = sum(source[at[0], i + a, j + b] for a, b in np.ndindex(*op.kernel))
            elif isinstance(op, Raise):
                out[at] = source[at] * 2**op.shift
            elif isinstance(op, Rescale):
                out[at] = source[at] * op.factor + op.offset
            elif isinstance(op, Concat):
                out[at] = np.concatenate([values[name] for name in op.inputs])[at]
            elif isinstance(op, Gather):
                out[at] = source.reshape(-1)[op.index[at]] if op.index[at] >= 0 else 0
            elif isinstance(op, Square) and (op.mask is None or not op.mask[at]):
                weights = program.weights[op.name]
                root = (source[at] + int(weights.weight[at[0]])) >> op.before
                out[at] = (root**2 >> op.after) + int(weights.bias[at[0]])
            elif isinstance(op, Sign):
                out[at] = 1 if source[at] + int(program.weights[op.name].weight[at[0]]) > 0 else -1
            elif isinstance(op, Fill):
                pixel = np.count_nonzero(op.mask.reshape(-1)[: at[1] * shape[2] + at[2]])
                out[at] = source[at[0], pixel] if op.mask[at[1:]] else int(program.weights[op.name].weight[at[0]])
            elif isinstance(op, Flatten):
                out[at] = source.reshape(-1)[at[0]]
            else:
                rectify = isinstance(op, Square) or (isinstance(op, Relu) and (op.mask is None or op.mask[at]))
                value = max(source[at], 0) if rectify else source[at]
                out[at] = (2 * value + 2**op.shift) // (2 * 2**op.shift)
        values[op.name] = out
    return values


@dataclass
class Run:
    """One inference: its output, what the client's shares were, and what both ends of the channel counted."""

    output: Integers
    client_shares: dict[str, Words]
    client: Ledger
    server: Ledger
    stored: tuple[int, int]


def settled(relu: ReluConfig | Assignment, garbler: Role, batch: int) -> ReluConfig | Assignment:
    """The same with this garbler, where anybody garbles, and batch."""
    if isinstance(relu, Assignment):
        return Assignment(tuple(cast(ReluConfig, settled(config, garbler, batch)) for config in relu.configs))
    return replace(relu, batch=batch, **({"garbler": garbler} if takes(relu, "garbler") else {}))


def run_both(
    program: Program,
    x: Integers,
    garbler: Role = "server",
    batch: int = 7,
    relu: ReluConfig | Assignment = GC_FULL,
    workers: int | None = None,
) -> Run:
    plan = Plan(program.public(), settled(relu, garbler, batch))
    model = server.Model(program, plan, workers=workers)
    ends = memory_pair()
    materials = InMemory(), InMemory()
    id = secrets.token_bytes(32)
    shares: dict[str, Words] = {}
    runs = (
        TwoRuns(ends[0], id, "client", Randomness(), lambda name, share: shares.update({name: share})),
        TwoRuns(ends[1], id, "server", Randomness()),
    )
    stored = [0, 0]

    def act_as_client() -> Integers:
        client.offline(runs[0], plan, materials[0])
        stored[0] = materials[0].nbytes
        return client.online(runs[0], plan, materials[0], x)

    def act_as_server() -> None:
        model.offline(runs[1], materials[1])
        stored[1] = materials[1].nbytes
        model.online(runs[1], materials[1])

    with ThreadPoolExecutor(2) as threads:
        theirs = threads.submit(act_as_server)
        output = threads.submit(act_as_client).result()
        theirs.result()
    return Run(output, shares, ends[0].ledger, ends[1].ledger, (stored[0], stored[1]))


def check_declared(
    program: Program,
    garbler: Role,
    ends: tuple[Ledger, Ledger],
    stored: tuple[int, int],
    relu: ReluConfig | Assignment = GC_FULL,
) -> None:
    """Every byte and wait of both ledgers is declared, and nothing else is."""
    report = Plan(program.public(), settled(relu, garbler, 7)).declared()
    places = {(row.layer, row.phase) for row in report.rows}
    client_ledger, server_ledger = ends
    assert set(client_ledger.traffic) | set(server_ledger.traffic) <= places
    for layer, phase in places:
        rows = report.only(layer=layer, phase=phase).rows
        up, down = sum(row.bytes_up for row in rows), sum(row.bytes_down for row in rows)
        waits = sum(row.rounds for row in rows)
        counted = client_ledger.traffic.get((layer, phase))
        other = server_ledger.traffic.get((layer, phase))
        assert (up, down, waits) == ((counted.sent, counted.received, counted.rounds) if counted else (0, 0, 0))
        assert (up, down) == ((other.received, other.sent) if other else (0, 0))
    assert (report.stored_client, report.stored_server) == stored
    assert sum(row.relus for row in report.only(phase="online").rows) == program.relus
