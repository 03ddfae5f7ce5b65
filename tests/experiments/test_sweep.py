import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepreshape.cli.jobs import report
from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.experiments.points import removal_command
from deepreshape.experiments.sweep import Sweep, configured
from deepreshape.models.saved import Manifest, load, manifest_of, save
from deepreshape.removal import Removal
from deepreshape.training import RECIPES, Recipe
from deepreshape.training.runs import finished

DATA = Dataset.load("digits")
QUICK = RECIPES["digits"].with_values({"epochs": 1, "batch": 256})
SWEEP = Sweep(
    "digits",
    ("resnet20-m2-phi1.1.1",),
    ("coarse", "snl"),
    (300, 100),
    (0,),
    QUICK,
    QUICK,
    (("snl", "gate_lr", "0.05"),),
)
OPTIONS = (
    "--networks resnet20-m2-phi1.1.1 --methods coarse,snl --budgets 300,100 --threads 1 --set snl.gate_lr=0.05 "
    "--set whole.epochs=1 --set whole.batch=256 --set tune.epochs=1 --set tune.batch=256"
)


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "out"
    SWEEP.run(DATA, folder, quiet)
    return folder


def test_rows_say_what_the_models_are(done: Path):
    rows = finished(done)
    network = "resnet20-m2-phi1.1.1"
    assert [row.id for row in rows] == [
        f"{network}_{part}_s0" for part in ("all", "coarse_300", "snl_300", "coarse_100", "snl_100")
    ]
    for row in rows:
        model = load(done / "models" / row.id)
        manifest = manifest_of(model)
        total = count(model, DATA.shape).total
        assert (row.relus, row.macs) == (total.relus, total.macs)
        assert row.budget is None or row.relus == row.budget
        assert {"network", "method", "granularity", "top1", "seed", "cpu_minutes", "epochs", "command"} <= set(
            row.to_row()
        )
        assert (row.network, row.split, row.n) == (network, "test", 360)
        assert manifest.history[-1]["method"] in ("train", row.method)
    assert rows[2].command == (
        f"deepreshape linearize {network}_all_s0 --method snl --budget 300 --seed 0 --set epochs=1 --set batch=256 "
        f"--set gate_lr=0.05 --out {network}_snl_300_s0"
    )
    assert not any((done / "runs").iterdir())


def test_the_report_has_a_series_for_each_network_and_method(done: Path, tmp_path: Path):
    report([done], tmp_path / "report.html", tmp_path / "picture.svg")
    page, name = (tmp_path / "report.html").read_text(), "resnet20-m2-phi1.1.1"
    assert (
        f"deepreshape sweep --data digits --networks {name} --methods coarse,snl --budgets 300,100 --seeds 0 "
        "--set whole.epochs=1 --set whole.batch=256 --set tune.epochs=1 --set tune.batch=256 "
        "--set snl.gate_lr=0.05 --out out"
    ) in page
    for series in (name, f"{name}, coarse", f"{name}, snl"):
        assert f"<title>{series}: " in page
        assert f"<title>{series}: " in (tmp_path / "picture.svg").read_text()
    assert f"other points between two of {name}, coarse" in page


