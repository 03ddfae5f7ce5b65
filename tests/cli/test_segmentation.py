"""Networks with a class for each pixel on every command, from training to a private picture."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.command_line import answer, call
from support.results import ROWS

from deepreshape.cli.jobs import _print_results

NETWORK = "resnet20-m2-phi1.1.1-r4-seg"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation") / "model"
    row = answer("train", NETWORK, "--data", "shapes", "--set", "epochs=1", "--out", str(folder))
    assert 0 < row["miou"] < 100
    assert 0 < row["miou_validation"] < 100
    assert not {"top1", "measures"} & set(row)
    return folder


def test_eval_has_the_miou_and_the_iou_of_each_class(model: Path):
    values = answer("eval", str(model))
    assert set(values) == {"miou", "pixel_accuracy", "iou", "relus", "n"}
    assert list(values["iou"]) == ["ground", "circle", "square", "triangle"]
    assert values["miou"] == pytest.approx(np.mean(list(values["iou"].values())), abs=1e-3)
    assert "test mIoU" in call("eval", str(model)).out


def test_it_is_counted_priced_and_loses_relus(model: Path, tmp_path: Path):
    counted = answer("count", str(model))
    assert counted["relus"] == 2 * 12 * 12 * 3 + 4 * 6 * 6 * 2 + 8 * 6 * 6 * 2
    assert answer("cost", str(model))
    words = "--method", "taylor", "--budget", "1000", "--set", "epochs=1", "--out", str(tmp_path / "half")
    half = answer("linearize", str(model), *words)
    assert half["relus"] == 1000
    assert {"miou_before", "miou_searched", "miou_validation"} < set(half)
    assert json.loads((tmp_path / "half" / "manifest.json").read_text())["history"][-1]["miou_before"] > 0
    assert answer("eval", str(tmp_path / "half"))["relus"] == 1000


@pytest.mark.parametrize("words", ["senet", "spatial --set choice=validation --set maps=2", "dead"])
def test_methods_that_look_at_labels_take_maps(model: Path, tmp_path: Path, words: str):
    method, *settings = words.split()
    chosen = [] if method == "dead" else ["--budget", "500", "--set", "epochs=1", *settings]
    done = call("linearize", str(model), "--method", method, *chosen, "--out", str(tmp_path / "out"), "--json")
    assert done.code == 0 or (method == "dead" and "none is free" in done.err), done.err


def test_private_answers_are_maps_and_pictures(model: Path, tmp_path: Path):
    words = "--images", "2", "--relu", "ot", "--picture", str(tmp_path / "p.png")
    report = answer("private", "local", "--model", str(model), *words)
    assert report["agree"]
    assert report["declared_bytes_match"]
    assert report["places"] == 2 * 6 * 6
    assert 0 <= report["places"] - report["same_places"] <= 6
    beside = report["beside_float"]
    assert beside["pixels"] == 2 * 48 * 48
    assert beside["same_pixels"] >= 0.95 * beside["pixels"]
    assert report["pictures"] == [str(tmp_path / f"p-{number}.png") for number in (1, 2)]
    for path, shares in zip(report["pictures"], report["answers"], strict=True):
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("P", (48, 48))
            values = np.array(picture)
        assert sum(shares.values()) == pytest.approx(1)
        assert len(shares) == len(np.unique(values))


def test_lower_tells_the_client_how_to_read_it(model: Path, tmp_path: Path):
    report = answer("private", "lower", str(model), "--out", str(tmp_path / "bundle"))
    assert report["beside_float"]["same_pixels"] >= 0.95 * report["beside_float"]["pixels"]
    facts = json.loads((tmp_path / "bundle" / "client.json").read_text())
    assert facts["upsample"] == [48, 48]
    assert facts["colours"][1] == [214, 69, 65]


def test_a_query_between_two_parties_paints_the_picture(model: Path, tmp_path: Path):
    answer("private", "lower", str(model), "--out", "bundle", cwd=tmp_path)
    answer("private", "keygen", "--out", "keys", cwd=tmp_path)
    Image.fromarray(np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)).save(tmp_path / "image.png")
    serve = "--program bundle --keys keys --store server --port 0 --sessions 2 --relu ot"
    command = [sys.executable, "-m", "deepreshape", "private", "serve", *serve.split(), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            assert server.stderr is not None
            port = server.stderr.readline().rsplit(":", 1)[1].strip()
            query = f"--program bundle --keys keys --store client --port {port} --relu ot"
            told = answer("private", "query", "image.png", *query.split(), "--picture", "p.png", cwd=tmp_path)
            assert json.loads(server.communicate(timeout=60)[0])["served"] == 2
        finally:
            server.kill()
    assert told["pictures"] == ["p.png"]
    with Image.open(tmp_path / "p.png") as picture:
        assert (picture.mode, picture.size) == ("P", (48, 48))
        assert len(np.unique(np.array(picture))) == len(told["classes"])
    assert sum(row["share"] for row in told["classes"]) == pytest.approx(1)


def test_maps_of_exits_asked_in_turn_are_compared_by_place_and_pixel(model: Path, tmp_path: Path):
    words = "--data", "shapes", "--at", "1", "--trunk", "kept", "--set", "heads.epochs=1", "--out", "exits"
    answer("exits", "train", str(model), *words, cwd=tmp_path)
    words = "--exit", "dynamic:1:1", "--relu", "ot", "--images", "2"
    report = answer("private", "local", "--model", "exits", *words, cwd=tmp_path)
    first, end = (each["report"] for each in report["exits"])
    assert report["places"] == first["places"] + end["places"] == 2 * (12 * 12 + 6 * 6)
    assert report["same_places"] == first["same_places"] + end["same_places"]
    assert report["beside_float"]["pixels"] == 2 * 48 * 48
    assert report["beside_float"]["same_pixels"] >= 0.95 * 2 * 48 * 48
    priced = call("cost", "exits", "--exit", "dynamic:0.8", cwd=tmp_path)
    assert (priced.code, "of maps, `deepreshape exits search --cost seconds` has" in priced.err) == (2, True)


def test_results_have_the_name_of_their_metric_and_a_report_has_one(tmp_path: Path):
    maps = [replace(row, measures="miou") for row in ROWS]
    with redirect_stdout(StringIO()) as said:
        _print_results(maps, "base")
    assert "mIoU, %" in said.getvalue()
    assert "top-1" not in said.getvalue().lower()
    for name, rows in (("maps", maps), ("classes", ROWS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text("".join(json.dumps(row.to_row()) + "\n" for row in rows))
    done = call("report", "maps", "classes", cwd=tmp_path)
    assert done.code == 2
    assert done.err == "error: one report is of one metric: maps has mIoU, classes has top-1; write a report for each\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "resnet20-m2", "--data", "shapes", "--out", "x"), "shapes has a class for each pixel, which"),
        (("train", NETWORK, "--data", "digits", "--out", "x"), "digits has one class for each image, which"),
        (("train", "vgg16-seg", "--data", "shapes", "--out", "x"), "a vgg has no kinds of task, so -seg does not fit"),
        (("train", NETWORK, "--data", "camvid", "--data-dir", ".", "--out", "x"), "camvid is not there: no folder"),
        (("eval", "MODEL", "--data", "digits"), "has 10 of (1, 8, 8)"),
        (("private", "local", "--model", "zoo:digits", "--picture", "p.png"), "gives one class for an image"),
        (("private", "local", "--model", "MODEL", "--picture", "no/p.png"), "no/p.png cannot be written: its folder"),
        (("teach", "MODEL", "--out", "x"), "answers that are maps are not stored"),
        (("fetch", "camvid", "--data-dir", "."), "it is at no public address"),
    ],
)
def test_wrong_input_is_one_clear_line(model: Path, tmp_path: Path, words: tuple[str, ...], message: str):
    done = call(*(str(model) if word == "MODEL" else word for word in words), cwd=tmp_path)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "x").exists()
