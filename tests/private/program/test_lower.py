"""Networks of this package against their integer programs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepreshape.models import architecture, build
from deepreshape.nn import MaskedReLU, ReuseForm, RPReLU
from deepreshape.private.arith.ring import Ring
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.encoding import digest, from_bytes, to_bytes
from deepreshape.private.program.folding.simplify import simplify
from deepreshape.private.program.graph import Affine, Conv, Graph, Layer, Traced
from deepreshape.private.program.lower import LOWERED, lower, unsupported
from deepreshape.private.program.ops import INPUT, Conv2d, Linear, ProgramError, Relu, Truncate
from deepreshape.private.program.program import from_fixed, to_fixed
from deepreshape.private.program.quantize import Lowered
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.choose import Protocols
from deepreshape.removal import Cull, Reuse, Thin, plan_of


def ready(model: nn.Module, *shape: int) -> tuple[nn.Module, np.ndarray]:
    """The network with running statistics of its own, and inputs."""
    generator = torch.Generator().manual_seed(1)
    model.train()
    with torch.no_grad():
        model(torch.randn(32, *shape, generator=generator))
    return model.eval(), torch.randn(24, *shape, generator=generator).numpy()


def integers(lowered: Lowered, x: np.ndarray) -> np.ndarray:
    """Results of the plain interpreter, real."""
    program = lowered.program
    outputs = plain.run(program, to_fixed(x, program.input_fraction))
    return from_fixed(outputs, program.values[program.outputs[0]].fraction)


def agree(model: nn.Module, lowered: Lowered, x: np.ndarray) -> float:
    """Within the bound, and the same class wherever the bound leaves no doubt: on what share of the inputs that is."""
    with torch.no_grad():
        wanted = model.double()(torch.from_numpy(x).double()).numpy()
    model.float()
    got = integers(lowered, x)
    assert (np.abs(got - wanted) <= lowered.error).all()
    first, second = np.sort(wanted, axis=1)[:, -1:-3:-1].T
    clear = first - second > 2 * lowered.error.max()
    assert (got.argmax(1) == wanted.argmax(1))[clear].all()
    return float(clear.mean())


NETWORKS = {
    "resnet": ("resnet20-m2-phi1.1.1", (), (3, 8, 8)),
    "thin": ("hrn-2x3x-m2-phi1.1.1", (Thin(),), (3, 8, 8)),
    "culled": ("hrn-2x3x-m2-phi1.1.1", (Cull(1), Thin()), (3, 8, 8)),
    "reused": ("hrn-2x-m4-phi1.1", (Reuse(2),), (3, 6, 6)),
    "proportional": ("hrn-2x-m4-phi1.1", (Cull(1), Reuse(4, ReuseForm("proportional", mix=False))), (3, 6, 6)),
    "wide": ("wideresnet22-8-m2-phi1.1.1", (), (3, 8, 8)),
    "vgg": ("vgg16-m2-avg-phi1.1.1.1.1", (), (3, 8, 8)),
    "resnet9": ("resnet9-m2-avg", (), (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_agree_with_the_network(name: str):
    called, steps, shape = NETWORKS[name]
    plan = plan_of(architecture(called, shape, 5), *steps)
    model, x = ready(build(plan.architecture, seed=0), *shape)
    # many fraction bits, since the bound is for the worst weights and grows with every layer
    lowered = lower(model, x, fraction=23)
    agree(model, lowered, x)
    assert lowered.program.relus == plan.relus
    assert digest(from_bytes(to_bytes(lowered.program))) == digest(lowered.program)
    assert not unsupported(model, shape)
    # and with the formats that calibration chooses
    chosen = lower(model, x)
    assert chosen.program.modulus.bits <= 33
    assert np.abs(integers(chosen, x) - integers(lowered, x)).max() < 0.01


def test_masks_are_kept_exactly():
    rng = np.random.default_rng(0)
    mask = rng.random((4, 5, 5)) < 0.5
    model, x = ready(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            MaskedReLU(torch.from_numpy(mask)),
            nn.Conv2d(4, 4, 1),
            MaskedReLU(torch.zeros(4, 5, 5, dtype=torch.bool)),
            nn.Conv2d(4, 2, 3),
            MaskedReLU(torch.ones(2, 3, 3, dtype=torch.bool)),
            nn.Flatten(),
            nn.Linear(18, 3),
        ),
        3,
        5,
        5,
    )
    lowered = lower(model, x)
    agree(model, lowered, x)
    relus = [op for op in lowered.program.ops if isinstance(op, Relu)]
    assert relus[0].name == "2"
    assert relus[0].mask is not None
    assert (relus[0].mask == mask).all()
    assert relus[1].mask is None
    assert lowered.program.relus == mask.sum() + 18
    seen = {}
    plain.run(
        lowered.program,
        to_fixed(x, lowered.program.input_fraction),
        observe=lambda name, value: seen.update({name: value}),
    )
    before, after = seen["0"], seen["2"]
    kept = np.where(mask, np.maximum(before, 0), before) / (1 << relus[0].shift)
    assert (after == np.floor(kept + 0.5)).all()
    assert after[:, ~mask].min() < 0 <= after[:, mask].min()


def test_a_ring_that_is_too_small_is_refused_with_layer_bits_and_remedy():
    model, x = ready(build(architecture("resnet20-m2-phi1.1.1", (3, 8, 8), 5), seed=0), 3, 8, 8)
    with pytest.raises(
        ProgramError, match=r"^stem\.conv\.0: values reach .* leaves .* use Ring\(\d+\), or a smaller margin"
    ):
        lower(model, x, modulus=Ring(13))
    needed = lower(model, x)
    agree_bits = needed.program.modulus.bits
    with pytest.raises(ProgramError, match=rf"use Ring\({agree_bits}\)"):
        lower(model, x, modulus=Ring(13))
    assert str(needed).startswith(f"Ring(bits={agree_bits})")


class Reread(nn.Module):
    """Reads a value that an in-place ReLU has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((torch.relu_(y) + y).reshape(-1, 18))


