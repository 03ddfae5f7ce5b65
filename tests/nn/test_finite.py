"""Weights with which nothing can be computed are named, wherever a network is read."""

from pathlib import Path

import pytest
import torch
from support.command_line import call
from torch import nn

from deepreshape.data import Dataset
from deepreshape.nn import require_finite
from deepreshape.removal import METHODS, linearize, substitute


def broken(fault: str) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    with torch.no_grad():
        if fault == "nan":
            net[0].weight[1, 0, 0] = torch.nan  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
        elif fault == "variance":
            net[1].running_var[2] = -0.25  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
    return net


FAULTS = {
    "nan": r"0\.weight: 3 of its 36 values are NaN or infinite",
    "variance": r"1\.running_var: 1 of its 4 variances are negative, the least is -0\.25",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_tensor_and_the_fault_are_named(fault: str):
    with pytest.raises(ValueError, match=FAULTS[fault]):
        require_finite(broken(fault))
    require_finite(broken(""))
    require_finite(broken("").to("meta"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_search_does_not_begin_with_them(fault: str):
    data = Dataset.load("digits")
    with pytest.raises(ValueError, match=FAULTS[fault]):
        linearize(broken(fault), METHODS["taylor"](10), data)
    with pytest.raises(ValueError, match=FAULTS[fault]):
        substitute(broken(fault), {"GELU": "ReLU"}, data)


@pytest.mark.parametrize("command", ["count", "cost"])
def test_commands_name_them(command: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    made = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())\n"
        "    made[1].running_var[:] = -1\n    return made\n"
    )
    done = call(command, "mine.py:net", "--input", "1x8x8", cwd=tmp_path)
    assert done.code == 2
    assert "1.running_var: 4 of its 4 variances are negative" in done.err
    assert len(done.err.strip().splitlines()) == 1
