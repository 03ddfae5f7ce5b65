"""Gated networks on the command line: fitting tables, and running them between two parties."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris
from support.command_line import answer, call, refusal

from deepreshape.cli.convex import read_row
from deepreshape.convex.saved import load_fitted
from deepreshape.convex.tables import Table, read_table

FLOWER = "5.1,3.5,1.4,0.2"


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fitted with few gates."""
    folder = tmp_path_factory.mktemp("iris") / "G"
    words = ("--gates", "30", "--tol", "0.01", "--out", str(folder))
    report = answer("convex", "fit", "iris", *words)
    assert {"objective", "ntk_objective", "gap", "active_gates", "test_error"} <= set(report)
    assert report["objective"] < report["ntk_objective"]
    assert report["gap"] <= 0.01
    assert report["test_error"] <= 0.1
    return folder


def test_a_private_row_takes_no_relu_and_one_round_and_is_the_float_result(iris: Path):
    report = answer("private", "local", "--model", str(iris), "--images", "2")
    assert (report["relus"], report["rounds"], report["agree"], report["max_lsb_difference"]) == (0, 1, True, 0)
    beside = report["beside_float"]
    assert beside["same_class"] == beside["inputs"] == 2
    assert beside["largest_difference"] <= 2**-8  # inputs of 12 bits and weights of 11


def test_rows_of_ones_own(iris: Path, tmp_path: Path):
    by_place = answer("private", "local", "--model", str(iris), "--row", FLOWER)
    assert by_place["predictions"] == ["setosa"]
    names = load_fitted(iris).features
    named = ",".join(f"{name}={value}" for name, value in zip(names, FLOWER.split(","), strict=True))
    assert read_row(named, names).tolist() == [[5.1, 3.5, 1.4, 0.2]]
    (tmp_path / "rows.csv").write_text("id," + ",".join(names) + f"\n7,{FLOWER}\n8,6.3,3.3,6.0,2.5\n")
    rows = ("--samples", str(tmp_path / "rows.csv"), "--images", "2")
    report = answer("private", "local", "--model", str(iris), *rows)
    assert report["predictions"] == ["setosa", "virginica"]


