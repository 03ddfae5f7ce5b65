import pytest
import torch

from deepreshape.nn import swap


def test_modules_are_swapped_for_a_while_at_each_of_their_paths():
    shared = torch.nn.ReLU()
    model = torch.nn.Sequential(shared, torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh()), shared)
    asked = []

    def make(path, module):
        asked.append(path)
        return torch.nn.Identity() if path in ("0", "1") else None

    with swap(model, make):
        assert asked == ["0", "1", "2"]  # not about the parts of what is replaced
        assert [type(layer).__name__ for layer in model] == ["Identity", "Identity", "ReLU"]
    assert isinstance(model[1], torch.nn.Sequential)
    with pytest.raises(KeyError), swap(model, make):
        raise KeyError
    assert model[0] is model[2] is shared
    assert isinstance(model[1], torch.nn.Sequential)
