"""Constants at a site: zeros, and pixels that a convolution leaves out."""

import pytest
import torch
from torch import library, nn
from torch.nn import functional

from deepreshape.counting import count
from deepreshape.nn import KnownReLU, MaskedConv2d, MaskedReLU, Zeroed, rebuild
from deepreshape.nn.constants import known_relu, masked_conv2d


def test_zeros_pass_no_value_and_no_gradient():
    mask, keep = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    site = Zeroed(MaskedReLU(mask), keep)
    x = torch.tensor([[-1.0, -2.0, 5.0], [1.0, 2.0, float("inf")]], requires_grad=True)
    out = site(x)
    assert out.tolist() == [[0.0, -2.0, 0.0], [1.0, 2.0, 0.0]]
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]


def test_it_is_rebuilt_from_its_tensors():
    site = Zeroed(MaskedReLU(torch.tensor([True, False])), torch.tensor([False, True]))
    again = rebuild("zeroed", dict(site.state_dict()))
    x = torch.randn(4, 2)
    assert torch.equal(again(x), site(x))


@pytest.mark.parametrize(("kind", "map_name"), [("zeroed", "keep"), ("known-relu", "known")])
def test_around_any_other_part_it_is_rebuilt_by_its_map(kind: str, map_name: str):
    positions = torch.tensor([[True, False]])
    again = rebuild(kind, {map_name: positions})
    assert isinstance(again.relu, nn.ReLU)
    assert list(again.state_dict()) == [map_name]
    with pytest.raises(ValueError, match=f"a {kind} needs the tensor '{map_name}'"):
        rebuild(kind, {"relu.mask": positions})


def column_product(layer: nn.Conv2d, x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The product of weights and windows, only of the windows that are kept; zeros, or the bias, elsewhere."""
    place = layer.kernel_size, layer.dilation, layer.padding, layer.stride
    kept = functional.unfold(x, *place)[:, :, columns.flatten()]  # pyright: ignore[reportArgumentType]
    out = torch.zeros(len(x), layer.out_channels, columns.numel())
    out[:, :, columns.flatten()] = layer.weight.flatten(1) @ kept
    out = out.unflatten(2, columns.shape)
    return out if layer.bias is None else out + layer.bias[:, None, None]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 0, 1)])
def test_columns_left_out_of_the_product_are_pixels_left_out(bias: bool, stride: int, padding: int, dilation: int):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 5, 3, stride, padding, dilation, bias=bias), torch.randn(2, 3, 9, 7)
    columns = torch.rand(layer(x).shape[2:]) < 0.6
    masked = MaskedConv2d.of(layer, columns)
    wanted = column_product(layer, x, columns)
    assert (masked.train()(x) - wanted).abs().max() < 1e-4
    with torch.no_grad():
        assert (masked.eval()(x) - wanted).abs().max() < 1e-4


def test_a_masked_convolution_is_counted_by_its_pixels():
    layer = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
    columns = torch.arange(64).view(8, 8) % 10 >= 3
    whole, less = (count(net, (3, 8, 8)) for net in (layer, MaskedConv2d.of(layer, columns)))
    assert less.total.macs * 64 == whole.total.macs * int(columns.sum())
    assert less.layers[0].left_out == int((~columns).sum())


def test_no_gradient_comes_from_pixels_left_out():
    columns = torch.tensor([[True, False], [False, True]])
    masked = MaskedConv2d.of(nn.Conv2d(1, 1, 1, bias=False), columns)
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    masked(x).sum().backward()
    assert x.grad is not None
    assert ((x.grad != 0) == columns).all()


def test_the_operators_are_what_torch_wants_of_them():
    columns = torch.tensor([[True, False], [False, True]])
    x = torch.randn(2, 3, 2, 2)
    library.opcheck(known_relu, (x.clone().requires_grad_(), columns))
    library.opcheck(masked_conv2d, (x, torch.randn(4, 3, 1, 1), None, columns, [1, 1, 1, 0, 0, 1, 1]))


def test_known_constants_are_rectified_and_count_no_relu():
    mask = torch.ones(2, 2, 2, dtype=torch.bool)
    mask[:, 0, 1] = False
    site = KnownReLU(MaskedReLU(mask), ~mask[0])
    x = torch.full((1, 2, 2, 2), -1.0, requires_grad=True)
    assert (site(x) == 0).all()
    site(torch.ones(1, 2, 2, 2) * x).sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()
    counted = count(site, (2, 2, 2))
    assert counted.total.relus == 6
    assert counted.layers[0].elements == 6


@pytest.mark.parametrize("groups", [1, 3])
def test_they_are_rebuilt_from_their_tensors(groups: int):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 6, (3, 1), (2, 1), (1, 0), groups=groups)
    x = torch.randn(2, 3, 4, 4)
    columns = torch.rand(layer(x).shape[2:]) < 0.5
    masked = MaskedConv2d.of(layer, columns)
    again = rebuild("masked-conv", dict(masked.state_dict()))
    assert torch.equal(again(x), masked(x))
    site = KnownReLU(MaskedReLU(columns.expand(6, -1, -1)), ~columns)
    again = rebuild("known-relu", dict(site.state_dict()))
    assert torch.equal(again(masked(x)), site(masked(x)))


def test_another_size_of_input_is_refused():
    masked = MaskedConv2d.of(nn.Conv2d(1, 1, 3, padding=1), torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"pixels of a \(8, 8\) map, and an input of \(6, 6\)"):
        masked(torch.zeros(1, 1, 6, 6))
    with pytest.raises(ValueError, match=r"pixels of a \(8, 8\) map"), torch.no_grad():
        masked.eval()(torch.zeros(1, 1, 6, 6))


def test_padding_that_is_not_of_zeros_is_refused():
    with pytest.raises(ValueError, match="pad zeros by number"):
        MaskedConv2d.of(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), torch.ones(2, 2, dtype=torch.bool))