def test_operators_of_a_network_s_own_code_are_followed():
    model, x = ready(Reread(), 2, 3, 3)
    agree(model, lower(model, x), x)


def test_all_problems_are_listed_at_once_with_their_paths():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GELU(),
        nn.Sequential(nn.LayerNorm(6), nn.Conv2d(4, 4, 2, dilation=2), nn.Sigmoid()),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    problems = unsupported(model, (3, 8, 8))
    assert [line.split(":")[0] for line in problems] == ["1", "2", "3.0", "3.2"]
    assert "running statistics" in problems[0]
    assert "gelu" in problems[1]
    assert problems[2].endswith(
        "layer_norm cannot be lowered; write torch.nn.BatchNorm2d there and train the network again"
    )
    assert "hard sigmoid" in problems[3]
    with pytest.raises(ProgramError) as refused:
        lower(model, np.zeros((1, 3, 8, 8), np.float32))
    assert all(line in str(refused.value) for line in (*problems, LOWERED))
    (line,) = unsupported(nn.Linear(3, 2), (4,))
    assert "cannot be traced on an input of shape (4,)" in line


def test_a_network_that_decides_by_its_input_is_refused_in_one_line(capfd: pytest.CaptureFixture[str]):
    class Deciding(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.relu() if y.sum() > 0 else y

    (line,) = unsupported(Deciding(nn.Conv2d(3, 4, 3)), (3, 8, 8))
    assert "it decides by the values of its input at line " in line
    assert line.endswith(
        " of test_lower.py, `return y.relu() if y.sum() > 0 else y`, and a program is the same for all inputs"
    )
    assert capfd.readouterr() == ("", "")


class Checked(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.max() < 100
        return self.conv(x)


def test_an_assert_on_values_is_refused_with_its_layer_and_line():
    (line,) = unsupported(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), Checked())), (3, 8, 8))
    assert line.startswith("1.1: the network cannot be traced: it decides by the values of its input at line ")
    assert "of test_lower.py, `assert x.max() < 100`, and" in line
    assert line.endswith("; leave such a check to who calls the network")


