import pytest
import torch

from deepreshape.nn import KINDS, MaskedReLU, PolynomialReLU, rebuild

MASK = torch.tensor([[[True, False]], [[False, False]]])


@pytest.mark.parametrize("site", [MaskedReLU(MASK), PolynomialReLU(MASK, torch.tensor([[1.0, 2, 3], [0, -1, 0.5]]))])
def test_what_stands_at_a_site_is_rebuilt_from_its_tensors(site):
    again = rebuild(site.kind, site.state_dict())
    x = torch.randn(3, 2, 1, 2)
    assert type(again) is type(site)
    assert torch.equal(again(x), site(x))
    with pytest.raises(ValueError, match=f"a {site.kind} needs the tensor 'mask', and nothing was saved"):
        rebuild(site.kind, {})


def test_kinds_are_registered_by_their_classes_and_an_unknown_one_is_named():
    assert all(kind.kind == word for word, kind in KINDS.items())
    assert {"masked-relu", "polynomial-relu"} <= set(KINDS)
    with pytest.raises(ValueError, match=r"unknown kind of nonlinearity 'cubic'; this version knows .*masked-relu"):
        rebuild("cubic", {})
