"""The command that says before any training whether a network can run privately."""

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
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

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 4)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

def attention():
    return Attention()

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3)

    def forward(self, left, right):
        return self.conv(torch.cat([left, right], 1)).mean((2, 3))

def two():
    return Two()

def bounded():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Hardtanh(), nn.Flatten(), nn.Linear(4096, 10))

def even():
    return nn.Sequential(nn.Conv2d(3, 4, 4, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 10))

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


def test_problems_of_a_kind_are_one_line_and_attention_is_named(there: Path):
    done = call("check", "mine.py:attention", cwd=there)
    assert done.code == 2
    lines = " ".join(done.out.split())
    assert "layers.layers.0.norm1, layers.layers.0.norm2, layers.layers.1.norm1 and 5 more: layer_norm" in lines
    assert lines.count("attention multiplies values by one another; take convolutions") == 1
    assert "for a batch of one" not in lines  # of axes that are moved around the attention
    problems = json.loads(call("check", "mine.py:attention", "--json", cwd=there).out)["problems"]
    assert sorted({problem["operator"] for problem in problems}) == ["layer_norm", "scaled_dot_product_attention"]
    assert len(problems) == 3 * 4


@pytest.mark.parametrize(
    "words",
    [
        ("count", "MODEL"),
        ("cost", "MODEL"),
        ("cost", "MODEL", "--protocol", "server-garbler"),
        ("eval", "MODEL"),
        ("linearize", "MODEL", "--budget", "9", "--out", "o"),
        ("substitute", "MODEL", "--activation", "relu", "--out", "o"),
        ("sweep", "--networks", "MODEL", "--budgets", "9", "--out", "o"),
        ("private", "local", "--model", "MODEL"),
        ("private", "lower", "MODEL", "--out", "o"),
        ("private", "fhe", "lower", "MODEL", "--out", "o"),
    ],
)
def test_a_network_of_two_inputs_gets_one_line_everywhere(words: tuple[str, ...], there: Path):
    done = call(*["mine.py:two" if word == "MODEL" else word for word in words], cwd=there)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("error: the network takes 2 inputs (left, right), and only networks of one input")
    assert "`left, right = x.split([...], 1)`" in done.err


def test_a_network_of_two_inputs_is_a_problem_with_what_to_do(there: Path):
    (problem,) = json.loads(call("check", "mine.py:two", "--json", cwd=there).out)["problems"]
    assert problem["reason"].endswith("run privately")
    assert problem["instead"].startswith("join them along the channels")


def test_what_runs_and_is_not_counted_is_priced_by_its_program_only(there: Path):
    answered = answer("check", "mine.py:bounded", cwd=there)
    assert (answered["runs_privately"], answered["prices"]) == (True, [])
    assert "which miss aten.hardtanh; `deepreshape cost`" in " ".join(
        call("check", "mine.py:bounded", cwd=there).out.split()
    )
    priced = answer("cost", "mine.py:bounded", cwd=there)
    assert (priced["exact"], priced["relus"], priced["compared"]) == (True, 2 * 4096, [])


def test_torchs_warning_of_even_kernels_is_not_shown(there: Path):
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for command in ("count", "check"):
                assert call(command, "mine.py:even", cwd=there).code == 0
    finally:
        torch.set_warn_always(always)


def test_what_is_logged_says_that_it_is_a_warning():
    call("--version")
    assert logging.lastResort
    logged = logging.LogRecord("deepreshape", logging.WARNING, "a.py", 1, "top-1 fell by %d points", (4,), None)
    assert logging.lastResort.format(logged) == "warning: top-1 fell by 4 points"


def test_a_warning_of_torch_has_no_path_of_its_build(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    call("--version")
    text = "The driver is too old (Triggered internally at /build/aten/x.cpp:11.)"
    assert warnings.formatwarning(text, UserWarning, "a.py", 1) == "warning: The driver is too old\n"