def test_two_parties_with_a_row(iris: Path, tmp_path: Path):
    keys, program = tmp_path / "keys", tmp_path / "program"
    answer("private", "keygen", "--out", str(keys))
    answer("private", "lower", str(iris), "--out", str(program))
    told = json.loads((program / "gates.json").read_text())
    assert set(told) == {"features", "mean", "scale", "directions"}  # and no weights
    options = ("--program", str(program / "server.program"), "--keys", str(keys), "--store", str(tmp_path / "server"))
    command = [sys.executable, "-m", "deepreshape", "private", "serve", *options, "--port", "0", "--sessions", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        port = server.stderr.readline().rsplit(":", 1)[1].strip()
        place = ("--program", str(program / "client.program"), "--keys", str(keys), "--port", port)
        prediction = answer("private", "query", "--row", FLOWER, *place, "--store", str(tmp_path / "client"))
        assert prediction["classes"][0]["class"] == "setosa"
        assert server.wait(60) == 0


def test_a_number_is_predicted_too(tmp_path: Path):
    random = np.random.default_rng(0)
    rows = random.standard_normal((120, 3))
    np.savez(tmp_path / "t.npz", X=rows, y=rows[:, 0] * 2 + np.abs(rows[:, 1]))
    words = ("--gates", "40", "--lam", "0.01", "--tol", "0.01", "--keep", "8", "--out", str(tmp_path / "G"))
    report = answer("convex", "fit", str(tmp_path / "t.npz"), *words)
    assert report["kept_gates"] == 8 < report["active_gates"]
    run = answer("private", "local", "--model", str(tmp_path / "G"), "--row", "1,0,0")
    assert run["agree"] is True
    assert isinstance(run["predictions"][0], float)


def test_a_csv_with_a_named_target_is_the_same_table(tmp_path: Path):
    x, y = load_iris(return_X_y=True)
    names = read_table("iris").features
    lines = [",".join(["species", *names])] + [",".join(map(str, [f"s{k}", *row])) for k, row in zip(y, x, strict=True)]
    (tmp_path / "iris.csv").write_text("\n".join(lines) + "\n")
    table = read_table(str(tmp_path / "iris.csv"), "species")
    assert np.array_equal(table.rows, x)
    assert np.array_equal(table.target, y)
    assert (table.features, table.classes) == (names, ("s0", "s1", "s2"))


def test_the_split_holds_out_its_share_of_each_class():
    table = read_table("iris")
    train, test = table.split(0.3, 0)
    assert np.bincount(table.target[test]).tolist() == [15, 15, 15]
    assert sorted([*train, *test]) == list(range(150))
    few = Table(np.zeros((8, 1)), np.array([0, 0, 1, 1, 1, 1, 1, 2]), ("x",), ("a", "b", "c"))
    train, test = few.split(0.8, 0)
    assert np.bincount(few.target[train]).tolist() == [1, 1, 1]
    assert np.bincount(few.target[test]).tolist() == [1, 4]


def arrays(**changed: Any) -> dict[str, Any]:
    return {"X": np.arange(8.0).reshape(4, 2), "y": np.array([0, 1, 0, 1])} | changed


@pytest.mark.parametrize(
    ("changed", "words", "said"),
    [
        ({"X": np.array([[1.0, np.nan]] * 4)}, (), "nan is not a finite number (row 1, feature 2"),
        ({"X": np.array([["1", "two"]] * 4)}, (), "two is not a finite number (row 1, feature 2"),
        ({"y": np.zeros(4, int)}, (), "all rows are of one class, 0"),
        ({"y": np.array([0.0, np.inf, 1.5, 2.0])}, (), "the target of row 2, counted from 1, is not finite"),
        ({"X": np.float64(3)}, (), "it is to hold X (N, features) and y (N,)"),
        ({"y": np.zeros(3, int)}, (), "4 rows and a target of shape (3,)"),
        ({"X": np.zeros(4)}, (), "they are to be (N, 4)"),
        ({}, ("--lam", "0"), "lam is a number above 0, not 0.0"),
        ({}, ("--gates", "0"), "n_gates is a whole number of at least 1, not 0"),
        ({}, ("--test-share", "1"), "--test-share is between 0 and 1, not 1"),
        ({}, ("--target", "y"), "--target y names a column of a .csv"),
        ({}, ("--keep", "900"), "900 gates cannot be kept of"),
    ],
)
def test_bad_tables(changed: dict[str, Any], words: tuple[str, ...], said: str, tmp_path: Path):
    np.savez(tmp_path / "t.npz", **arrays(**changed))
    done = call("convex", "fit", str(tmp_path / "t.npz"), "--out", str(tmp_path / "G"), *words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert said in done.err
    assert not (tmp_path / "G").exists()


def test_a_table_without_a_target_and_a_folder_with_a_model_are_refused(tmp_path: Path):
    np.savez(tmp_path / "t.npz", X=np.zeros((4, 2)), z=np.zeros(4))
    assert "holds X, z; it is to hold X" in refusal("convex", "fit", str(tmp_path / "t.npz"), "--out", "G")
    (tmp_path / "G").mkdir()
    (tmp_path / "G" / "manifest.json").write_text("{}")
    said = refusal("convex", "fit", "breast_cancer", "--out", str(tmp_path / "G"))
    assert "holds a finished model" in said
    assert (tmp_path / "G" / "manifest.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("a,b\n1,2\n", (), "--target says which is to be predicted"),
        ("a,b\n1,2\n", ("--target", "c"), "has the columns a, b; --target c is none of them"),
        ("a,b\n1\n", ("--target", "b"), "row 2: 1 values and 2 columns"),
        ("a,b\n", ("--target", "b"), "it needs a header and rows"),
        ("a,b\n1,0\n2,\n", ("--target", "b"), "row 3: b is empty"),
        ("a,b\n1,0\n2,NA\n", ("--target", "b"), "b has numbers and words, such as 'NA'"),
        ("a,a,b\n1,2,0\n", ("--target", "b"), "has two columns 'a'"),
        (f"a,b\n1,{'0' * 140_000}\n", ("--target", "b"), "no table of comma-separated values"),
    ],
)
def test_bad_csv(text: str, words: tuple[str, ...], said: str, tmp_path: Path):
    (tmp_path / "t.csv").write_text(text)
    done = call("convex", "fit", str(tmp_path / "t.csv"), "--out", str(tmp_path / "G"), *words)
    assert (done.code, said in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--row", "1,2"), "--row has 2 numbers and the table 4 columns"),
        (("--row", "1,2,3,x"), "--row takes numbers, not '1,2,3,x'"),
        (("--row", "1,2,3,nan"), "row 0 has a value that is not finite"),
        (("--row", "petal width (cm)=1"), "'sepal length (cm)' is missing"),
        (("--row", "1e9,2,3,4"), "exceed the program's input bound"),
        (("--data", "digits"), "--data digits is for networks of images; --samples and --row give rows"),
        (("--images", "46"), "46 rows are wanted and there are 45 to run"),
    ],
)
def test_bad_rows(iris: Path, words: tuple[str, ...], said: str):
    done = call("private", "local", "--model", str(iris), *words)
    assert (done.code, said in done.err) == (2, True), done.err


@pytest.mark.parametrize("command", ["count", "check", "cost"])
def test_rows_have_no_other_shape(iris: Path, command: str):
    said = refusal(command, str(iris), "--input", "3x8x8")
    assert "products of a row of 4 columns with its gates, " in said
    assert "leave --input and --data out" in said


def test_a_damaged_folder_says_so(iris: Path, tmp_path: Path):
    for file in iris.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "gates.safetensors").write_bytes(b"x" + (iris / "gates.safetensors").read_bytes()[1:])
    done = call("count", str(tmp_path))
    assert (done.code, "its digest differs" in done.err) == (2, True), done.err


def test_a_row_is_not_for_a_network_of_images():
    done = call("private", "local", "--model", "resnet18", "--row", "1")
    assert (done.code, "--row is for networks that `convex fit` made" in done.err) == (2, True), done.err
