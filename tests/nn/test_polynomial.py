import pytest
import torch

from deepreshape.counting import count
from deepreshape.nn import PolynomialReLU, polynomial_relu


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
