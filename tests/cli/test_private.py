"""The private commands: a quick look in one, and two parties with certificates in two processes."""

import inspect
import json
import subprocess
import sys
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from support.command_line import answer, call, refusal

from deepreshape.cli import console
from deepreshape.cli.models import Network, compare
from deepreshape.cli.private.fhe import Shelf
from deepreshape.cli.private.options import Most
from deepreshape.data import Dataset
from deepreshape.models import architecture, build
from deepreshape.models.saved import Manifest, save
from deepreshape.private.service.quotas import Caps

DATA = Dataset.load("digits")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of two stages; its weights do not matter here."""
    network = architecture("hrn-2x-m2-phi1.1", DATA.shape, 10)
    folder = tmp_path_factory.mktemp("private") / "model"
    manifest = Manifest(network, dataset="digits", class_names=DATA.class_names, mean=DATA.mean, std=DATA.std)
    save(build(network, seed=0), folder, manifest)
    return folder


@pytest.mark.parametrize("garbler", ["server", "client"])
def test_local_prints_the_fixed_shape_and_private_equals_plain(model: Path, garbler: str):
    report = answer("private", "local", "--model", str(model), "--images", "1", "--garbler", garbler)
    assert report["agree"] is True
    assert report["declared_bytes_match"] is True
    assert report["relus"] == 2 * 64 * 3 + 4 * 16 * 2
    assert set(report["seconds"]) == set(report["bytes"]) == {"offline", "online"}
    assert set(report["peak_rss_mib"]) == {"client", "server"}
    assert report["rounds"] > 0
    assert isinstance(report["max_lsb_difference"], int)
    assert sum(row["relus"] for row in report["layers"]) == report["relus"]


def test_local_reports_squares_and_the_bytes_of_each_layer(tmp_path: Path):
    design = architecture("hrn-2x-m2-phi1.1-herpn", DATA.shape, 10)
    network = build(design, seed=0).train()
    with torch.no_grad():
        for _ in range(20):
            network(DATA.normalize(torch.as_tensor(DATA.train.images[:64])))
    save(network.eval(), tmp_path / "m", Manifest(design, "digits", DATA.class_names, mean=DATA.mean, std=DATA.std))
    report = answer("private", "local", "--model", str(tmp_path / "m"), "--images", "1")
    assert (report["agree"], report["declared_bytes_match"]) == (True, True)
    assert (report["relus"], report["squares"], report["signs"]) == (0, 2 * 64 * 3 + 4 * 16 * 2, 0)
    assert sum(row["squares"] for row in report["layers"]) == report["squares"]
    for row in (row for row in report["layers"] if row["squares"]):
        assert row["rounds"] == 1
        # of a small layer whole bytes a field are a part
        assert 8 < row["bytes"]["online"] / row["squares"] < 13
        assert row["bytes"]["offline"] > row["bytes"]["online"]
    online = sum(row["bytes"]["online"] for row in report["layers"])
    assert online == report["bytes"]["online"]


@pytest.mark.parametrize(
    "words",
    [
        "gc-sign",
        "gc-sign:window --garbler client",
        "gc-stochastic:drop=6,neg-pass,garbler=client",
    ],
)
def test_each_protocol_is_a_word_on_the_command_line(model: Path, words: str):
    report = answer("private", "local", "--model", str(model), "--relu", *words.split())
    assert report["agree"] is True
    assert report["declared_bytes_match"] is True
    assert sum(row["relus"] for row in report["layers"]) == report["relus"] == 2 * 64 * 3 + 4 * 16 * 2


def test_auto_chooses_by_layer_says_why_and_runs_it(model: Path):
    words = ("private", "local", "--model", str(model), "--cot", "iknp")
    report = answer(*words, "--relu", "auto", "--link", "wan", "--objective", "bytes")
    assert report["agree"] is report["declared_bytes_match"] is True
    assigned = report["assigned"]
    assert (assigned["word"], assigned["objective"], assigned["link"]) == (
        report["relu"],
        "bytes",
        "100mbit/100mbit/50ms",
    )
    assert [row["relus"] for row in assigned["choices"]] == [row["relus"] for row in report["layers"] if row["relus"]]
    assert all(row["more_bytes"] >= 0 and row["other"] for row in assigned["choices"])
    mixed = answer(*words[:4], "--relu", "gc-sign@2+ot:tree,cot=iknp@3")
    assert (mixed["agree"], mixed["declared_bytes_match"], mixed["assigned"]) == (True, True, None)
    shown = call(*words, "--relu", "auto")
    assert "next best" in shown.out
    assert " ".join(shown.out.split()).count("chosen for seconds on link unlimited/unlimited/0ms") == 1


OWN = """
import torch

