"""Convolutions that leave pixels out: lowered, as bytes, and between two parties under every ReLU protocol."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.lowered import answers, checked, drawn, prepared
from support.programs import check_declared, random_inputs, run_both
from torch import nn

from deepreshape.counting import count
from deepreshape.nn import KnownReLU, MaskedConv2d, MaskedReLU, Zeroed
from deepreshape.pricing.quote import Terms, quote_layers, quote_program
from deepreshape.private.arith.ring import Ring
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.encoding import digest, from_bytes, to_bytes
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Conv2d, Fill, Gather, Linear, ProgramError, Relu, Truncate, Weights
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import ReluConfig, Role
from deepreshape.private.protocols.choose import Protocols

SHAPE = (3, 8, 8)
COLUMNS = torch.rand(8, 8, generator=torch.Generator().manual_seed(2)) < 0.6
PIXELS = int(COLUMNS.sum())


def site(channels: int, columns: torch.Tensor, removed: float = 0.0) -> KnownReLU:
    mask = torch.rand(channels, *columns.shape, generator=torch.Generator().manual_seed(3)) >= removed
    return KnownReLU(MaskedReLU(mask & columns), ~columns)


class Block(nn.Module):
    """A stem that leaves pixels out, and a residual block behind it that leaves others out."""

    def __init__(self, removed: float = 0.0, columns: torch.Tensor = COLUMNS, **geometry) -> None:
        super().__init__()
        torch.manual_seed(0)
        first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.stem, self.norm = MaskedConv2d.of(first, columns), nn.BatchNorm2d(4)
        self.act = site(4, columns, removed)
        inner = nn.Conv2d(4, 4, 3, **({"padding": 1} | geometry))
        others = inner(torch.zeros(1, 4, 8, 8))[0, 0].detach()
        others = torch.rand(others.shape, generator=torch.Generator().manual_seed(4)) < 0.7
        self.inner, self.between = MaskedConv2d.of(inner, others), site(4, others, removed)
        self.head = nn.LazyLinear(5)
        self.head(torch.zeros(1, 4 * others.numel()))

    def forward(self, x):
        return self.head(self.between(self.inner(self.act(self.norm(self.stem(x))))).flatten(1))


def block(**settings) -> Block:
    net = prepared(Block(**settings), drawn(16, *SHAPE))
    with torch.no_grad():  # constants of either sign behind the norm
        net.norm.bias.copy_(torch.tensor([1.0, -1.0, 0.5, -0.1]))
    return net


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"removed": 0.4},
        {"stride": 2},
        {"groups": 2},
        {"dilation": 2, "padding": 2},
        {"kernel_size": (3, 1), "padding": (1, 0)},
    ],
    ids=str,
)
def test_networks_with_columns_are_lowered_without_a_relu_of_a_constant(settings: dict):
    settings = dict(settings)
    if size := settings.pop("kernel_size", None):
        net = block()
        inner = nn.Conv2d(4, 4, size, padding=settings["padding"])
        net.inner = MaskedConv2d.of(inner, net.inner.columns)
    else:
        net = block(**settings)
    x = drawn(16, *SHAPE)
    program = checked(net, x).program
    counted = count(net, SHAPE)
    assert program.relus == counted.total.relus
    fills = [op for op in program.ops if isinstance(op, Fill)]
    assert len(fills) == 2
    makers = {op.name: op for op in program.ops}
    assert all(isinstance(makers[fill.inputs[0]], Relu) for fill in fills)
    assert not any(isinstance(op, Truncate) for op in program.ops)


def test_a_convolution_that_runs_at_a_finer_stride_leaves_out_what_it_gives():
    net = block(stride=(2, 1))
    program = checked(net, drawn(16, *SHAPE)).program
    assert program.relus == count(net, SHAPE).total.relus


def test_constants_are_what_the_relu_makes_of_the_norms_of_zero():
    net = block()
    program = lower(net, drawn(16, *SHAPE), fraction=16).program
    (fill, _) = (op for op in program.ops if isinstance(op, Fill))
    with torch.no_grad():
        wanted = net.norm(torch.zeros(1, 4, 1, 1)).relu().flatten().numpy()
    assert wanted.min() == 0 < wanted.max()
    assert np.abs(program.weights[fill.name].weight / 2.0**16 - wanted).max() < 2**-16


def test_zeros_of_dead_relus_stay_beside_columns():
    net = block()
    keep = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(5)) < 0.8
    net.act.relu = Zeroed(net.act.relu, keep | ~COLUMNS)
    program = checked(net, drawn(16, *SHAPE)).program
    assert program.relus == count(net, SHAPE).total.relus


def test_a_rectified_position_that_is_no_constant_is_computed():
    net = block()
    net.act = site(4, ~COLUMNS)
    program = checked(net, drawn(16, *SHAPE)).program
    assert program.relus > count(net, SHAPE).total.relus


def test_constants_of_which_a_mask_rectifies_some_stay_before_it():
    net = block()
    net.act = MaskedReLU(torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(6)) < 0.5)
    program = checked(net, drawn(16, *SHAPE)).program
    assert program.relus == count(net, SHAPE).total.relus


def test_a_pixel_left_out_may_be_read_by_others_too():
    class Skip(Block):
        def forward(self, x):
            stem = self.norm(self.stem(x))
            return self.head((self.between(self.inner(self.act(stem))) + stem).flatten(1))

    net = prepared(Skip(), drawn(16, *SHAPE))
    checked(net, drawn(16, *SHAPE))


@pytest.mark.parametrize("factor", [1e4, 1e-4])
def test_scales_move_past_constants(factor: float):
    x, even, uneven = drawn(16, *SHAPE), block(), block()
    with torch.no_grad():
        wanted = even(torch.from_numpy(x)).numpy()
        for part in (uneven.norm.weight, uneven.norm.bias):
            part /= factor
        uneven.inner.weight *= factor
    plainly = np.abs(answers(lower(even, x, modulus=Ring(30)), x) - wanted).max()
    assert np.abs(answers(lower(uneven, x, modulus=Ring(30)), x) - wanted).max() < 2 * plainly + 0.01


def columns_program(mask: np.ndarray | None) -> Program:
    """A convolution to 8 channels of 8x8, ReLUs of what it gives, and a linear layer."""
    rng = np.random.default_rng(0)
    ops = [Conv2d("conv", ("input",), 8, 3, 3, 3, 1, 1, mask=mask), Relu("relu", ("conv",), 3)]
    ops += [Fill("fill", ("relu",), mask)] if mask is not None else []
    ops += [Gather("flat", (ops[-1].name,), np.arange(512, dtype=np.int32)), Linear("head", ("flat",), 3, 3, 3)]
    weights = {
        "conv": Weights(rng.integers(-8, 9, (8, 2, 3, 3)), rng.integers(-99, 100, 8)),
        "head": Weights(rng.integers(-8, 9, (3, 512)), rng.integers(-99, 100, 3)),
    }
    if mask is not None:
        weights["fill"] = Weights(rng.integers(0, 99, 8), np.zeros(8, np.int64))
    return Program(Ring(28), (2, 8, 8), 3, 31, tuple(ops), weights)


QUARTER = np.arange(64).reshape(8, 8) % 4 == 1
PROTOCOLS = [
    ("gc-full", "server"),
    ("gc-full", "client"),
    ("gc-sign", "server"),
    ("gc-sign", "client"),
    ("gc-stochastic:drop=2", "server"),
    ("ot", "server"),
    ("ot:tree", "server"),
    ("ot:drop=2,cot=iknp", "server"),
]


@pytest.mark.parametrize(("text", "garbler"), PROTOCOLS)
def test_two_parties_compute_what_the_interpreter_does_and_pixels_left_out_cost_no_byte(text: str, garbler: Role):
    relu, program = ReluConfig.parse(text), columns_program(QUARTER)
    x = random_inputs(program, 1, 3)
    run = run_both(program, x[0], garbler, relu=relu)
    assert np.array_equal(run.output, plain.run(program, x, client=run.client_shares, protocols=Protocols(relu))[0])
    check_declared(program, garbler, (run.client, run.server), run.stored, relu)
    assert not run.client_shares["fill"][:, ~QUARTER].any()
    config = replace(relu, garbler=garbler) if garbler == "client" else relu
    masks = (QUARTER, np.roll(QUARTER, 1) | QUARTER, None)
    less, half, whole = (Plan(columns_program(mask).public(), config).declared() for mask in masks)
    for phase in ("offline", "online"):
        quarter, two, four = (report.only(layer="relu", phase=phase).bytes for report in (less, half, whole))
        assert four - two == 2 * (two - quarter) > 0  # a layer may send a key beside its 128, 256 or 512 ReLUs
        cheap, dear = (report.only(layer="conv", phase=phase) for report in (less, whole))
        assert cheap.bytes == dear.bytes
        assert sum(row.he_products for row in cheap.rows) == sum(row.he_products for row in dear.rows)
        assert sum(row.macs for row in cheap.rows) * 4 == sum(row.macs for row in dear.rows)
    assert not [row for row in less.rows if row.layer == "fill"]
    if relu.protocol != "ot":  # whose set-up makes the transfers of all ReLUs
        assert less.bytes - less.only(layer="relu").bytes == whole.bytes - whole.only(layer="relu").bytes


def test_the_price_by_layers_is_that_of_the_exact_plan():
    net = block(removed=0.3)
    program = lower(net, drawn(16, *SHAPE)).program
    counted = count(net, SHAPE)
    quotes = quote_layers(counted.priced_layers, Terms()), quote_program(program, Terms())
    macs, relus, transfers = (
        [sum(getattr(row, name) for row in quote.report.rows if row.phase == "online") for quote in quotes]
        for name in ("macs", "relus", "transfers")
    )
    assert macs == [counted.total.macs] * 2
    assert relus == [counted.total.relus] * 2
    assert transfers[0] == transfers[1]
    truncated = [
        sum(row.transfers for row in quote.report.rows if row.kind == "truncate" and row.phase == "offline")
        for quote in quotes
    ]
    assert truncated[0] == truncated[1] > 0


def test_bytes_say_which_pixels_and_nothing_where_none_is_left_out():
    program = columns_program(QUARTER)
    data = to_bytes(program)
    again = from_bytes(data)
    assert to_bytes(again) == data
    assert digest(again) == digest(program) != digest(columns_program(np.roll(QUARTER, 1)))
    assert b'"mask":[8,8]' in data
    assert b'"kernel":3,"name":"conv","op":"conv2d"' in to_bytes(columns_program(None))


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (b'"mask":[4,16]', r"its mask is bool of shape \(4, 16\), true at"),
        (b'"mask":[8,8,1]', "a height and a width are needed"),
        (b'"mask":[8,-8]', "must be an integer from 0"),
        (b'"mask":true', "must be a list"),
        (b'"mask":[99999,99999]', "more bytes"),
        (b'"mask":[0,0]', r"its mask is bool of shape \(0, 0\)"),
    ],
)
def test_other_pixels_in_bytes_are_refused(new: bytes, words: str):
    data = to_bytes(columns_program(QUARTER).public())
    start = len(b"DRSHPRG2") + 8
    head, rest = data[:start], data[start:]
    changed = rest.replace(b'"mask":[8,8]', new, 1)
    size = int.from_bytes(head[-8:], "little") + len(changed) - len(rest)
    with pytest.raises(ProgramError, match=words):
        from_bytes(head[:-8] + size.to_bytes(8, "little") + changed)


def test_masks_that_do_not_fit_are_refused():
    conv = Conv2d("conv", ("input",), 2, 3, 3, 3, 1, 1)
    for mask in (np.ones((7, 8), np.bool_), np.zeros((8, 8), np.bool_), np.ones((8, 8))):
        with pytest.raises(
            ProgramError, match=r"conv: its mask is .* it must be bool of shape \(8, 8\), true somewhere"
        ):
            Program(Ring(28), (2, 8, 8), 3, 31, (replace(conv, mask=mask),))
    with pytest.raises(ProgramError, match=r"fill: its mask is bool of shape \(8, 8\) with 16 pixels, for values of"):
        Program(Ring(28), (2, 15), 3, 31, (Fill("fill", ("input",), QUARTER),))


def test_constants_take_part_in_the_bounds():
    program = columns_program(QUARTER)
    large = Weights(np.array([-(10**6), *range(7)]), np.zeros(8, np.int64))
    larger = replace(program, weights={**program.weights, "fill": large})
    assert larger.bounds()["fill"] == 10**6
    with pytest.raises(ProgramError, match="fill: a public program has no constants to run with"):
        program.ops[2].worst([1], None)
