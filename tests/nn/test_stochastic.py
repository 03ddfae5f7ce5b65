import pytest
import torch
from support.stochastic import fault_probability

from deepreshape.nn import Faults, MaskedReLU, StochasticReLU, faulty
from deepreshape.private.arith.drelu import MODES, Mode
from deepreshape.private.arith.ring import CIRCA_PRIME, Field, Ring


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
    output = StochasticReLU(Faults(30, 20), generator=torch.Generator().manual_seed(1))(x)
    assert not output.any()
    output.sum().backward()
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
        with pytest.raises(ValueError, match="as a stochastic ReLU; write stochastic:drop=12,fraction=20"):
            Faults.parse(text)
    with pytest.raises(ValueError, match="settings that are not known"):
        Faults.parse("stochastic:drop=1,fraction=2,pos-zero,neg-pass")
    with pytest.raises(ValueError, match="unknown mode 'x'"):
        Faults.parse("stochastic:drop=1,fraction=2,x")
    with pytest.raises(ValueError, match="0 to 40 bits"):
        Faults(41, 0)
