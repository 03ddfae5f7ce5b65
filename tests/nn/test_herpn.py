import math

import numpy as np
import pytest
import torch
from torch import nn

from deepreshape.nn import rebuild
from deepreshape.nn.herpn import LINEAR, SQUARE, HerPN, escape


def trained(channels: int = 4, dims: int = 4) -> HerPN:
    """One that has seen data and whose parameters are not their defaults."""
    generator = torch.Generator().manual_seed(0)
    module = HerPN(channels)
    with torch.no_grad():
        module.scale.uniform_(0.5, 1.5, generator=generator)
        module.shift.uniform_(-1, 1, generator=generator)
    shape = (64, channels, 5, 5) if dims == 4 else (64, channels)
    for _ in range(5):
        module(1.5 * torch.randn(shape, generator=generator) + 0.3)
    return module.eval()


def test_coefficients_are_those_of_a_relu_under_a_normal_distribution():
    x, weight = np.polynomial.hermite_e.hermegauss(200)
    weight = weight / math.sqrt(2 * math.pi)
    relu = np.maximum(x, 0)
    assert abs((weight * relu * x).sum() - LINEAR) < 1e-3  # the quadrature of a kink
    fine = np.linspace(0, 12, 2_000_001)
    density = np.exp(-(fine**2) / 2) / math.sqrt(2 * math.pi)
    assert abs(np.trapezoid(fine * fine * density, fine) - LINEAR) < 1e-6
    assert abs(np.trapezoid(fine * (fine**2 - 1) / math.sqrt(2) * density, fine) - SQUARE) < 1e-6


def test_bases_are_normalised_one_by_one():
    module, x = HerPN(3), 2 * torch.randn(256, 3, 4, 4, generator=torch.Generator().manual_seed(1)) - 1
    out = module(x)
    first = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, correction=0)
    square = x * x
    second = (square - square.mean((0, 2, 3), keepdim=True)) / square.std((0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(out, LINEAR * first + SQUARE * second, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_training_step_is_that_of_two_batch_norms(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deepreshape.nn.chunks.CHUNK", 20)  # chunks that do not divide the rows
    generator = torch.Generator().manual_seed(6)
    module = HerPN(3).double()
    with torch.no_grad():
        module.scale.uniform_(0.5, 1.5, generator=generator)
    x = (2 * torch.randn(7, 3, 3, 2, generator=generator).double() + 1).to(memory_format=layout).requires_grad_()
    wanted = torch.randn(x.shape, generator=generator).double()
    means, variances = module.means.clone(), module.variances.clone()
    (module(x) * wanted).sum().backward()
    to_scale, module.scale.grad, again = module.scale.grad, None, x.detach().clone().requires_grad_()
    first, second = (
        nn.functional.batch_norm(basis, mean, variance, training=True, momentum=0.1, eps=1e-5)
        for basis, mean, variance in zip((again, (again**2 - 1) / math.sqrt(2)), means, variances, strict=True)
    )
    ((module.scale.view(3, 1, 1) * (LINEAR * first + SQUARE * second)) * wanted).sum().backward()
    for got, expected in (
        (x.grad, again.grad),
        (to_scale, module.scale.grad),
        (module.shift.grad, wanted.sum((0, 2, 3))),
    ):
        assert got is not None
        assert expected is not None
        assert torch.allclose(got, expected, atol=1e-10)
    assert torch.allclose(module.means, means, atol=1e-12)
    assert torch.allclose(module.variances, variances, atol=1e-12)


def test_a_channel_far_from_zero_keeps_its_variance():
    module, x = HerPN(1), 1000 + torch.randn(4096, 1, generator=torch.Generator().manual_seed(7))
    module(x)
    assert float(module.variances[0, 0]) == pytest.approx(0.9 + 0.1 * float(x.var()), rel=1e-5)


@pytest.mark.parametrize("dims", [2, 4])
def test_in_evaluation_it_is_its_quadratic(dims: int):
    module = trained(dims=dims).double()
    x = torch.randn((8, 4, 3, 3) if dims == 4 else (8, 4), generator=torch.Generator().manual_seed(2)).double()
    constant, linear, square = module.coefficients.reshape(4, 3, *[1] * (dims - 2)).unbind(1)
    assert torch.allclose(module(x), constant + linear * x + square * x * x, atol=1e-9)
    deviations = (module.variances + 1e-5).sqrt().reshape(2, 4, *[1] * (dims - 2))
    means = module.means.reshape(2, 4, *[1] * (dims - 2))
    bases = (x - means[0]) / deviations[0], ((x * x - 1) / math.sqrt(2) - means[1]) / deviations[1]
    scale, shift = (tensor.reshape(4, *[1] * (dims - 2)) for tensor in (module.scale, module.shift))
    assert torch.allclose(module(x), scale * (LINEAR * bases[0] + SQUARE * bases[1]) + shift, atol=1e-9)


def test_it_is_rebuilt_from_what_was_saved():
    module = trained()
    again = rebuild("herpn", module.state_dict()).eval()
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(module(x), again(x))


def test_what_escapes_is_penalised_and_what_does_not_is_not():
    model = nn.Sequential(HerPN(2), HerPN(2))
    x = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(4)).clamp(-2, 2)
    far = x.clone()
    far[0, 0, 0, 0] = 1000.0
    with escape(model, limit=4.0) as seen:
        model[0](x)
        inside = seen.take()
        model[0](far)
        outside = seen.take()
        model[0](far / 1000)
        smaller = seen.take()  # shrinking all of it helps nothing
        model.eval()(far)
        assert float(seen.take()) == 0  # evaluation is not watched
    channel = far[:, 0]
    distance = float((channel.max() - channel.mean()) / channel.std(correction=0))
    assert float(inside) == 0
    assert float(outside) == pytest.approx((distance - 4) ** 2 / far.numel(), rel=1e-3)
    assert float(smaller) == pytest.approx(float(outside), rel=0.1)
    assert model[0].watch is None


def test_the_penalty_pulls_in_what_escapes():
    x = torch.randn(256, 1, generator=torch.Generator().manual_seed(5))
    x[0] = 50.0
    x.requires_grad_()
    with escape(model := nn.Sequential(HerPN(1)), limit=4.0) as seen:
        model(x)
        seen.take().backward()
    assert x.grad is not None
    values = x.detach()
    mean, deviation = values.mean(), (values.var(correction=0) + 1e-5).sqrt()
    expected = float(2 * ((values[0] - mean) / deviation - 4) / deviation / 256)
    assert float(x.grad[0]) == pytest.approx(expected, rel=1e-4)
    assert not x.grad[1:].any()
