"""Networks of users on the command line: substituted, reduced, and never written over."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support.command_line import answer, call, refusal

from deepreshape.data import Dataset
from deepreshape.experiments.points import see_fits
from deepreshape.models import architecture, build
from deepreshape.models.saved import Manifest, load, save

NETWORK = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def deep():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())

class Axes(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.fc, self.change = nn.Linear(64, 10), change

    def forward(self, x):
        return self.change(self.fc(x.flatten(1)))

def flat():
    torch.manual_seed(0)
    return Axes(lambda y: y)

def map():
    torch.manual_seed(0)
    return Axes(lambda y: y[:, :, None, None])

def row():
    torch.manual_seed(0)
    return Axes(lambda y: y[:, None])

def squeezed():
    return Axes(lambda y: y.squeeze())

def turned():
    return Axes(lambda y: y.T)

def norms():
    return Axes(nn.BatchNorm1d(10, track_running_stats=False))
"""
BOTH = """
import torch
from torch import nn

class Both(nn.Module):
    def __init__(self, several):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.several = nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), nn.Linear(9, 10), several

    def forward(self, x):
        features = torch.relu(self.body(x))
        logits = self.head(features)
        return {"logits": logits, "features": features} if self.several else logits

def one():
    return Both(False)

def several():
    return Both(True)

def half():
    return Both(True).bfloat16()
"""
QUICK = ("--data", "digits", "--set", "epochs=1")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(NETWORK)
    return tmp_path


def test_a_network_is_substituted_then_reduced_and_nothing_is_written_over(there: Path):
    words = ("substitute", "mine.py:net", *QUICK, "--activation", "relu", "--max-pool", "avg", "--out", "relus")
    report = answer(*words, cwd=there)
    assert report["replaced"] == {"1": ["GELU", "ReLU"], "2": ["MaxPool2d", "AvgPool2d"]}
    assert all(0 <= report[top1] <= 100 for top1 in ("top1_before", "top1_substituted", "top1_after"))
    fewer = ("linearize", "relus", "--budget", "100", "--set", "epochs=1")
    assert "relus holds a finished model; choose another folder" in call(*fewer, "--out", "relus", cwd=there).err
    assert "relus holds a finished model" in call(*words, cwd=there).err
    reduced = answer(*fewer, "--out", "fewer", cwd=there)
    assert reduced["relus"] == 100
    assert reduced["record"]["recipe"]["lr"] == 0.05
    assert all(0 <= reduced[top1] <= 100 for top1 in ("top1_before", "top1_searched", "top1_validation"))
    assert answer("count", "fewer", cwd=there)["relus"] == 100


def test_code_goes_straight_to_linearize(there: Path):
    (there / "mine.py").write_text(NETWORK.replace("GELU", "ReLU"))
    report = answer(
        "linearize", "mine.py:net", *QUICK, "--budget", "64", "--method", "taylor", "--out", "few", cwd=there
    )
    assert report["relus"] == 64
    assert answer("count", "few", cwd=there)["relus"] == 64


def test_code_goes_to_eval_and_sweep(there: Path):
    (there / "mine.py").write_text(NETWORK.replace("GELU", "ReLU"))
    assert 0 <= answer("eval", "mine.py:net", "--data", "digits", cwd=there)["top1"] <= 100
    words = ("sweep", "--networks", "mine.py:net", "--data", "digits", "--methods", "taylor", "--budgets", "100,64")
    quick = ("--set", "tune.epochs=1", "--out", "points")
    assert answer(*words, *quick, cwd=there)["runs"] == 2
    rows = [json.loads(line) for line in (there / "points" / "results.jsonl").read_text().splitlines()]
    assert [(row["network"], row["relus"]) for row in rows] == [("net", 100), ("net", 64)]
    assert rows[0]["command"].startswith("deepreshape linearize mine.py:net --method taylor --budget 100 --data digits")
    assert yaml.safe_load((there / "points" / "config.yaml").read_text())["tune"]["lr"] == 0.05
    before = (there / "points" / "results.jsonl").read_bytes()
    assert answer(*words, *quick, cwd=there)["runs"] == 2  # it goes on, and nothing is left
    assert (there / "points" / "results.jsonl").read_bytes() == before
    mixed = (*words[:2], "mine.py:net,resnet20", *words[3:])
    assert "sweep them one after the other" in call(*mixed, "--out", "mixed", cwd=there).err.replace("\n", " ")


