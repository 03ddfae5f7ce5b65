import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepreshape.counting import count
from deepreshape.nn import ReuseConv, ReuseForm


@given(
    factor=st.sampled_from([2, 3, 4, 8, 16]),
    width=st.sampled_from([16, 20, 48]),
    kind=st.sampled_from(["fixed", "proportional"]),
    stride=st.sampled_from([1, 2]),
)
def test_reuse_keeps_one_group_of_relus_and_saves_macs_before_it_mixes(factor: int, width: int, kind: str, stride: int):
    layer = ReuseConv(width, width, 3, stride, factor, ReuseForm(kind))  # pyright: ignore[reportArgumentType]
    counted = count(layer, (width, 8, 8)).total
    side = 8 // stride
    assert counted.relus == width // factor * side * side
    assert counted.macs < (9 + 1) * width * width * side * side  # the 1x1 that mixes the groups included
    assert layer(torch.zeros(2, width, 8, 8)).shape == (2, width, side, side)


def test_reuse_passes_its_middle_group_on_unchanged():
    layer = ReuseConv(8, 8, 3, 1, 4, ReuseForm(passed=0.5, mix=False)).eval()
    x = torch.randn(1, 8, 5, 5)
    kept, passed = layer.out_widths[:2]
    assert torch.equal(layer(x)[:, kept : kept + passed], x[:, kept : kept + passed])


def test_reuse_refuses_what_it_cannot_split():
    with pytest.raises(ValueError, match="cannot reuse ReLUs 16 times over 8 channels; 2 to 8 works"):
        ReuseConv(8, 8, 3, 1, 16, ReuseForm())
