"""Constant zeros at a site."""

import torch

from deepreshape.nn import MaskedReLU, Zeroed, rebuild


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
