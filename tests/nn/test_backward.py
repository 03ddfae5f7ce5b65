"""Gradients with a slope where ReLUs are off; outputs without."""

import pytest
import torch
from torch import nn

from deepreshape.nn import MaskedReLU
from deepreshape.nn.backward import backward_slope


def network() -> nn.Sequential:
    torch.manual_seed(0)
    mask = torch.rand(4, 5, 5) < 0.5
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), MaskedReLU(mask)
    )


def gradient(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    out = model(x)
    return out.detach(), torch.autograd.grad(out.square().sum(), x)[0]


def test_outputs_are_the_same_bit_for_bit_and_gradients_too_at_slope_zero():
    model, x = network(), torch.randn(3, 2, 5, 5)
    before, names = [*model], list(model.state_dict())
    out, grad = gradient(model, x)
    with backward_slope(model, 0.0):
        same, plain = gradient(model, x)
        assert list(model.state_dict()) == names
    with backward_slope(model, 0.3):
        also, sloped = gradient(model, x)
    assert torch.equal(out, same)
    assert torch.equal(grad, plain)
    assert torch.equal(out, also)
    assert not torch.equal(grad, sloped)
    assert [*model] == before


def test_what_is_off_passes_its_share_of_the_gradient():
    model = nn.Sequential(nn.ReLU())
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    with backward_slope(model, 0.25):
        model(x).backward(torch.ones(3))
    assert x.grad is not None
    assert x.grad.tolist() == [0.25, 0.25, 1.0]


def test_a_leaky_slope_of_its_own_gives_the_ordinary_gradient():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(0.125)), torch.randn(5, 3)
    out, grad = gradient(model, x)
    with backward_slope(model, 0.125):
        assert torch.equal(gradient(model, x)[1], grad)
    assert out.min() < 0


def test_the_network_is_restored_whatever_is_raised():
    model = network()
    before = [*model]
    with pytest.raises(RuntimeError, match="of its own"), backward_slope(model, 0.1):
        raise RuntimeError("of its own")
    assert [*model] == before


@pytest.mark.parametrize(("slope", "words"), [(2.0, "from 0 to 1, not 2.0"), (float("nan"), "not nan")])
def test_slopes_that_make_no_sense(slope: float, words: str):
    with pytest.raises(ValueError, match=words), backward_slope(network(), slope):
        pass


def test_functions_cannot_be_reached():
    with pytest.raises(ValueError, match="a slope cannot reach functions"), backward_slope(nn.Linear(2, 2), 0.1):
        pass
