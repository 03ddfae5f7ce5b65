import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.experiments.points import TrainingPoint
from deepreshape.experiments.run import Job, default_budgets, hybrenets
from deepreshape.models import architecture
from deepreshape.models.saved import load, manifest_of
from deepreshape.removal import plan, plan_of
from deepreshape.training import RECIPES
from deepreshape.training.runs import finished

DATA = Dataset.load("digits")
RECIPE = RECIPES["digits"].with_values({"epochs": 1})
JOB = Job("digits", "resnet18-m4", ("resnet18-m4", "hrn-2x5x2x-m2"), (600, 300), (0,), RECIPE, 1)


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job") / "out"
    JOB.run(DATA, folder, quiet)
    return folder


def test_rows_say_what_the_models_are(done: Path):
    rows = finished(done)
    assert [row.id for row in rows] == [
        "resnet18-m4_all_s0", "resnet18-m4_600_s0", "resnet18-m4_300_s0",
        "hrn-2x5x2x-m2_all_s0", "hrn-2x5x2x-m2_600_s0", "hrn-2x5x2x-m2_300_s0",
    ]  # fmt: skip
    for row in rows:
        model = load(done / "models" / row.id)
        manifest = manifest_of(model)
        total = count(model, DATA.shape).total
        assert (row.relus, row.macs, row.params) == (total.relus, total.macs, total.params)
        assert row.budget is None or row.relus <= row.budget
        assert row.split == "test"
        assert set(row.priced_seconds) == {"server-garbler", "server-garbler+lphe+wsa", "client-garbler+lphe+wsa"}
        assert manifest.history[-1]["method"] == "train"
        assert (done / "models" / row.id / "metrics.jsonl").read_text().count("\n") == 1
    assert not any((done / "runs").iterdir())


def test_a_finished_job_is_not_done_again(done: Path):
    before = (done / "results.jsonl").read_bytes()
    JOB.run(DATA, done, lambda number, total, point, progress: pytest.fail("trained again") if progress else None)
    assert (done / "results.jsonl").read_bytes() == before


def test_a_job_with_other_settings_keeps_out(done: Path):
    with pytest.raises(ValueError, match=r"holds another job \(budgets was \[600, 300\], now \[600\]\)"):
        replace(JOB, budgets=(600,)).run(DATA, done, quiet)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no job"):
        JOB.run(DATA, tmp_path, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_job_killed_at_any_time_ends_with_the_same_results(done: Path, tmp_path: Path):
    out = tmp_path / "out"
    options = "--budgets 600,300 --epochs 1 --reduced-epochs 1 --threads 1 --networks " + ",".join(JOB.networks)
    command = [
        sys.executable,
        "-m",
        "deepreshape",
        "run",
        "--baseline",
        JOB.baseline,
        *options.split(),
        "--out",
        str(out),
    ]
    results = out / "results.jsonl"
    for wanted in (1, 2):
        said = tmp_path / "stderr"
        with said.open("w") as stderr:
            # a shell that runs the tests in the background ignores interrupts, and its children with it
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        while process.poll() is None and (not results.is_file() or results.read_text().count("\n") < wanted):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL if wanted == 1 else signal.SIGINT)
        assert process.wait() in (-signal.SIGKILL, 130), said.read_text()
    with results.open("a") as file:
        file.write('{"id": "cut off')
    subprocess.run(command, check=True, capture_output=True)
    timeless = [replace(row, cpu_minutes=0) for row in finished(out)]
    assert timeless == [replace(row, cpu_minutes=0) for row in finished(done)]
    assert (out / "report.html").is_file()


def test_points_come_after_what_they_need():
    job = replace(JOB, teacher="resnet9-m4", seeds=(0, 1))
    seen: set[str] = set()
    for point in job.points(DATA, Path("models")):
        assert {path.name for path in (point.init, point.teacher) if path} <= seen
        seen.add(point.id)
    assert len(seen) == 1 + 2 * 2 * 3


def test_budgets_larger_than_the_network_are_refused_before_anything_is_made(tmp_path: Path):
    with pytest.raises(
        ValueError, match="a budget of 5,000 ReLUs is larger than the baseline resnet18-m4, which has 2,176"
    ):
        replace(JOB, budgets=(5000,)).run(DATA, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_settings_that_fit_no_network_claim_no_folder(tmp_path: Path):
    whole = plan_of(architecture("vgg16-m2", DATA.shape, 10))
    point = TrainingPoint("vgg16-m2", whole, None, 0, replace(RECIPE, grow=0.5))
    with pytest.raises(ValueError, match="too small for this network"):
        point.result(DATA, tmp_path / "m", tmp_path / "run", quiet)
    assert not list(tmp_path.iterdir())


def test_the_command_of_a_row_has_the_multiply_adds_that_its_plan_was_chosen_within():
    chosen = plan(architecture("resnet18-m4", DATA.shape, 10), 600, max_macs=103e3)
    point = TrainingPoint("resnet18-m4", chosen, 600, 0, RECIPE, max_macs=103e3)
    assert " --budget 600 --max-macs 103000.0 " in point._command(DATA)


def test_relatives_keep_the_papers_ratio_of_channels():
    names = hybrenets(architecture("resnet18"))
    assert names == ("hrn-5x5x3x", "hrn-2x5x2x-m32", "hrn-2x5x3x-m32", "stch-4x4x4x")
    assert default_budgets(architecture("resnet18")) == (139_264, 69_632, 34_816)
    with pytest.raises(ValueError, match="made from ResNets of four stages, not from vgg16"):
        hybrenets(architecture("vgg16"))


def test_a_broken_line_in_the_middle_is_an_error(done: Path, tmp_path: Path):
    lines = (done / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join([lines[0], "{", lines[1]]))
    with pytest.raises(ValueError, match=r"line 2 of .* is not a result"):
        finished(tmp_path)
    (tmp_path / "results.jsonl").write_text("\n".join([lines[0], lines[1][:40]]))
    assert [result.to_row() for result in finished(tmp_path)] == [json.loads(lines[0])]


def test_no_room_on_the_disk_loses_nothing(done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("deepreshape.experiments.points.save", full)
    with pytest.raises(OSError, match="No space left"):
        JOB.run(DATA, tmp_path / "out", quiet)
    assert finished(tmp_path / "out") == []