def test_a_finished_sweep_is_not_done_again(done: Path):
    before = (done / "results.jsonl").read_bytes()
    SWEEP.run(DATA, done, lambda number, total, run, progress: pytest.fail("trained again") if progress else None)
    assert (done / "results.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match=r"holds another sweep \(seeds was \[0\], now \[0, 1\]\)"):
        replace(SWEEP, seeds=(0, 1)).run(DATA, done, quiet)


def test_a_sweep_killed_at_any_time_ends_with_the_same_results(done: Path, tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "deepreshape", "sweep", *OPTIONS.split(), "--out", str(out)]
    results = out / "results.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not results.is_file() or results.read_text().count("\n") < 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with results.open("a") as file:
        file.write('{"id": "cut off')
    finished_run = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    assert json.loads(finished_run.stdout) == {"results": str(results), "runs": 5}
    timeless = [replace(row, cpu_minutes=0) for row in finished(out)]
    assert timeless == [replace(row, cpu_minutes=0) for row in finished(done)]


def test_saved_models_are_taken_as_they_are(done: Path, tmp_path: Path):
    source = str(done / "models" / "resnet20-m2-phi1.1.1_coarse_300_s0")
    given = replace(SWEEP, networks=(source,), methods=("taylor",), settings=(), budgets=(50,))
    larger = replace(given, networks=(source, "resnet20-m2-phi1.1.1"), budgets=(350, 50))
    assert [point.id.rpartition("_s")[0].rpartition("_")[2] for point in larger.points(DATA, tmp_path)] == [
        "50",
        "all",
        "350",
        "50",
    ]
    (row,) = given.run(DATA, tmp_path / "out", quiet)
    assert (row.network, row.relus) == ("resnet20-m2-phi1.1.1_coarse_300_s0", 50)
    history = manifest_of(load(tmp_path / "out" / "models" / row.id)).history
    assert [step["method"] for step in history] == ["train", "coarse", "taylor"]


def test_no_room_on_the_disk_loses_nothing(done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full_after_one(model: nn.Module, to: Path, manifest: Manifest) -> None:
        if not to.name.endswith("_all_s0"):
            raise OSError(28, os.strerror(28))
        save(model, to, manifest)

    monkeypatch.setattr("deepreshape.experiments.points.save", full_after_one)
    with pytest.raises(OSError, match="No space left"):
        SWEEP.run(DATA, tmp_path / "out", quiet)
    assert [row.method for row in finished(tmp_path / "out")] == ["all"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("snl", "magic")}, "unknown method 'magic'; known are snl, senet"),
        ({"settings": (("snl", "speed", "1"),)}, "unknown setting 'speed'; known are budget, granularity"),
        (
            {"settings": (("snl", "budget", "9"),)},
            "budget=9 is not a setting of a method; --budget or --budgets takes it",
        ),
        ({"settings": (("snl", "growth", "0"),)}, "growth must be from 1 to 100, not 0"),
        ({"settings": (("senet", "density", "1"),)}, "senet.density=1 is for a method that is not in this sweep"),
        ({"budgets": (300, 5000)}, "a budget of 5,000 ReLUs is more than any of these networks has"),
        ({"networks": ("zoo:nothing",)}, "there is no 'nothing' in the zoo"),
        ({"networks": ("one/whole", "other/whole/")}, "two of the networks are called 'whole'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(change, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        replace(SWEEP, **change).run(DATA, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_a_command_names_every_setting_that_is_not_the_methods_own():
    def words(tuning: Recipe | None = None, **settings: Any) -> str:
        chosen = configured("taylor", 100, settings)
        recipe = asdict(RECIPES["digits"]) | {"mismatch": chosen.mismatch}
        record = Removal(
            "taylor", asdict(chosen), 100, 200, 100, "pixel", {}, None, None, 50.0, 50.0, 50.0, "", 1, 1.0, recipe, 0
        )
        return removal_command(Path("whole"), record, None, DATA, "out", tuning=tuning)

    assert "mismatch" not in words()  # 10 is what the method takes, whatever the recipe says
    assert "--set mismatch=0.0" in words(mismatch=0)
    assert "--set lr=" not in words()
    assert "--set lr=0.1 " in words(replace(RECIPES["digits"], lr=0.05))  # of a network that was trained elsewhere


def test_a_row_of_a_model_from_the_zoo_has_a_command_that_makes_it_again(tmp_path: Path):
    tune = replace(QUICK, mismatch=10.0)
    given = replace(SWEEP, networks=("zoo:digits",), budgets=(50,), methods=("snl",), settings=(), tune=tune)
    (row,) = replace(given, budgets=(50, 50), seeds=(0, 0)).run(DATA, tmp_path / "out", quiet)
    assert row.network == "digits"
    assert row.command == (
        "deepreshape linearize zoo:digits --method snl --budget 50 --seed 0 --set epochs=1 --set batch=256 "
        "--set mismatch=10.0 --out digits_snl_50_s0"
    )
    words = row.command.replace("--out ", f"--out {tmp_path}/").split()[1:]
    again = subprocess.run(
        [sys.executable, "-m", "deepreshape", *words, "--threads", "1", "--json"], check=True, capture_output=True
    )
    assert json.loads(again.stdout)["top1_validation"] == row.top1_validation
    folders = (tmp_path / "out" / "models" / row.id, tmp_path / row.id)
    one, other = (load(folder).state_dict() for folder in folders)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
