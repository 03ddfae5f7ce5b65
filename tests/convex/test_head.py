"""The last layer of a trained network as a gated ReLU network."""

import pytest
import torch
from torch import nn

from deepreshape.convex.head import fix_ntk_head
from deepreshape.data import Dataset
from deepreshape.models.saved import load, weights_digest
from deepreshape.models.zoo import folder_of
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import ProgramError
from deepreshape.training.loop import accuracy


def test_the_head_is_refitted_and_the_rest_is_left():
    data = Dataset.load("digits")
    model = load(folder_of("zoo:digits"))
    before = weights_digest(model)
    fixed, record = fix_ntk_head(model, data, n_gates=40, subsample=300, tol=0.02)
    assert weights_digest(model) == before
    assert record.objective < record.ntk_objective
    assert record.gap <= 0.02
    assert record.rows == 300
    whole, refitted = (accuracy(network, data, data.test) for network in (model, fixed))
    assert refitted > whole - 3  # fitted to 300 of its 1,257 training images
    left = {name: tensor for name, tensor in fixed.state_dict().items() if not name.startswith(record.layer)}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in left.items())
    with pytest.raises(ProgramError, match="cannot be lowered"):
        lower(fixed, data.normalize(data.test.images[:2]).contiguous().numpy())


def test_a_network_without_a_linear_layer_is_refused():
    data = Dataset.load("digits")
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear"):
        fix_ntk_head(nn.Conv2d(1, 1, 1), data)
