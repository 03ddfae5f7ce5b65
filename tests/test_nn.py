import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.stochastic import fault_probability

from deepreshape.counting import count
from deepreshape.nn import (
    KINDS,
    Faults,
    GatedReLU,
    MaskedReLU,
    PolynomialReLU,
    ReuseConv,
    ReuseForm,
    StochasticReLU,
    faulty,
    masked_relu,
    polynomial_relu,
    rebuild,
    swap,
)
from deepreshape.private.arith.drelu import MODES, Mode
from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring


def test_masked_relu_rectifies_only_where_the_mask_is():
    x = torch.tensor([[[[-1.0, -2.0, 3.0, 4.0]]]])
    mask = torch.tensor([[[True, False, True, False]]])
    assert masked_relu(x, mask).tolist() == [[[[0.0, -2.0, 3.0, 4.0]]]]


def test_masked_relu_has_the_gradient_of_what_it_computes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 4, 4, generator=generator) < 0.5
    assert torch.autograd.gradcheck(lambda value: masked_relu(value, mask), x)


def test_a_mask_is_a_buffer_and_never_trained():
    layer = MaskedReLU(torch.ones(1, 2, 2, dtype=torch.bool))
    assert list(layer.parameters()) == []
    assert "mask" in layer.state_dict()
    with pytest.raises(ValueError, match="bool tensor of shape"):
        MaskedReLU(torch.ones(2, 2))


MASK = torch.tensor([[[True, False]], [[False, False]]])


@pytest.mark.parametrize("site", [MaskedReLU(MASK), PolynomialReLU(MASK, torch.tensor([[1.0, 2, 3], [0, -1, 0.5]]))])
def test_what_stands_at_a_site_is_rebuilt_from_its_tensors(site):
    again = rebuild(site.kind, site.state_dict())
    x = torch.randn(3, 2, 1, 2)
    assert type(again) is type(site)
    assert torch.equal(again(x), site(x))
    with pytest.raises(ValueError, match=f"a {site.kind} needs the tensor 'mask', and nothing was saved"):
        rebuild(site.kind, {})


def test_kinds_are_registered_by_their_classes_and_an_unknown_one_is_named():
    assert all(kind.kind == word for word, kind in KINDS.items())
    assert {"masked-relu", "polynomial-relu"} <= set(KINDS)
    with pytest.raises(ValueError, match="unknown kind of nonlinearity 'cubic'; this version knows masked-relu"):
        rebuild("cubic", {})


@pytest.mark.parametrize("shape", [(3, 2, 4), (3,)])
def test_a_polynomial_relu_is_one_operator_with_the_gradient_of_what_it_computes(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(shape, generator=generator) < 0.5
    line = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    c = line.detach().view(3, 3, *(1,) * (len(shape) - 1))
    by_hand = torch.where(mask, x.relu(), c[:, 0] + c[:, 1] * x + c[:, 2] * x * x)
    assert torch.allclose(polynomial_relu(x, mask, line), by_hand)
    assert torch.autograd.gradcheck(lambda x, line: polynomial_relu(x, mask, line), (x, line))
    counted = count(PolynomialReLU(mask, line.detach().float()), shape)
    assert counted.total.relus == int(mask.sum())
    assert counted.total.squares == int((~mask).sum())
    assert not counted.unknown


def test_modules_are_swapped_for_a_while_at_each_of_their_paths():
    shared = torch.nn.ReLU()
    model = torch.nn.Sequential(shared, torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh()), shared)
    asked = []

    def make(path, module):
        asked.append(path)
        return torch.nn.Identity() if path in ("0", "1") else None

    with swap(model, make):
        assert asked == ["0", "1", "2"]  # not about the parts of what is replaced
        assert [type(layer).__name__ for layer in model] == ["Identity", "Identity", "ReLU"]
    assert isinstance(model[1], torch.nn.Sequential)
    with pytest.raises(KeyError), swap(model, make):
        raise KeyError
    assert model[0] is model[2] is shared
    assert isinstance(model[1], torch.nn.Sequential)


def test_a_masked_relu_is_the_same_in_every_layout_and_dtype():
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(2, 3, 4, 5, generator=generator), torch.rand(3, 4, 5, generator=generator) < 0.5
    expected = torch.where(mask, x.relu(), x)
    assert torch.equal(masked_relu(x, mask), expected)
    last = masked_relu(x.contiguous(memory_format=torch.channels_last), mask)
    assert torch.equal(last, expected)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(masked_relu(x.bfloat16(), mask), expected.bfloat16())


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4), (3, 1, 1), (1, 1, 1)])
def test_a_gate_blends_relu_and_identity_and_has_their_gradient(shape: tuple[int, int, int]):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 4, 4, generator=generator) < 0.7
    layer = GatedReLU(mask, shape).double()
    with torch.no_grad():
        layer.gate.copy_(torch.rand(shape, generator=generator))
    gate = layer.gate * mask
    assert torch.allclose(layer(x), gate * x.relu() + (1 - gate) * x)

    def blended(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"gate": gate, "mask": mask}, (x,))

    assert torch.autograd.gradcheck(blended, (x, layer.gate))