def test_a_layer_that_does_not_fit_is_named(capfd: pytest.CaptureFixture[str]):
    (line,) = unsupported(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(nn.ReLU(), nn.Linear(7, 2))), (3, 8, 8))
    assert line.startswith("1.1: the network cannot be traced on an input of shape (3, 8, 8): ")
    assert capfd.readouterr() == ("", "")


def test_bad_calibration_is_named():
    for x in (np.zeros((3, 8, 8)), np.zeros((0, 3, 8, 8)), np.full((1, 3, 8, 8), np.inf)):
        with pytest.raises(ValueError, match=r"calibration takes finite inputs of shape \(N, C, H, W\)"):
            lower(nn.Conv2d(3, 3, 1), x.astype(np.float32))


def chain(*layers: Traced, image: tuple[int, ...] = (4, 6, 6)) -> list[Layer]:
    shapes = {INPUT: image}
    for layer in layers:
        channels = len(layer.weight) if isinstance(layer, Conv) else shapes[layer.inputs[0]][0]
        shapes[layer.name] = (channels, *image[1:])
    graph = Graph(layers, [layers[-1].name], shapes)
    simplify(graph)
    return graph.layers


class _Shifted(nn.Module):
    """An RPReLU behind a sum of two convolutions, one of which is read elsewhere too, or both."""

    def __init__(self, *, both: bool):
        super().__init__()
        self.both = both
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.act, self.head = RPReLU(4), nn.Linear(4, 5)
        for parameter in self.act.parameters():
            nn.init.uniform_(parameter, 0.2, 0.8)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        other = (one + two).relu() + two.relu() if self.both else two.relu()
        if self.both:
            other = other + one.relu()
        return self.head((self.act(one + two) + other).mean((2, 3)))


@pytest.mark.parametrize(("both", "layers"), [(False, 5), (True, 6)])
def test_a_shift_of_a_sum_is_one_of_a_term_that_nothing_else_reads(both: bool, layers: int):
    """Of PReLU(x - b) + c, two slopes are left: b is the first convolution's where it can be, c a slope's."""
    torch.manual_seed(0)
    model, x = ready(_Shifted(both=both), 3, 6, 6)
    lowered = lower(model, x)
    assert sum(isinstance(op, Conv2d | Linear) for op in lowered.program.ops) == layers
    assert agree(model, lowered, x) > 0


def test_a_norm_before_a_convolution_folds_only_where_no_padding_would_see_its_shift():
    rng = np.random.default_rng(0)
    norm = Affine("norm", (INPUT,), np.array([2.0, -1, 0.5, 3]), np.array([1.0, 0, 0, -1]))
    pure = replace(norm, shift=np.zeros(4))
    padded = Conv("conv", ("norm",), rng.normal(size=(6, 2, 3, 3)), rng.normal(size=6), padding=1, groups=2)
    assert [layer.name for layer in chain(norm, padded)] == ["norm", "conv"]
    assert [layer.name for layer in chain(pure, padded)] == ["conv"]
    (folded,) = chain(norm, replace(padded, padding=0))
    assert isinstance(folded, Conv)
    x = torch.from_numpy(rng.normal(size=(1, 4, 6, 6)))
    scaled = torch.from_numpy(norm.scale).view(4, 1, 1) * x + torch.from_numpy(norm.shift).view(4, 1, 1)
    wanted = nn.functional.conv2d(scaled, torch.from_numpy(padded.weight), torch.from_numpy(padded.bias), groups=2)
    output = nn.functional.conv2d(x, torch.from_numpy(folded.weight), torch.from_numpy(folded.bias), groups=2)
    assert torch.allclose(output, wanted)


