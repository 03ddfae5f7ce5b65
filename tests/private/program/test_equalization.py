"""Scales that are moved between layers, and what is said where precision is lost all the same."""

import numpy as np
import pytest
import torch
from support.lowered import answers, drawn
from torch import nn
from torch.nn import functional as F  # noqa: N812

from deepreshape.private.arith.ring import Ring
from deepreshape.private.program import lower as lower_module
from deepreshape.private.program.encoding import digest
from deepreshape.private.program.lower import lower


class Uneven(nn.Module):
    """One convolution's weights, or one channel's, are small, and the next one's make up for it."""

    def __init__(self, factor: float, channel: slice, skip: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.fc, self.skip = nn.MaxPool2d(2), nn.Linear(128, 5), skip
        with torch.no_grad():
            self.one.weight[channel] /= factor
            self.one.bias[channel] /= factor
            self.two.weight[:, channel] *= factor

    def forward(self, x):
        y = F.relu(self.one(x))
        return self.fc(self.pool(F.relu(self.two(y))).flatten(1)) + (y.mean((2, 3))[:, :5] if self.skip else 0)


@pytest.mark.parametrize("channel", [slice(None), slice(2, 3)])
@pytest.mark.parametrize("factor", [1e4, 1e-4])
def test_uneven_layers_lose_nothing(factor: float, channel: slice):
    x = drawn(16, 3, 8, 8)
    even, uneven = Uneven(1, channel).eval(), Uneven(factor, channel).eval()
    with torch.no_grad():
        wanted = even(torch.from_numpy(x)).numpy()
    plain = np.abs(answers(lower(even, x, modulus=Ring(30)), x) - wanted).max()
    lowered = lower(uneven, x, modulus=Ring(30))
    assert np.abs(answers(lowered, x) - wanted).max() < 2 * plain + 0.01
    assert not lowered.losses


def test_level_networks_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    x = drawn(16, 3, 8, 8)
    lowered = lower(Uneven(1, slice(None)).eval(), x)
    monkeypatch.setattr(lower_module, "equalized", lambda *_: None)
    assert digest(lower(Uneven(1, slice(None)).eval(), x).program) == digest(lowered.program)
    assert digest(lower(Uneven(64, slice(None)).eval(), x).program) != digest(lowered.program)


def test_what_is_lost_all_the_same_is_said_with_the_layer():
    x = drawn(16, 3, 8, 8)

    class Summed(Uneven):
        """The small channels are also an output, which holds their scale."""

        def forward(self, x):
            y = F.relu(self.one(x))
            return self.fc(self.pool(F.relu(self.two(y))).flatten(1)), y

    with pytest.warns(UserWarning, match=r"most of which arises at relu: values reach .*, 0 units of"):
        lowered = lower(Summed(1e5, slice(None)).eval(), x)
    assert len(lowered.losses) >= 1
