"""The command that says before any training whether a network can run privately."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.command_line import answer, call

NETWORKS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4096, 10))

class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.act = nn.GELU()

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        return (x * x.sigmoid()).flatten(1)

def three():
    return Three()

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x[:, 0])[0].flatten(1)

def recurrent():
    return Recurrent()

def nan():
    broken = net()
    broken[0].weight.data[0] = float("nan")
    return broken
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(NETWORKS)
    return tmp_path


def test_a_network_that_runs_has_counts_and_prices(there: Path):
    answered = answer("check", "mine.py:net", "--input", "3x64x64", cwd=there)
    assert (answered["runs_privately"], answered["problems"], answered["input"]) == (True, [], [3, 64, 64])
    assert (answered["relus"], answered["macs"]) == (4 * 64 * 64, 4 * 27 * 64 * 64 + 40960)
    assert [price["link"] for price in answered["prices"]] == ["lan", "wan"]
    assert 0 < answered["prices"][0]["seconds"] < answered["prices"][1]["seconds"]
    printed = call("check", "mine.py:net", "--input", "3x64x64", "--link", "lan", cwd=there)
    assert printed.code == 0
    assert "mine.py:net, input 3x64x64, runs privately" in printed.out
    assert "on link lan by gc-full" in printed.out.replace("\n", " ")


def test_every_problem_is_listed_with_its_layer_and_the_exit_code_is_2(there: Path):
    done = call("check", "mine.py:three", "--json", cwd=there)
    assert done.code == 2
    answered = json.loads(done.out)
    assert answered["runs_privately"] is False
    assert [problem["layer"] for problem in answered["problems"][:2]] == ["norm", "act"]
    assert {"norm", "gelu", "sigmoid"} <= {
        word for problem in answered["problems"] for word in problem["operator"].split("_")
    }
    assert "substitute --activation relu" in answered["problems"][1]["instead"]
    assert answered["prices"] == []
    printed = call("check", "mine.py:three", cwd=there)
    assert printed.code == 2
    assert "does not run privately as it is:" in printed.out


def test_totals_that_would_miss_work_are_not_shown(there: Path):
    done = call("check", "mine.py:recurrent", "--input", "1x8x8", "--json", cwd=there)
    assert done.code == 2
    answered = json.loads(done.out)
    assert answered["problems"]
    assert "macs" not in answered


def test_lower_refuses_with_the_same_words(there: Path):
    np.save(there / "x.npy", np.ones((4, 3, 32, 32)))
    answered = json.loads(call("check", "mine.py:three", "--json", cwd=there).out)["problems"]
    refused = call("private", "lower", "mine.py:three", "--samples", "x.npy", "--out", "p", cwd=there)
    assert refused.code == 2
    assert len(answered) > 2
    assert all(f"{problem['layer']}: {problem['reason']}" in refused.err for problem in answered)
    assert not (there / "p").exists()


def test_a_network_that_does_not_take_the_input_is_a_problem(there: Path):
    done = call("check", "mine.py:net", "--input", "1x8x8", "--json", cwd=there)
    assert done.code == 2
    (problem,) = json.loads(done.out)["problems"]
    assert "cannot be traced on an input of shape (1, 8, 8)" in problem["reason"]
    assert call("check", "mine.py:net", "--input", "1x8x8", cwd=there).code == 2


def test_weights_that_are_no_numbers_are_named(there: Path):
    done = call("check", "mine.py:nan", "--input", "3x64x64", cwd=there)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "0.weight: 27 of its 108 values are NaN or infinite" in done.err


def test_names_and_saved_models_are_checked_too():
    assert answer("check", "resnet20-m4")["runs_privately"]
    assert answer("check", "zoo:digits")["runs_privately"]
