"""Networks of users on the command line: substituted, reduced, and never written over."""

from pathlib import Path

import pytest
from test_cli import answer, call

NETWORK = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))
"""
QUICK = ("--data", "digits", "--set", "epochs=1")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(NETWORK)
    return tmp_path


def test_a_network_is_substituted_then_reduced_and_nothing_is_written_over(there: Path):
    words = ("substitute", "mine.py:net", *QUICK, "--activation", "relu", "--max-pool", "avg", "--out", "relus")
    found = answer(*words, cwd=there)
    assert found["replaced"] == {"1": ["GELU", "ReLU"], "2": ["MaxPool2d", "AvgPool2d"]}
    assert all(0 <= found[top1] <= 100 for top1 in ("top1_before", "top1_substituted", "top1_after"))
    fewer = ("linearize", "relus", "--budget", "100", "--set", "epochs=1")
    assert "relus holds a finished model; choose another folder" in call(*fewer, "--out", "relus", cwd=there).err
    assert "relus holds a finished model" in call(*words, cwd=there).err
    reduced = answer(*fewer, "--out", "fewer", cwd=there)
    assert reduced["relus"] == 100
    assert reduced["record"]["recipe"]["lr"] == 0.02
    assert all(0 <= reduced[top1] <= 100 for top1 in ("top1_before", "top1_searched", "top1_validation"))
    assert answer("count", "fewer", cwd=there)["relus"] == 100


def test_code_goes_straight_to_linearize(there: Path):
    (there / "mine.py").write_text(NETWORK.replace("GELU", "ReLU"))
    found = answer(
        "linearize", "mine.py:net", *QUICK, "--budget", "64", "--method", "taylor", "--out", "few", cwd=there
    )
    assert found["relus"] == 64
    assert answer("count", "few", cwd=there)["relus"] == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("substitute", "mine.py:net", *QUICK, "--out", "x"), "give --activation relu, --max-pool avg, or both"),
        (("substitute", "mine.py:net", "--activation", "relu", "--out", "x"), "does not say what it was trained on"),
        (("substitute", "zoo:digits", "--activation", "relu", "--out", "x"), "has ReLUs already"),
        (("linearize", "mine.py:net", "--budget", "1", "--out", "x"), "does not say what it was trained on"),
        (("linearize", "resnet18", "--budget", "1", "--out", "x"), "resnet18 is a name and no trained network"),
    ],
)
def test_what_cannot_be_is_one_line(there: Path, words: tuple[str, ...], message: str):
    done = call(*words, cwd=there)
    assert done.code == 2
    assert message in done.err.replace("\n", " ")
    assert not (there / "x").exists()