def test_a_data_set_says_shape_and_classes_and_gives_inputs(there: Path):
    (there / "mine.py").write_text(NETWORK.replace("GELU", "ReLU").replace("MaxPool2d", "AvgPool2d"))
    assert answer("count", "mine.py:net", "--data", "digits", cwd=there)["relus"] == 256
    quote = answer("cost", "mine.py:net", "--data", "digits", cwd=there)
    assert (quote["exact"], quote["relus"], quote["notes"]) == (True, 256, [])
    message = call("count", "mine.py:net", "--data", "digits", "--input", "1x9x9", cwd=there).err
    assert "--input 1x9x9 and --data digits, whose images are 1x8x8, both say the shape" in message.replace("\n", " ")
    assert (
        answer("count", "resnet20-m4", "--data", "digits", cwd=there)["relus"] == 4 * 64 * 7 + 8 * 16 * 6 + 16 * 4 * 6
    )


def test_logits_with_axes_of_one_are_judged_as_they_run(there: Path):
    accuracies = [
        answer("eval", f"mine.py:{name}", "--data", "digits", cwd=there)["top1"] for name in ("flat", "map", "row")
    ]
    assert accuracies[0] == accuracies[1] == accuracies[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "mine.py:net"), "does not say what it was trained on"),
        (("eval", "resnet18"), "resnet18 is a name and no trained network"),
        (("eval", "mine.py:wide", "--data", "digits"), "mine.py:wide gives 7 outputs, and digits has 10 classes"),
        (("eval", "mine.py:deep", "--data", "digits"), "mine.py:deep fails on an image of digits, of shape (1, 8, 8)"),
        (
            ("eval", "mine.py:squeezed", "--data", "digits"),
            "of shape (1, 8, 8), and takes two at once: it gives an output of shape (10,) for a batch of 1; keep the",
        ),
        (
            ("eval", "mine.py:turned", "--data", "digits"),
            "an output of shape (10, 1) for a batch of 1; keep the first ax",
        ),
        (
            ("eval", "mine.py:norms", "--data", "digits"),
            "fails on a single image of digits, of shape (1, 8, 8), and takes two at once: Expected more than 1 value",
        ),
        (
            ("substitute", "mine.py:net", *QUICK, "--out", "x"),
            "nothing to replace: give --activation relu or hard",
        ),
        (("substitute", "mine.py:net", "--activation", "relu", "--out", "x"), "does not say what it was trained on"),
        (("substitute", "zoo:digits", "--activation", "relu", "--out", "x"), "has ReLUs already"),
        (("linearize", "mine.py:net", "--budget", "1", "--out", "x"), "does not say what it was trained on"),
        (("linearize", "resnet18", "--budget", "1", "--out", "x"), "resnet18 is a name and no trained network"),
    ],
)
def test_what_cannot_be_is_one_line(there: Path, words: tuple[str, ...], message: str):
    assert message in refusal(*words, cwd=there)
    assert not (there / "x").exists()


def test_what_others_keep_where_checkpoints_lie_is_left_alone(tmp_path: Path):
    (tmp_path / "o" / "run").mkdir(parents=True)
    (tmp_path / "o" / "run" / "thesis.txt").write_text("mine")
    said = refusal("train", "resnet20-m2", "--data", "digits", "--out", str(tmp_path / "o"))
    assert "run is no run of this package" in said
    assert (tmp_path / "o" / "run" / "thesis.txt").read_text() == "mine"


def test_a_network_without_a_finite_answer_has_no_accuracy(there: Path):
    small = build(architecture("resnet20-m2-phi1.1.1", (1, 8, 8), 10), seed=0)
    whole = Dataset.load("digits")
    with torch.no_grad():
        small.get_parameter("stem.conv.0.weight").fill_(1e38)
    save(small, there / "n", Manifest(small.architecture, "digits", whole.class_names, whole.mean, whole.std))
    assert "n gives no finite number for the first 16 test images" in refusal("eval", str(there / "n"))


def test_classes_of_other_names_are_refused(there: Path):
    small = build(architecture("resnet20-m2-phi1.1.1", (1, 8, 8), 10), seed=0)
    whole = Dataset.load("digits")
    save(small, there / "m", Manifest(small.architecture, "letters", tuple("abcdefghij"), whole.mean, whole.std))
    named = replace(whole, class_names=tuple("abcdefghik"))
    with pytest.raises(ValueError, match="knows other classes than digits has: 'j' where that has 'k', as class 9"):
        see_fits(load(there / "m"), named, "m")
    see_fits(load(there / "m"), whole, "m")  # numbers are no names


def test_eval_judges_the_first_of_several_outputs_in_the_type_of_the_weights(tmp_path: Path):
    (tmp_path / "mine.py").write_text(BOTH)
    one, several, half = (
        answer("eval", f"mine.py:{name}", "--data", "digits", cwd=tmp_path) for name in ("one", "several", "half")
    )
    assert several == one
    assert abs(half["top1"] - one["top1"]) < 2
