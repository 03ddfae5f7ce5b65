"""The command line as its users and their scripts see it."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from support.command_line import answer, call
from support.results import row
from typer.core import TyperOption
from typer.main import get_command

from deepreshape.cli.commands import app
from deepreshape.cli.console import NOTHING_KEPT, stoppable
from deepreshape.cli.options import MANY, PANELS
from deepreshape.models import architecture, build
from deepreshape.models.saved import Manifest, save

ROOT = Path(__file__).parents[2]


def commands() -> dict[str, Any]:
    """Every command by its full name, those of groups too."""
    by_name: dict[str, Any] = {}
    left = [*get_command(app).commands.items()]  # pyright: ignore[reportAttributeAccessIssue]
    while left:
        name, command = left.pop()
        if inner := getattr(command, "commands", None):
            left += [(f"{name} {part}", leaf) for part, leaf in inner.items()]
        else:
            by_name[name] = command
    return by_name


COMMANDS = commands()


def test_an_interrupt_that_became_another_error_is_still_one(capsys: pytest.CaptureFixture[str]):
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise TypeError("could not determine the shape") from None

    def fail() -> None:
        raise TypeError("of its own")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(typer.Exit) as ended:
            stoppable(work, NOTHING_KEPT)
        with pytest.raises(TypeError, match="of its own"):
            stoppable(fail)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.exit_code == 130
    assert "nothing was kept" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_and_stands_in_the_docs(name: str):
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name}"
    assert f"deepreshape {name}" in (ROOT / "docs" / "commands.md").read_text()
    assert any("--json" in parameter.opts for parameter in command.params)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_options_of_a_command_with_many_stand_under_headings(name: str):
    options = [param for param in COMMANDS[name].params if isinstance(param, TyperOption)]
    bare = [option.name for option in options if not option.rich_help_panel]
    assert bare == [] or len(options) <= MANY


def test_every_heading_names_options_that_are_there():
    there = {param.name for command in COMMANDS.values() for param in command.params}
    assert {name for names in PANELS.values() for name in names.split()} <= there


def test_help_runs():
    assert isinstance(app, typer.Typer)
    done = subprocess.run([sys.executable, "-m", "deepreshape", "--help"], capture_output=True, text=True, check=True)
    assert all(name.split()[0] in done.stdout for name in COMMANDS)


def test_count_prints_the_fixed_shape():
    counted = answer("count", "resnet18", "--input", "3x32x32", "--classes", "100")
    assert list(counted) == [
        "relus",
        "relus_without_stem",
        "maxpool_comparisons",
        "macs",
        "params",
        "squares",
        "signs",
        "stages",
        "unknown",
    ]
    assert (counted["relus"], counted["relus_without_stem"], counted["unknown"]) == (557_056, 491_520, [])
    stages = {stage["name"]: stage for stage in counted["stages"]}
    assert stages["stage4"]["relus"] == 32_768
    assert set(stages["stage4"]) == {"name", "relus", "squares", "signs", "macs", "params"}


def test_count_of_quadratics_has_squares_and_no_relu():
    counted = answer("count", "resnet20-herpn")
    assert (counted["relus"], counted["squares"], counted["signs"], counted["unknown"]) == (0, 188_416, 0, [])
    squares = {stage["name"]: stage["squares"] for stage in counted["stages"] if stage["squares"]}
    assert squares == {"stem": 16_384, "stage1": 98_304, "stage2": 49_152, "stage3": 24_576}


def test_count_takes_the_users_own_network(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.GELU())\n"
        "number = lambda: 3\n"
    )
    counted = answer("count", "mine:net", "--input", "3x8x8", cwd=tmp_path)
    assert (counted["relus"], counted["maxpool_comparisons"]) == (144, 108)
    assert counted["unknown"] == [{"operator": "aten.gelu", "elements": 36}]
    assert "'mine:number' gives a int, not a torch module" in call("count", "mine:number", cwd=tmp_path).err
    assert "'nowhere:net' does not give a network" in call("count", "nowhere:net", cwd=tmp_path).err


def test_count_writes_where_the_relus_are(tmp_path: Path):
    to = tmp_path / "masks.npz"
    counted = answer("count", "zoo:digits", "--masks", str(to))
    with np.load(to, allow_pickle=False) as arrays:
        assert sum(int(arrays[name].sum()) for name in arrays.files) == counted["relus"] == 250
    assert "it is there already" in call("count", "zoo:digits", "--masks", str(to)).err
    assert "give a name with .npz" in call("count", "zoo:digits", "--masks", str(tmp_path / "masks")).err
    assert "its folder is missing" in call("count", "zoo:digits", "--masks", str(tmp_path / "no" / "a.npz")).err


def test_design_prints_the_fixed_shape():
    words = ("--phi", "2,2,2,2", "--order", "3,2,4,1", "--fix", "alpha=2", "--base", "32")
    solutions = answer("design", *words)["solutions"]
    assert [solution["name"] for solution in solutions] == [
        "hrn-2x5x2x-m32", "hrn-2x5x3x-m32", "hrn-2x6x2x-m32", "hrn-2x7x2x-m32",
    ]  # fmt: skip
    assert solutions[0]["multipliers"] == [2, 5, 2]
    assert set(solutions[0]) == {"name", "multipliers", "relus", "macs", "params"}
    assert answer("design", "--block", "bottleneck", "--phi", "3,4,6,3")["solutions"]
    assert answer("design", "--strides", "2,2,2,2")["solutions"][0]["name"].endswith("x")


def test_train_and_eval_agree(tmp_path: Path):
    quick = ("--set", "epochs=1", "--threads", "1")
    whole = answer("train", "resnet18-m4", "--out", str(tmp_path / "whole"), *quick)
    counted = answer("count", str(tmp_path / "whole"))
    assert counted["relus"] == whole["relus"] == 2_176
    from_whole = ("--init", str(tmp_path / "whole"), "--teacher", str(tmp_path / "whole"))
    small = answer("train", "resnet18-m4", "--budget", "600", *from_whole, "--out", str(tmp_path / "small"), *quick)
    assert small["relus"] == 448
    assert small["command"].startswith("deepreshape train resnet18-m4 --data digits --seed 0 --budget 600 --init whole")
    read = answer("eval", str(tmp_path / "small"), "--data", "digits")
    assert read == {"top1": small["top1"], "relus": 448, "n": 360}
    before = (tmp_path / "whole" / "manifest.json").read_bytes()
    again = call("train", "resnet18-m4", "--out", str(tmp_path / "whole"), *quick)
    assert (again.code, "holds a finished model; choose another folder" in again.err.replace("\n", " ")) == (2, True)
    assert (tmp_path / "whole" / "manifest.json").read_bytes() == before


def test_stored_answers_teach_a_student(tmp_path: Path):
    stored = answer("teach", "zoo:digits", "--views", "2", "--out", str(tmp_path / "answers"), "--threads", "1")
    assert (stored["views"], stored["keep"], stored["images"]) == (2, 10, 1437)
    quick = ("--set", "epochs=1", "--set", "batch=256", "--threads", "1")
    small = answer("train", "resnet18-m2", "--teacher", str(tmp_path / "answers"), "--out", str(tmp_path / "s"), *quick)
    assert "--teacher answers" in small["command"]
    search = ("--set", "search_epochs=1", "--set", "mismatch=0")
    whole = str(tmp_path / "s")
    to = ("--budget", "100", "--method", "taylor", "--teacher", str(tmp_path / "answers"), "--out", str(tmp_path / "t"))
    assert answer("linearize", whole, *to, *search, *quick)["relus"] == 100
    wrong = call("train", "resnet18-m2", "--teacher", str(tmp_path / "answers"), "--out", str(tmp_path / "u"), "--set",
                 "crop=2")  # fmt: skip
    assert "saw crop=1, the recipe has crop=2" in wrong.err


def test_linearize_prints_the_fixed_shape(tmp_path: Path):
    quick = ("--set", "epochs=1", "--set", "search_epochs=1", "--set", "batch=256", "--threads", "1")
    out = tmp_path / "small"
    report = answer("linearize", "zoo:digits", "--method", "taylor", "--budget", "120", "--out", str(out), *quick)
    top1s = ["top1_before", "top1_searched", "top1_validation"]
    assert list(report) == ["relus", "macs_before", "macs", "budget", "granularity", *top1s, "warning", "record"]
    assert (report["relus"], report["budget"], report["granularity"]) == (120, 120, "pixel")
    assert report["record"]["settings"]["search_epochs"] == 1
    assert report["record"]["recipe"]["epochs"] == 1
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "masks.svg", "model.safetensors"]
    assert answer("count", str(out))["relus"] == answer("eval", str(out))["relus"] == 120
    priced = ("--granularity", "channel", "--price", "server-garbler")
    again = answer("linearize", str(out), "--method", "taylor", "--budget", "60", "--out", str(tmp_path / "b"), *priced,
                   "--set", "epochs=1", "--threads", "1")  # fmt: skip
    assert (again["relus"], again["granularity"]) == (60, "channel")
    assert again["record"]["price"] < again["record"]["price_before"]


def test_a_network_with_quadratics_is_saved_with_its_picture(tmp_path: Path):
    answer("train", "resnet9-m2-strided", "--out", str(tmp_path / "whole"), "--set", "epochs=1", "--threads", "1")
    words = (
        "--method",
        "autorep",
        "--budget",
        "100",
        "--set",
        "polynomial=true",
        "--set",
        "epochs=1",
        "--set",
        "lr=0.01",
    )
    report = answer("linearize", str(tmp_path / "whole"), *words, "--out", str(tmp_path / "a"), "--threads", "1")
    assert report["relus"] == 100
    assert (tmp_path / "a" / "masks.svg").read_text().startswith("<svg")
    again = call("linearize", str(tmp_path / "a"), "--budget", "50", "--out", str(tmp_path / "b"))
    assert (again.code, "the network has polynomials in place of ReLUs" in again.err) == (2, True)


def test_a_model_of_the_zoo_teaches_and_starts_others(tmp_path: Path):
    words = ("--init", "zoo:digits", "--teacher", "zoo:digits", "--set", "epochs=1", "--threads", "1")
    row = answer("train", "resnet9-m4-strided", "--out", str(tmp_path / "a"), *words)
    assert "--init zoo:digits --teacher zoo:digits" in row["command"]


def test_eval_refuses_a_model_of_other_classes(tmp_path: Path):
    seven = architecture("resnet9-m2", (1, 8, 8), 7)
    save(build(seven, seed=0), tmp_path, Manifest(seven))
    done = call("eval", str(tmp_path), "--data", "digits")
    assert (done.code, "is for 7 classes of (1, 8, 8), digits has 10 of (1, 8, 8)" in done.err) == (2, True)


def test_linearize_under_torchrun(tmp_path: Path):
    words = "--method snl --budget 100 --set epochs=1 --set search_epochs=1 --set batch=256 --threads 1 --json"
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    command = [*run, "-m", "deepreshape", "linearize", "zoo:digits", "--out", str(tmp_path / "a"), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["relus"] == 100
    assert answer("count", str(tmp_path / "a"))["relus"] == 100


def test_sweep_prints_where_its_rows_are(tmp_path: Path):
    words = "--networks zoo:digits --methods descent --budgets 50 --set tune.epochs=1 --threads 1"
    report = answer("sweep", "--out", str(tmp_path / "s"), *words.split())
    (row,) = (json.loads(line) for line in Path(report["results"]).read_text().splitlines())
    assert (row["network"], row["method"], row["relus"]) == ("digits", "descent", 50)


def test_a_sweep_at_a_level_of_multiply_adds_takes_each_network_at_its_base_width(tmp_path: Path):
    words = "--networks resnet18,stch-4x4x4x --macs 6e5 --methods descent --budgets 50 --threads 1".split()
    report = answer("sweep", "--out", str(tmp_path / "s"), *words, "--set", "whole.epochs=1", "--set", "tune.epochs=1")
    rows = [json.loads(line) for line in Path(report["results"]).read_text().splitlines()]
    assert {row["network"] for row in rows} == {"resnet18-m8", "stch-4x4x4x-m2"}
    assert all(abs(row["macs"] / 6e5 - 1) <= 0.15 for row in rows)


def test_criticality_orders_the_stages():
    criticality = answer("criticality", "resnet20-m4-phi1.1.1", "--set", "epochs=1", "--threads", "1")
    assert sorted(criticality["order"]) == [1, 2, 3]
    assert min(stage["score"] for stage in criticality["stages"]) == 0


def test_run_and_report(tmp_path: Path):
    small = "--networks resnet18-m4,hrn-2x5x2x-m2 --baseline resnet18-m4 --budgets 600 --epochs 1 --threads 1"
    summary = answer("run", "--out", str(tmp_path / "one"), *small.split())
    assert summary["points"] == 4
    assert "deepreshape run --data digits --baseline resnet18-m4" in (tmp_path / "one" / "report.html").read_text()
    written = ("--out", str(tmp_path / "both.html"), "--svg", str(tmp_path / "a.svg"))
    again = answer("report", str(tmp_path / "one"), *written, "--protocol", "ot", "--link", "wan")
    assert again["points"] == 4
    assert "predicted seconds (ot, 100mbit/100mbit/50ms)" in (tmp_path / "both.html").read_text()
    assert (tmp_path / "both.html").is_file()
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("count", "resnet19"), "unknown network 'resnet19'; known are resnet9"),
        (("count", "resnet18", "--input", "32"), "--input takes channels x height x width, such as 3x32x32, not '32'"),
        (("count", "resnet18", "--input", "3x0x3"), "not '3x0x3'"),
        (("design", "--phi", "2,a"), "--phi takes integers with commas between, not '2,a'"),
        (("design", "--fix", "alpha"), "--fix takes name=value, not 'alpha'"),
        (("design", "--fix", "alpha=5", "--fix", "alpha=6"), "--fix has two values for alpha: 5 and 6"),
        (("design", "--fix", "alpha=two"), "--fix alpha takes an integer, not 'two'"),
        (("design", "--block", "dense"), "--block is basic or bottleneck, not 'dense'"),
        (("design", "--bounds", "2,3"), "no ReLU equalization: R4 > R1"),
        (("run", "--out", "o", "--data", "mnist"), "unknown data set 'mnist'; known are digits"),
        (("run", "--out", "o", "--budgets", "9000000"), "a budget of 9,000,000 ReLUs is larger than the baseline"),
        (("run", "--out", "o", "--data", "cifar100"), "cifar100 is not there: no file data/cifar-100-python/train"),
        (("run", "--out", "o", "--set", "speed=1"), "unknown setting 'speed'"),
        (("train", "resnet18-m4", "--out", "o", "--budget", "7"), "no coarse plan reaches 7 ReLUs; the smallest has"),
        (("train", "resnet18-m4", "--out", "o", "--teacher", "."), ". holds no saved model"),
        (("eval", "."), ". holds no saved model: there is no manifest.json"),
        (("eval", "resnet18"), "resnet18 is a name and no trained network; `deepreshape train resnet18` makes one"),
        (("cost", "resnet18-m2", "--link", ""), "--link has an empty value"),
        (("train", "resnet18-m2", "--out="), "--out has an empty value"),
        (("eval", ""), "an empty word is no argument"),
        (("count", "weights.pt"), "weights.pt may hold weights, and no code; load it in a function of your own"),
        (("train", "mine.py:net", "--out", "o"), "train takes a network's name; mine.py:net is trained by its own"),
        (("sweep", "--networks", "resnet20", "--budgets", "9", "--seeds", "-1", "--out", "o"), "not '-1'"),
        (("binarize", "zoo:digits", "--out", f"{__file__}/b"), "test_commands.py is a file; a model is written to a"),
        (("frobnicate",), "No such command 'frobnicate'; there are adjust, binarize, calibrate"),
        (("lower", "zoo:digits"), "No such command 'lower'; there is `deepreshape private lower`"),
        (("count", "resnet18", "--classes", "abc"), "not 'abc'"),
        (("train", "resnet18", "--budget", "0", "--out", "o"), "not '0'"),
        (("count", "hrn-5x5x3x-m99999999"), "a stage would have 7,499,999,925 channels; up to 16,777,216 work"),
        (("count", f"{ROOT}/tests/test_house.py:net"), "does not give a network: AttributeError"),
        (("train", "resnet20", "--out", "o", "--set", "lr=-1"), "error: lr must be from 1e-09 to 100, not -1.0"),
        (("cost", "resnet20", "--plot", "no/where.svg"), "no/where.svg cannot be written: its folder is missing"),
        (
            ("cost", "resnet20", "--protocol", "server-garbler", "--workers", "2"),
            "--workers is for our runtime; server-garbler has a price as it was published",
        ),
        (
            ("cost", "resnet20", "--protocol", "gc-full,server-garbler"),
            "gc-full,server-garbler mixes our runtime with a published system; --link says over what to compare them",
        ),
        (("cost", "resnet20", "--protocol", "gc-full,fhe"), "fhe has other costs than those beside it; give it alone"),
        (("cost", "resnet20", "--protocol", "server-garbler", "--garbler", "client"), "--garbler is for our runtime"),
        (("cost", "resnet20", "--slots"), "--slots divides a link's rate, and loopback has no limit"),
        (("cost", "resnet20", "--storage", "1gb/1gb"), "--storage 1gb/1gb is for queries that wait; --arrivals says"),
        (("search", "--max-seconds", "9", "--out", "o"), "--out o is for networks that are trained; --train says how"),
        (("cost", "resnet20", "--protocol", "gc-sign:neg-pass"), "gc-sign takes no mode; its settings are window"),
        (("calibrate", "--out", "no/profile.json"), "no/profile.json cannot be written: its folder is missing"),
        (("search", "--max-seconds", "nan"), "--max-seconds takes a finite number, not nan"),
        (("train", "resnet18-m4", "--out", "o", "--max-macs", "9"), "--max-macs 9 chooses among the plans within"),
        (
            ("train", "resnet18-m4", "--out", "o", "--budget", "900", "--max-macs", "9"),
            "no coarse plan has 900 ReLUs and 9 multiply-adds; with so few ReLUs the least is",
        ),
        (("train", "resnet18-m4", "--out", "o", "--budget", "900", "--max-macs", "inf"), "finite number, not inf"),
        (("report", ".", "--svg", "chart.png"), "chart.png cannot be written: it is to be of the kind .svg"),
        (("run", "--out", "o", "--macs", "35m"), "--macs takes numbers with commas between, such as 35e6,66e6, not"),
        (
            ("sweep", "--networks", "hrn-5x5x3x", "--budgets", "9", "--macs", "1e5", "--out", "o"),
            "hrn-5x5x3x has no base width with 100,000 multiply-adds within 15%",
        ),
        (("report", ".", "--link", "wan"), "--link wan goes with --protocol"),
        (
            ("search", "--max-seconds", "9", "--train", "1", "--out", "o", "--data", "digits"),
            "digits needs --input 1x8x8",
        ),
        (("criticality", "resnet20", "--set", "holdout=false"), "holdout=false leaves no validation accuracy"),
        (
            ("sweep", "--networks", "resnet20", "--budgets", "99999", "--out", "o"),
            "a budget of 99,999 ReLUs is more than any of these networks has: 11,776 at most",
        ),
        (("report", "."), ". holds no results: there is no results.jsonl"),
        (
            ("eval", "zoo:cats"),
            "there is no 'cats' in the zoo; it has cifar100-13k, cifar100-25k, cifar100-50k, cifar100-coarse-herpn, "
            "digits, digits-herpn",
        ),
        (("linearize", ".", "--budget", "9", "--out", "o"), ". holds no saved model"),
        (
            ("linearize", "mine.py:net", "--budget", "9", "--out", "o"),
            "'mine.py:net' does not give a network: FileNotFoundError",
        ),
        (("linearize", "zoo:digits", "--budget", "900", "--out", "o"), "a budget of 900 ReLUs does not fit a network"),
        (
            ("linearize", "zoo:digits", "--budget", "9", "--out", "o", "--method", "best"),
            "unknown method 'best'; known",
        ),
        (
            ("linearize", "zoo:digits", "--budget", "9", "--out", "o", "--set", "speed=1"),
            "unknown setting 'speed'; snl",
        ),
        (("linearize", "zoo:digits", "--budget", "9", "--out", "o", "--price", "free"), "unknown price profile 'free'"),
        (("linearize", "zoo:digits", "--budget", "9", "--out", "o", "--granularity", "row"), "granularity='row'"),
        (
            ("linearize", "zoo:digits", "--budget", "9", "--out", "o", "--method", "coarse", "--granularity", "pixel"),
            "coarse removal goes by layer, not by pixel",
        ),
        (
            ("sweep", "--networks", "a", "--budgets", "9", "--out", "o", "--set", "lr=1"),
            "--set takes whole.lr=1, tune.lr=1 or METHOD.lr=1",
        ),
        (("sweep", "--networks", "resnet19", "--budgets", "9", "--out", "o"), "unknown network 'resnet19'"),
        (("train", "resnet9-m2", "--out", "o", "--init", "zoo:cats"), "there is no 'cats' in the zoo; it has cifar100"),
        (("fetch", "digits"), "there is nothing to fetch for 'digits'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_is_one_clear_line(words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("DEEPRESHAPE_DATA", raising=False)
    done = call(*words, cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_of_a_network_of_ones_own_is_compared_with_its_first_method(tmp_path: Path):
    rows = [row("net", 100, 60.0, method="taylor"), row("net", 200, 70.0, method="taylor")]
    rows += [row("net", 150, 66.0, method="snl")]
    rows = [replace(each, plan=f"{each.method} {each.relus}") for each in rows]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(each.to_row()) + "\n" for each in rows))
    config = {"data": "digits", "networks": ["mine.py:net"], "methods": ["taylor", "snl"], "budgets": [100]}
    config |= {"seeds": [0], "teacher": None, "recipe": {}, "tune": {}, "settings": []}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert answer("report", str(tmp_path)) == {"report": str(tmp_path / "report.html"), "points": 3}
    assert "1 of 1 other points between two of net, taylor&#39;s are ahead" in (tmp_path / "report.html").read_text()