def test_convolutions_are_fused_only_where_it_is_exact_and_cheaper():
    rng = np.random.default_rng(0)

    def conv(name: str, source: str, fan_in: int, out: int, kernel: int, bias: bool = True) -> Conv:
        weight = rng.normal(size=(out, fan_in, kernel, kernel))
        return Conv(name, (source,), weight, bias * rng.normal(size=out), padding=kernel // 2)

    assert [len(chain(conv("a", INPUT, 4, 2, 1), conv("b", "a", 2, 4, 1)))] == [2]  # exact, but no cheaper
    assert [layer.name for layer in chain(conv("a", INPUT, 4, 8, 3), conv("b", "a", 8, 2, 1))] == ["b"]
    assert len(chain(conv("a", INPUT, 4, 8, 1), conv("b", "a", 8, 2, 3))) == 2  # padding would see a's bias
    assert len(chain(conv("a", INPUT, 4, 8, 1, bias=False), conv("b", "a", 8, 2, 3))) == 1
    assert len(chain(conv("a", INPUT, 4, 4, 3), conv("b", "a", 4, 4, 3))) == 2


def test_a_reused_convolution_becomes_one_and_equal_groups_stay_grouped():
    kinds = {}
    for kind in ("fixed", "proportional"):
        form = ReuseForm(kind, mix=False)
        plan = plan_of(architecture("hrn-2x-m4-phi1.1", (3, 6, 6), 5), Thin(), Reuse(2, form))
        model, x = ready(build(plan.architecture, seed=0), 3, 6, 6)
        program = lower(model, x).program
        kinds[kind] = {op.name: op for op in program.ops}
    assert kinds["fixed"]["stage1.0.conv2"].groups == 1
    assert kinds["proportional"]["stage1.0.conv2"].groups == 2
    relu = kinds["fixed"]["stage1.0.conv2.groups.0.2"]
    assert isinstance(relu, Relu)
    assert relu.mask is not None
    assert relu.mask[:2].all()
    assert not relu.mask[2:].any()


def test_digits_keep_their_accuracy():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x = ((images.reshape(-1, 1, 8, 8) - 4.9) / 6).astype(np.float32)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    train, answers = torch.from_numpy(x[:1400]), torch.from_numpy(labels[:1400])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(120):
        batch = torch.arange(step * 64, step * 64 + 64) % 1400
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train[batch]), answers[batch]).backward()
        optimizer.step()
    model.eval()
    test = x[1400:]
    assert agree(model, lower(model, x[:200], fraction=20), test) > 0.95
    lowered = lower(model, x[:200])
    agree(model, lowered, test)
    with torch.no_grad():
        wanted = model(torch.from_numpy(test)).numpy().argmax(1)
    got = integers(lowered, test).argmax(1)
    assert not [op for op in lowered.program.ops if isinstance(op, Truncate)]
    assert not [op for op in lowered.program.ops if isinstance(op, Conv2d) and "raise" in op.name]
    assert abs((got == labels[1400:]).mean() - (wanted == labels[1400:]).mean()) <= 0.003


@pytest.mark.parametrize("word", ["gc-full", "gc-sign", "ot"])
def test_rounding_is_right_on_average_under_every_protocol(word: str):
    """A global mean adds up whatever each ReLU rounds to one side: half a unit each was a tenth of the result here."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    ).eval()
    x = torch.randn(20, 3, 32, 32)
    program = lower(network, x.numpy()).program
    chosen, rng = Protocols(ReluConfig.parse(word)), Randomness(bytes(32))
    results = plain.run(program, to_fixed(x.numpy(), program.input_fraction), protocols=chosen, rng=rng)
    wanted = network(x).detach().numpy()
    off = from_fixed(results, program.values[program.outputs[0]].fraction) - wanted
    assert np.abs(off).max() < 0.01 * np.abs(wanted).max()
