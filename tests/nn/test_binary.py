"""Signs, PReLUs between shifts, one-bit weights, and thresholds that take two steps in one."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepreshape.nn import BinaryConv2d, RPReLU, RSign, SignConv2d, rebuild
from deepreshape.nn.binary import binary_weight, fused_threshold, sign


def test_signs_are_never_zero_and_stand_for_what_is_above_the_threshold():
    x = torch.tensor([[-1.0, 0.0, -0.0, 1e-30, 2.0]])
    assert sign(x, torch.zeros(5)).tolist() == [[-1.0, -1.0, -1.0, 1.0, 1.0]]
    assert sign(x, torch.full((5,), 2.0)).tolist() == [[-1.0] * 5]


def test_thresholds_are_compared_in_float32_under_bfloat16():
    x = torch.tensor([[1.0]], dtype=torch.bfloat16)
    assert sign(x, torch.tensor([1.001])).item() == -1
    assert sign(x, torch.tensor([0.999])).item() == 1


def test_the_gradient_is_that_of_a_piecewise_quadratic():
    x = torch.tensor([[-1.5], [-0.5], [0.25], [0.5], [1.5]], requires_grad=True)
    threshold = torch.zeros(1, requires_grad=True)
    sign(x, threshold).sum().backward()
    assert x.grad is not None
    assert threshold.grad is not None
    assert x.grad.flatten().tolist() == [0.0, 1.0, 1.5, 1.0, 0.0]
    assert threshold.grad.item() == -3.5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_are_worked_on_by_parts_of_a_batch(monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format):
    whole = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for values in (1, 100, 1 << 20):  # a sample, two of them, all at a time
        monkeypatch.setattr("deepreshape.nn.chunks.CHUNK", values)
        x = whole.contiguous(memory_format=layout).requires_grad_()
        threshold = torch.tensor([-0.3, 0.0, 0.4], dtype=torch.float64, requires_grad=True)
        y = sign(x, threshold)
        assert y.is_contiguous(memory_format=layout)
        results.append((y, *torch.autograd.grad((y * whole).sum(), (x, threshold))))
    for some in results[:-1]:
        assert all(torch.allclose(ours, whole) for ours, whole in zip(some, results[-1], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_rprelu_in_training_is_a_prelu_between_shifts_in_its_inputs_dtype(dtype: torch.dtype):
    random = torch.Generator().manual_seed(0)
    act = RPReLU(3)
    with torch.no_grad():
        for parameter in act.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    x, to_y = (torch.randn(6, 3, 5, 5, generator=random).to(dtype) for _ in range(2))
    x.requires_grad_()
    trained = act.train()(x)
    plain = functional.prelu(x.float() - act.before, act.slope) + act.after
    assert trained.dtype == dtype
    assert torch.equal(trained, plain.to(dtype))
    of = (x, *act.parameters())
    given = torch.autograd.grad((trained * to_y).sum(), of)
    for ours, right in zip(given, torch.autograd.grad((plain * to_y).sum(), of), strict=True):
        assert ours.shape == right.shape
        assert torch.allclose(ours, right, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)


def test_weights_keep_their_size_by_channel_and_pass_gradients_within_one():
    weight = torch.tensor([[0.5, -1.5], [0.0, 0.2]], requires_grad=True)
    binary = binary_weight(weight)
    assert torch.allclose(binary, torch.tensor([[1.0, -1.0], [-0.1, 0.1]]))
    (binary * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 0.0], [3.0, 4.0]]


def random_activation(channels: int) -> RPReLU:
    activation = RPReLU(channels)
    with torch.no_grad():
        activation.slope.copy_(torch.rand(channels) * 2 + 0.01)
        activation.before.copy_(torch.randn(channels, 1, 1))
        activation.after.copy_(torch.randn(channels, 1, 1))
    return activation


def test_fused_thresholds_are_equal_bit_for_bit_in_200_000_cases():
    torch.manual_seed(0)
    channels, around = 400, 500
    activation, threshold = random_activation(channels), torch.randn(channels)
    fused = fused_threshold(activation, threshold)
    # half of the cases are the floats next to the threshold, where a rounding would show
    near = fused.view(torch.int32)[None] + torch.arange(-around // 4, around // 4, dtype=torch.int32)[:, None]
    x = torch.cat([near.view(torch.float32), torch.randn(around // 2, channels)])[:, :, None, None]
    assert x.numel() == 200_000
    one = sign(activation(x), threshold)
    assert torch.equal(one, sign(x, fused))
    assert one.min() < one.max()


def test_slopes_of_zero_have_a_threshold_too_finite_where_all_is_above_it():
    activation, threshold = random_activation(6), torch.zeros(6)
    with torch.no_grad():
        activation.slope.zero_()
        activation.after[:, 0, 0] = torch.tensor([-1.0, 0.0, 1.0, -1e-30, 1e-30, -1e30])
    fused = fused_threshold(activation, threshold)
    assert fused.isfinite().all()
    x = torch.cat([torch.randn(200, 6), torch.full((1, 6), 1e38), torch.full((1, 6), -1e38), fused[None]])
    assert torch.equal(sign(activation(x[:, :, None, None]), threshold)[:-1, :, 0, 0], sign(x[:-1], fused))
    assert torch.equal(sign(activation(fused[None, :, None, None]), threshold)[0, fused > -1e38], -torch.ones(4, 1, 1))


@pytest.mark.parametrize("slope", [-0.5, float("nan")])
def test_a_slope_below_zero_is_no_threshold(slope: float):
    activation = random_activation(3)
    with torch.no_grad():
        activation.slope[1] = slope
    with pytest.raises(ValueError, match=r"a slope of .* is below 0"):
        fused_threshold(activation, torch.zeros(3))


def test_a_binary_convolution_has_two_weights_a_channel():
    torch.manual_seed(0)
    layer = BinaryConv2d(3, 4, 3, 1, 1)
    x = torch.randn(2, 3, 5, 5)
    plain = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
    with torch.no_grad():
        plain.weight.copy_(binary_weight(layer.weight))
    assert torch.equal(layer(x), plain(x))
    assert all(len(row.unique()) == 2 for row in plain.weight.flatten(1))


@pytest.mark.parametrize("binary", [False, True])
def test_a_convolution_of_signs_is_rebuilt_from_its_tensors(binary: bool):
    torch.manual_seed(0)
    layer = SignConv2d.of(nn.Conv2d(3, 4, 3, 2, 1, bias=False))
    layer = layer.one_bit() if binary else layer
    again = rebuild("sign-conv", dict(layer.state_dict()))
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(again(x), layer(x))
    assert layer(x).shape == (2, 4, 3, 3)
    assert torch.equal(rebuild("sign", dict(RSign(3).state_dict()))(x), RSign(3)(x))
    assert torch.equal(rebuild("rprelu", dict(RPReLU(3).state_dict()))(x), RPReLU(3)(x))