def net():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, 2, 3, padding=1)
    return torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2 * 36, 3))

class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return {"logits": self.net(x), "pixels": x.flatten(1)}

def soft():
    return torch.nn.Sequential(net(), torch.nn.Softmax(1))

def broken():
    return 1 / 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with code that makes a network, and 260 inputs of it."""
    (tmp_path / "mine.py").write_text(OWN)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(260, 1, 6, 6)).astype(np.float32))
    np.save(tmp_path / "flat.npy", np.zeros((4, 6)))
    np.save(tmp_path / "zeros.npy", np.zeros((4, 1, 6, 6)))
    np.save(tmp_path / "nan.npy", np.concatenate([np.ones(142), [np.nan, np.inf]]).reshape(4, 1, 6, 6))
    np.save(tmp_path / "bytes.npy", np.ones((4, 1, 6, 6), dtype=np.uint8))
    (tmp_path / "facts.json").write_text(json.dumps({"class_names": ["a", "b", "c"], "mean": [0.5], "std": [0.2]}))
    return tmp_path


def test_a_network_of_ones_own_runs_privately(folder: Path):
    report = answer("private", "local", "--model", "mine.py:net", "--samples", "x.npy", "--images", "2", cwd=folder)
    assert report["agree"] is True
    assert report["relus"] == 2 * 36
    assert (report["beside_float"]["inputs"], report["beside_float"]["same_class"]) == (2, 2)
    assert 0 < report["beside_float"]["largest_difference"] < 0.01 < report["beside_float"]["largest_output"]
    low = ("private", "lower", "mine.py:net", "--samples", "x.npy", "--max-loss", "1", "--out", "low")
    assert answer(*low, cwd=folder)["same_class_percent"] >= 99
    assert "of 260 samples keep the class of exact signs; no labels were given" in call(*low, cwd=folder).out
    answer("private", "lower", "mine.py:net", "--samples", "x.npy", "--facts", "facts.json", "--out", "p", cwd=folder)
    assert json.loads((folder / "p" / "client.json").read_text())["class_names"] == ["a", "b", "c"]
    served = call(
        *("private", "serve", "--program", "p/client.program", "--keys", "k", "--store", "s"),
        cwd=folder,
    )
    assert (served.code, "p/client.program has no weights" in served.err) == (2, True)


def test_of_outputs_in_a_dictionary_the_first_is_compared(folder: Path):
    words = ("private", "local", "--model", "mine.py:Named", "--samples", "x.npy", "--images", "2")
    report = answer(*words, cwd=folder)
    assert (report["agree"], report["beside_float"]["same_class"]) == (True, 2)
    assert report["beside_float"]["largest_difference"] < 0.01


def test_a_softmax_at_the_end_is_left_out_on_both_sides_of_the_comparison(folder: Path):
    """The program gives logits, which its client puts through the softmax."""
    reports = []
    for model in ("mine.py:soft", "mine.py:net"):
        reports.append(answer("private", "local", "--model", model, "--samples", "x.npy", cwd=folder)["beside_float"])
    assert reports[0] == reports[1]
    assert reports[0]["largest_difference"] < 0.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "mine.py:net"), "give some, as --samples"),
        (("--model", "mine.py:broken", "--samples", "x.npy"), "ZeroDivisionError: division by zero"),
        (("--model", "mine.py:net", "--samples", "mine.py"), "mine.py is not an array of numbers that NumPy saved"),
        (("--model", "mine.py:net", "--samples", "flat.npy"), "flat.npy holds float64 (4, 6); inputs are real numbers"),
        (("--model", "mine.py:net", "--samples", "bytes.npy"), "bytes.npy holds uint8 (4, 1, 6, 6); inputs are real"),
        (("--model", "mine.py:net", "--samples", "zeros.npy"), "zeros.npy holds zeros only; formats are calibrated"),
        (("--model", "mine.py:net", "--samples", "nan.npy"), "nan.npy holds 2 values that are NaN or infinite, of 144"),
        (("--model", "mine.py:net", "--samples", "x.npy", "--relu", "gc-stochastic"), "leaves out no bits and saves"),
        (("--model", "mine.py:net", "--samples", "x.npy", "--images", "5"), "5 inputs are wanted and there are 4 new"),
        (("--model", "zoo:digits", "--samples", "x.npy"), "fails on an input of x.npy, of shape (1, 6, 6): "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_inputs_of_a_network_of_ones_own_are_one_line(words: tuple[str, ...], message: str, folder: Path):
    done = call("private", "local", *words, cwd=folder)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err


def test_lower_says_when_it_replaces_another_program(model: Path, tmp_path: Path):
    program = str(tmp_path / "program")
    said = [call("private", "lower", each, "--out", program).err for each in (str(model), str(model), "zoo:digits")]
    assert ["held another program" in each for each in said] == [False, False, True]


def test_lower_chooses_low_bits_and_the_windows_save_bytes(model: Path, tmp_path: Path):
    whole = answer("private", "lower", str(model), "--out", str(tmp_path / "whole"))
    calibration = answer("private", "lower", str(model), "--out", str(tmp_path / "calibrated"), "--max-loss", "5")
    assert calibration["top1_exact"] - calibration["top1_calibrated"] <= 5
    assert calibration["digest"] != whole["digest"]
    assert set(calibration["windows"]) == set(whole["windows"])
    assert all(low == 0 < high for low, high in whole["windows"].values())
    assert any(low > 0 for low, _ in calibration["windows"].values())
    windowed = ("private", "local", "--model", str(model), "--relu", "gc-stochastic:window", "--max-loss", "5")
    report, exact = answer(*windowed), answer("private", "local", "--model", str(model), "--relu", "gc-sign")
    assert report["agree"] is True
    assert report["declared_bytes_match"] is True
    assert sum(report["bytes"].values()) < sum(exact["bytes"].values())


def test_two_parties_with_certificates(model: Path, tmp_path: Path):
    keys, program = tmp_path / "keys", tmp_path / "program"
    fingerprints = answer("private", "keygen", "--out", str(keys))["fingerprints"]
    assert set(fingerprints) == {"server", "client"}
    assert answer("private", "lower", str(model), "--out", str(program))["relus"] == 512
    assert (program / "server.program").stat().st_mode & 0o077 == 0
    options = (
        f"--program {program / 'server.program'} --keys {keys} --store {tmp_path / 'server'} --port 0 --sessions 5"
        " --relu gc-stochastic:drop=4"
    )
    command = [sys.executable, "-m", "deepreshape", "private", "serve", *options.split(), "--json"]
    pixels = DATA.normalize(DATA.test.images[:1])[0].contiguous().numpy()
    np.save(tmp_path / "digit.npy", pixels)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        port = server.stderr.readline().rsplit(":", 1)[1].strip()
        again = ("--keys", str(keys), "--store", str(tmp_path / "again"), "--port", port)
        assert f"cannot listen on 127.0.0.1:{port}" in refusal("private", "serve", "--program", str(program), *again)
        assert not (tmp_path / "again").exists()
        place = ("--program", str(program / "client.program"), "--keys", str(keys), "--port", port)
        place += ("--store", str(tmp_path / "client"), "--relu", "gc-stochastic:drop=4")
        another = call("private", "prepare", *place, "--pin", fingerprints["client"])
        assert (another.code, f"pinned is {fingerprints['client']}" in another.err) == (2, True)
        short = call("private", "query", str(tmp_path / "digit.npy"), *place, "--pin", "abc")
        assert (short.code, "--pin abc: a fingerprint has 64 hexadecimal digits" in short.err) == (2, True)
        assert len(answer("private", "prepare", *place, "--pin", fingerprints["server"].upper())["batches"]) == 1
        first = answer("private", "query", str(tmp_path / "digit.npy"), *place, "--pin", fingerprints["server"])
        second = answer("private", "query", str(tmp_path / "digit.npy"), *place)  # prepares by itself
        assert first["classes"][0]["class"] == second["classes"][0]["class"]
        assert sum(row["probability"] for row in first["classes"]) <= 1 + 1e-9
        np.save(tmp_path / "wide.npy", np.zeros((1, 9, 9)))
        wrong = call("private", "query", str(tmp_path / "wide.npy"), *place)
        assert (wrong.code, "of shape (1, 9, 9) does not fit, the network takes floats (1, 8, 8)" in wrong.err) == (
            2,
            True,
        )
        assert json.loads(server.communicate(timeout=60)[0]) == {
            "served": 4,
            "failed": 1,  # the one that the client left for its pin
            "refused": 0,
        }


def test_keygen_adds_clients_to_the_authority_that_is_there(tmp_path: Path):
    first = answer("private", "keygen", "--out", str(tmp_path / "keys"), "--client", "ann")["fingerprints"]
    assert set(first) == {"server", "ann"}
    authority = (tmp_path / "keys" / "authority.pem").read_bytes()
    more = answer("private", "keygen", "--out", str(tmp_path / "keys"), "--client", "bob", "--client", "eve")
    assert set(more["fingerprints"]) == {"bob", "eve"}
    assert (tmp_path / "keys" / "authority.pem").read_bytes() == authority
    again = call("private", "keygen", "--out", str(tmp_path / "keys"), "--client", "ann")
    assert (again.code, "exists and is not overwritten" in again.err) == (2, True)
    assert "has an authority and a certificate for a server; --client NAME adds a client" in refusal(
        "private", "keygen", "--out", str(tmp_path / "keys")
    )


def test_keygen_renews_the_server_and_finishes_what_was_cut(tmp_path: Path):
    keys = tmp_path / "keys"
    first = answer("private", "keygen", "--out", str(keys), "--client", "ann")["fingerprints"]
    for file in keys.glob("server-server.*"):
        file.rename(tmp_path / file.name)
    (server,) = answer("private", "keygen", "--out", str(keys))["fingerprints"].items()
    assert server[0] == "server"
    assert server[1] != first["server"]


@pytest.mark.parametrize("names", [("bad/name",), ("ann",), ("server",)])
def test_keygen_writes_nothing_if_one_name_does_not_do(names: tuple[str, ...], tmp_path: Path):
    words = [word for name in ("ann", *names) for word in ("--client", name)]
    done = call("private", "keygen", "--out", str(tmp_path / "keys"), *words)
    assert (done.code, done.err.count("\n"), names[0] in done.err) == (2, 1, True)
    assert not (tmp_path / "keys").exists()


def test_the_caps_of_the_command_are_those_of_the_library():
    given = {parameter.name: parameter.default for parameter in inspect.signature(Most).parameters.values()}
    assert given == {name: cap for name, cap in asdict(Caps()).items() if name != "arrivals"}
    shelf = {parameter.name: parameter.default for parameter in inspect.signature(Shelf).parameters.values()}
    assert {name: shelf[name] for name in shelf if name.startswith("queries")} == {
        name: cap for name, cap in asdict(Caps()).items() if name.startswith("queries")
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("local", "--model", "resnet19"), "unknown network 'resnet19'"),
        (("local", "--model", "x", "--relu", "circa"), "no ReLU protocol 'circa'"),
        (("local", "--model", "x", "--relu", "autoo"), "there are gc-full, gc-sign, gc-stochastic, ot, auto"),
        (("local", "--model", "x", "--relu", "auto", "--link", ""), "--link has an empty value"),
        (("local", "--model", "x", "--relu", "auto", "--objective", ""), "--objective has an empty value"),
        (("local", "--model", "x", "--drop-bits", "4"), "write --relu gc-stochastic:drop=BITS"),
        (("local", "--model", "x", "--mode=neg-pass"), "write --relu gc-stochastic:drop=BITS,neg-pass"),
        (("local", "--model", "x", "--calibrated"), "write --relu gc-sign:window or gc-stochastic:window"),
        (("local", "--model", "x", "--relu", "gc-full:drop=4"), "gc-full takes no drop; its settings are garbler"),
        (("local", "--model", "x", "--relu", "gc-stochastic:x"), "unknown setting 'x'"),
        (("local", "--model", "x", "--relu", "ot:tree@1"), "the word of one config is for all layers"),
        (("local", "--model", "x", "--relu", "auto:drop=2"), "auto takes window, batch, cot, garbler, and no 'drop=2'"),
        (("local", "--model", "x", "--relu", "gc-sign:auto"), "gc-sign leaves nothing to choose"),
        (("local", "--model", "x", "--link", "wan"), "--link is for --relu auto; gc-full leaves nothing to choose"),
        (("local", "--model", "x", "--relu", "auto", "--objective", "time"), "known are seconds, bytes, online"),
        (("local", "--model", "x", "--relu", "auto", "--link", "dsl"), "unknown link 'dsl'"),
        (("local", "--model", "x", "--relu", "server-garbler"), "no ReLU protocol 'server-garbler'"),
        (
            ("local", "--model", "x", "--relu", "ot", "--cot", "ferret"),
            "--cot is silent, softspoken, iknp, not 'ferret'",
        ),
        (
            ("local", "--model", "x", "--max-loss", "1"),
            "--max-loss 1 is for --relu gc-stochastic:window, not for",
        ),
        (
            ("lower", "x", "--out", "o", "--relu", "gc-stochastic:window"),
            "--relu gc-stochastic:window is what --max-loss chooses windows for; give that too",
        ),
        (("lower", "x", "--out", "o", "--relu", "gc-sign:window"), "--relu gc-sign:window has no windows to choose"),
        (
            ("prepare", "--program", "x", "--keys", "k", "--store", "s", "--port", "0"),
            "--port 0 lets `serve` choose; a client needs the port that it chose",
        ),
        (("keygen", "--out", "keys"), None),
        (("serve", "--program", "x", "--keys", "keys", "--store", "s"), "error: x: No such file or directory"),
        (("query", "x.npy", "--program", "p", "--keys", "k", "--store", "s", "--garbler", "me"), "error: p: "),
        (("query", "x.npy", "--program", "y", "--keys", "k", "--store", "s"), "error: y: No such file or directory"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_wrong_input_is_one_clear_line(words: tuple[str, ...], message: str | None, tmp_path: Path):
    done = call("private", *words, cwd=tmp_path)
    if message is None:
        done = call("private", *words, cwd=tmp_path)
        message = "has an authority and a certificate for a server"
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_the_offline_bar_shows_bytes_and_the_time_left(monkeypatch: pytest.MonkeyPatch):
    shown = StringIO()
    monkeypatch.setattr(console, "err", Console(file=shown, force_terminal=True, width=100))
    with console.bytes_bar("offline") as show:
        show(250_000, 1_000_000)
        show(500_000, 1_000_000)
    assert "offline" in shown.getvalue()
    assert "500.0/1000.0 kB" in shown.getvalue() or "0.5/1.0 MB" in shown.getvalue()


def test_where_there_is_no_terminal_a_line_now_and_then_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch):
    shown = StringIO()
    monkeypatch.setattr(console, "err", Console(file=shown, width=100))
    with console.bytes_bar("offline") as show:
        show(250_000, 1_000_000)
    assert shown.getvalue() == ""
    monkeypatch.setattr(console, "LINE_S", 0.0)
    with console.bytes_bar("offline") as show, console.count_bar("[images]") as count:
        show(2_500_000, 8_000_000)
        count(3, 1_200)
    assert shown.getvalue() == "offline: 2 of 8 MB\n[images]: 3 of 1,200\n"


def test_a_network_and_a_folder_of_your_own(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    for at, name in enumerate(("cat", "dog")):
        for number in range(8):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.full((9 + number, 12), 100 * at + number, np.uint8)
            image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    layers = "nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)"
    (tmp_path / "mine.py").write_text(f"from torch import nn\n\ndef net():\n    return nn.Sequential({layers})\n")
    model, data = f"{tmp_path}/mine.py:net", f"folder:{tmp_path}/photos:8"
    ran = call("private", "local", "--model", model, "--data", data, "--json")
    assert (ran.code, json.loads(ran.out)["agree"]) == (0, True)
    assert json.loads(ran.out)["answers"] in (["cat"], ["dog"])
    wide = tmp_path / "wide.py"
    wide.write_text((tmp_path / "mine.py").read_text().replace("72, 2", "72, 3"))
    message = call("private", "local", "--model", f"{wide}:net", "--data", data).err.replace("\n", " ")
    assert "gives 3 outputs, and" in message
    assert "has 2 classes" in message
    lowered = call("private", "lower", model, "--data", data, "--out", str(tmp_path / "bundle"), "--json")
    assert lowered.code == 0
    facts = json.loads((tmp_path / "bundle" / "client.json").read_text())
    assert (facts["class_names"], facts["resize"]) == (["cat", "dog"], "crop")
    refused = call("private", "local", "--model", model, "--data", data, "--samples", "x.npy")
    assert (refused.code, "both give inputs; leave one out" in refused.err) == (2, True)


def test_an_answer_that_is_no_number_agrees_with_none():
    class Broken(torch.nn.Module):
        def forward(self, x):
            return torch.where(x.flatten(1)[:, :1] > 0, torch.nan, x.flatten(1))

    inputs = np.array([[[[1.0, 2.0]]], [[[-1.0, 2.0]]]], np.float32)
    beside = compare(Network(Broken(), (1, 1, 2)), inputs, np.array([[0.5, 0.0], [0.0, 0.5]]))
    assert (beside["inputs"], beside["same_class"]) == (2, 1)
