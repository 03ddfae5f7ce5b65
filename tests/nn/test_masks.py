import pytest
import torch

from deepreshape.nn import MaskedReLU, masked_relu


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


def test_a_masked_relu_is_the_same_in_every_layout_and_dtype():
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(2, 3, 4, 5, generator=generator), torch.rand(3, 4, 5, generator=generator) < 0.5
    expected = torch.where(mask, x.relu(), x)
    assert torch.equal(masked_relu(x, mask), expected)
    last = masked_relu(x.contiguous(memory_format=torch.channels_last), mask)
    assert torch.equal(last, expected)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(masked_relu(x.bfloat16(), mask), expected.bfloat16())
