import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.counting import count
from deepreshape.nn import MaskedReLU, ReuseConv, ReuseForm, masked_relu


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


@given(
    factor=st.sampled_from([2, 3, 4, 8, 16]),
    width=st.sampled_from([16, 20, 48]),
    kind=st.sampled_from(["fixed", "proportional"]),
    chained=st.booleans(),
    stride=st.sampled_from([1, 2]),
)
def test_reuse_keeps_one_group_of_relus_and_saves_macs(factor: int, width: int, kind: str, chained: bool, stride: int):
    layer = ReuseConv(width, width, 3, stride, factor, ReuseForm(kind, chained=chained))  # pyright: ignore[reportArgumentType]
    counted = count(layer, (width, 8, 8)).total
    side = 8 // stride
    assert counted.relus == width // factor * side * side
    assert counted.macs < 9 * width * width * side * side
    assert layer(torch.zeros(2, width, 8, 8)).shape == (2, width, side, side)


def test_reuse_passes_its_middle_group_on_unchanged():
    layer = ReuseConv(8, 8, 3, 1, 4, ReuseForm(passed=0.5, mix=False)).eval()
    x = torch.randn(1, 8, 5, 5)
    kept, passed = layer.out_widths[:2]
    assert torch.equal(layer(x)[:, kept : kept + passed], x[:, kept : kept + passed])


def test_reuse_refuses_what_it_cannot_split():
    with pytest.raises(ValueError, match="cannot reuse ReLUs 16 times over 8 channels; 2 to 8 works"):
        ReuseConv(8, 8, 3, 1, 16, ReuseForm())
