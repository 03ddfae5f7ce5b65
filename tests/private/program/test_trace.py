"""Networks that a trace once took for others, or needlessly refused: each beside its program."""

from typing import Any

import numpy as np
import pytest
import torch
from support.lowered import answers, checked, drawn, prepared
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from deepreshape.counting import count
from deepreshape.models import convert
from deepreshape.private.program.lower import lower, problems, unsupported
from deepreshape.private.program.ops import ProgramError


class OnePool(nn.Module):
    """One pool module at two places."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.gap, self.f1, self.f2 = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c1(x)
        z = self.c2(y)
        return self.f1(self.gap(y).flatten(1)) + self.f2(self.gap(z).flatten(1))


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.pool = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.MaxPool2d(2)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.c1(x)))
        return self.fc(self.relu(self.c2(x)).mean((2, 3), keepdim=True).mean((2, 3), keepdim=True).flatten(1))


class Shared(nn.Module):
    """One convolution, norm, linear layer and in-place ReLU at several places; sums in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu, self.fc = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(True), nn.Linear(3, 3)
        self.again = self.relu

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu(self.norm(self.conv(x)))
        b = self.again(self.conv(a))
        c = a + b
        c += b
        c = F.avg_pool2d(F.avg_pool2d(c + a, 2), 2).mean((2, 3))
        return self.fc(self.relu(self.fc(c)))


class ReadAgain(nn.Module):
    """An in-place ReLU, its input read again; dropout before an in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.drop, self.alpha = nn.Dropout2d(), nn.AlphaDropout()

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        torch._assert(x.dim() == 4, "a batch of images")
        y = self.conv(x)
        z = self.relu(self.drop(y)) + y
        return self.alpha(z).float().to(x.dtype).mean((2, 3))


class Computed(nn.Module):
    """Weights that are computed from others."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
        self.gamma = nn.Parameter(torch.randn(4, 1, 1))
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x) * (1 + self.gamma)).mean((2, 3)).clone().detach()
        return F.linear(self.fc(y), self.weight.detach(), self.bias * 2)


NETWORKS = {"one pool": OnePool, "lenet": LeNet, "shared": Shared, "read again": ReadAgain, "computed": Computed}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_is_the_network(name: str):
    x = drawn(8, 3, 8, 8)
    checked(prepared(NETWORKS[name](), x), x)


class Wrapped(nn.Module):
    def __init__(self, wrap: Any):
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(3, 4, 3), wrap

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.conv(x)).mean((2, 3))
        return self.wrap(y)


@pytest.mark.parametrize(
    "wrap", [lambda y: {"logits": y}, lambda y: (y,), lambda y: [y], lambda y: {"out": y, "aux": None}]
)
def test_an_output_may_be_wrapped(wrap: Any):
    x = drawn(4, 3, 6, 6)
    plain = answers(lower(Wrapped(lambda y: y).eval(), x), x)
    torch.manual_seed(0)
    model = Wrapped(wrap).eval()
    assert answers(lower(model, x), x).shape == plain.shape


def test_several_outputs_are_all_computed():
    x = drawn(4, 3, 6, 6)
    lowered = checked(Wrapped(lambda y: (y, y * 2 + 1)).eval(), x)
    assert len(lowered.program.outputs) == 2
    one, two = lowered.program.decode(np.arange(8, dtype=np.int64)[None])
    assert one.shape == two.shape == (1, 4)


def test_a_softmax_at_the_end_is_the_client_s_and_inside_it_is_refused():
    x = drawn(4, 3, 6, 6)
    logits = answers(lower(Wrapped(lambda y: y).eval(), x), x)
    torch.manual_seed(0)
    assert np.allclose(answers(lower(Wrapped(lambda y: torch.softmax(y, 1)).eval(), x), x), logits)
    (line,) = unsupported(Wrapped(lambda y: torch.softmax(y, 1) + y), (3, 6, 6))
    assert "inside" in line


def test_bfloat16_is_lowered_by_its_values():
    x = drawn(4, 3, 6, 6)
    model = Wrapped(lambda y: y).eval().to(torch.bfloat16)
    got = answers(lower(model, x, fraction=20), x)
    with torch.no_grad():
        wanted = model.float()(torch.from_numpy(x)).numpy()
    assert np.abs(got - wanted).max() < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float):
    model = Shared()
    model.fc.weight.data[1, 2] = value
    with pytest.raises(ProgramError, match=r"^fc: 1 of 9 values of its weight are NaN or infinite; load the weights"):
        lower(model, drawn(4, 3, 8, 8))


def test_complex_weights_are_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dtype=torch.complex64), nn.Flatten())
    line = "0: its weights are complex numbers; take a channel for each of the two parts"
    assert unsupported(model, (4, 8, 8)) == (line,)


def test_a_negative_running_variance_is_named():
    model = Shared()
    model.norm.running_var[2] = -0.5
    with pytest.raises(
        ProgramError, match=r"^norm: the running variance of channel 2 is -0\.5; variances are positive"
    ):
        lower(model, drawn(4, 3, 8, 8))


def test_a_network_that_mixes_the_inputs_of_a_batch_is_refused():
    class Mixing(Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y - y.mean(0, keepdim=True)

    assert any("batch" in line for line in unsupported(Mixing(lambda y: y), (3, 6, 6)))


def test_a_problem_names_layer_operator_and_remedy():
    (problem,) = problems(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()), (3, 4, 4))
    assert (problem.layer, problem.operator) == ("1", "gelu")
    assert "substitute" in problem.instead


class TwoImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.conv(left) - self.conv(right)).relu().mean((2, 3))


class Joined(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(*x.split([3, 3], 1))


def test_two_inputs_are_refused_everywhere_and_run_joined():
    network = TwoImages().eval()
    words = r"the network takes 2 inputs \(left, right\), and only networks of one input .*; .* `left, right = x.split"
    x = drawn(4, 6, 6, 6)
    for work in (lambda: count(network, (3, 6, 6)), lambda: convert(network, (3, 6, 6)), lambda: lower(network, x)):
        with pytest.raises(ValueError, match=words):
            work()
    assert len(problems(network, (3, 6, 6))) == 1
    checked(Joined(network), x)
    assert count(Joined(network), (6, 6, 6)).total.relus == 2 * 16


def test_an_einsum_is_told_what_does_instead():
    class Contracted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bchw,cd->bdhw", x, self.weight)

    (problem,) = problems(Contracted(), (3, 4, 4))
    assert str(problem) == (
        "einsum: einsum cannot be lowered; if it is by weights, write matmul or a convolution; of two values, only "
        "products element by element are computed"
    )