def test_a_pulled_gate_gives_the_mask_and_keeps_its_gradient():
    x = torch.tensor([[[[-2.0, 3.0]]]])
    layer = GatedReLU(torch.ones(1, 1, 2, dtype=torch.bool), (1, 1, 2))
    with torch.no_grad():
        layer.gate.fill_(0.5)
    layer.pull(1.0, torch.zeros(1, 1, 2))
    assert layer(x).tolist() == x.tolist()
    layer(x).sum().backward()
    assert layer.gate.grad.tolist() == [[[2.0, 0.0]]]


@given(
    factor=st.sampled_from([2, 3, 4, 8, 16]),
    width=st.sampled_from([16, 20, 48]),
    kind=st.sampled_from(["fixed", "proportional"]),
    stride=st.sampled_from([1, 2]),
)
def test_reuse_keeps_one_group_of_relus_and_saves_macs_before_it_mixes(factor: int, width: int, kind: str, stride: int):
    layer = ReuseConv(width, width, 3, stride, factor, ReuseForm(kind))  # pyright: ignore[reportArgumentType]
    counted = count(layer, (width, 8, 8)).total
    side = 8 // stride
    assert counted.relus == width // factor * side * side
    assert counted.macs < (9 + 1) * width * width * side * side  # the 1x1 that mixes the groups included
    assert layer(torch.zeros(2, width, 8, 8)).shape == (2, width, side, side)


def test_reuse_passes_its_middle_group_on_unchanged():
    layer = ReuseConv(8, 8, 3, 1, 4, ReuseForm(passed=0.5, mix=False)).eval()
    x = torch.randn(1, 8, 5, 5)
    kept, passed = layer.out_widths[:2]
    assert torch.equal(layer(x)[:, kept : kept + passed], x[:, kept : kept + passed])


def test_reuse_refuses_what_it_cannot_split():
    with pytest.raises(ValueError, match="cannot reuse ReLUs 16 times over 8 channels; 2 to 8 works"):
        ReuseConv(8, 8, 3, 1, 16, ReuseForm())


@pytest.mark.parametrize("mode", MODES)
def test_a_stochastic_relu_is_wrong_for_as_many_draws_as_over_the_ring(mode: Mode, monkeypatch: pytest.MonkeyPatch):
    units = torch.arange(-20, 21)
    x = (units / 2**5).expand(8, -1)
    every = torch.arange(8)[:, None].expand(x.shape)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: every)
    wrong = (StochasticReLU(Faults(3, 5, mode))(x) != x.clamp(min=0)).double().mean(0)
    assert wrong.tolist() == fault_probability(units.numpy(), Ring(16), 3, mode).tolist()


@pytest.mark.parametrize("mode", MODES)
def test_a_stochastic_relu_over_a_field_follows_the_formula(mode: Mode):
    units = torch.tensor([-(2**28), -1000, -1, 1, 1000, 2**28])
    draws = 40_000
    layer = StochasticReLU(Faults(12, 16, mode, CIRCA_PRIME), generator=torch.Generator().manual_seed(1))
    x = (units.double() / 2**16).expand(draws, -1)
    wrong = (layer(x) != x.clamp(min=0)).double().mean(0)
    wanted = torch.from_numpy(fault_probability(units.numpy(), Field(CIRCA_PRIME), 12, mode))
    assert (wrong - wanted).abs().max() < 0.02  # Hoeffding: beyond it with probability below 1e-12


def test_a_stochastic_relu_has_the_gradient_of_a_relu_whatever_it_gives():
    x = torch.linspace(-1, 1, 41).requires_grad_()
    found = StochasticReLU(Faults(30, 20), generator=torch.Generator().manual_seed(1))(x)
    assert not found.any()
    found.sum().backward()
    assert torch.equal(x.grad, (x > 0).float())


def test_relus_are_stochastic_for_a_while():
    mask = torch.tensor([[[True, False]]])
    model = torch.nn.Sequential(torch.nn.ReLU(inplace=True), MaskedReLU(mask))
    before, state = list(model), model.state_dict()
    x = torch.tensor([[[[0.5, -0.5]]], [[[-0.5, 0.25]]]])
    with faulty(model, Faults(40, 20)):
        assert all(isinstance(layer, StochasticReLU) for layer in model)
        assert model.state_dict().keys() == state.keys()
        assert model[1](x).tolist() == [[[[0.0, -0.5]]], [[[0.0, 0.25]]]]
    assert list(model) == before
    with pytest.raises(KeyError), faulty(model, Faults(1, 1)):
        raise KeyError
    assert list(model) == before


def test_faults_are_parsed_and_checked():
    assert Faults.parse("stochastic:drop=12,fraction=20") == Faults(12, 20)
    assert Faults.parse("stochastic:neg-pass,fraction=8,drop=3,order=61") == Faults(3, 8, "neg-pass", 61)
    for text in ("gc-sign", "stochastic:drop=12", "stochastic:drop=1,fraction=2,k=3", "stochastic:drop=1,fraction=x"):
        with pytest.raises(ValueError, match="is no stochastic ReLU; write stochastic:drop=12,fraction=20"):
            Faults.parse(text)
    with pytest.raises(ValueError, match="settings that are not known"):
        Faults.parse("stochastic:drop=1,fraction=2,pos-zero,neg-pass")
    with pytest.raises(ValueError, match="'x' is no mode"):
        Faults.parse("stochastic:drop=1,fraction=2,x")
    with pytest.raises(ValueError, match="0 to 40 bits"):
        Faults(41, 0)
