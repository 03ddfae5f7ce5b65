import pytest
import torch

from deepreshape.nn import GatedReLU


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
