"""private fhe: lower, keygen, server, client, local."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.command_line import answer, call, refusal

NET = """
import torch
from torch import nn
from deepreshape.nn import HerPN

def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), HerPN(2), nn.Flatten(), nn.Linear(128, 3))
    for _ in range(20):
        model(torch.randn(64, 1, 8, 8))
    return model.eval()

def deep():
    layers = [nn.Conv2d(1, 1, 3, padding=1)]
    for _ in range(13):
        layers += [HerPN(1), nn.Conv2d(1, 1, 3, padding=1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3)).eval()

def pooled():
    layers = nn.Conv2d(1, 2, 3, padding=1), HerPN(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    return nn.Sequential(*layers).eval()

def large():
    model = net()
    with torch.no_grad():
        model[3].weight.mul_(1000)
    return model

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.other = net(), nn.Linear(64, 3)

    def forward(self, x):
        return self.net(x), self.other(x.flatten(1))

def large_soft():
    return nn.Sequential(large(), nn.Softmax(1)).eval()
"""


SAMPLES = ("--samples", "x.npy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a network, inputs, what clients get, certificates and a secret key."""
    where = tmp_path_factory.mktemp("fhe")
    (where / "mine.py").write_text(NET)
    x = np.random.default_rng(0).normal(size=(300, 1, 8, 8)).astype(np.float32)
    np.save(where / "x.npy", x)
    for at in range(2):
        np.save(where / f"x{at}.npy", x[at])
    answer("private", "fhe", "lower", "mine.py:net", *SAMPLES, "--images", "2", "--out", "public", cwd=where)
    answer("private", "keygen", "--out", "certs", cwd=where)
    report = answer("private", "fhe", "keygen", "--circuit", "public/client.json", "--out", "me.key", cwd=where)
    assert report["upload_bytes"] > 1_000_000
    return where


def test_local_reports_what_the_issue_fixes(folder: Path):
    words = ("private", "fhe", "local", "--model", "mine.py:net", "--samples", "x.npy", "--images", "3")
    report = answer(*words, cwd=folder)
    assert report["agree"] is True
    assert report["max_error"] < 1e-3 * report["largest_output"]
    assert (report["levels"], report["degree"], report["squares"]) == (3, 8192, 1)
    assert report["rotations"] > 0
    assert 0 < report["expected_error"] < 1e-3
    assert set(report["bytes"]) == {"keys", "up", "down"}
    assert min(report["bytes"].values()) > 0
    assert set(report["seconds"]) == {"keys", "encrypt", "evaluate", "decrypt"}
    assert report["peak_rss_mib"] > 10
    assert report["evaluate_seconds"] > 0
    said = call(*words, cwd=folder)
    assert "the server's weights have no statistical protection" in " ".join(said.out.split())
    assert "must not hand on what it decrypted" in " ".join(said.out.split())
    assert "to upload once" in " ".join(said.err.split())
    assert "(a fit to measured ones, no bound)" in " ".join(said.err.split())


def test_cost_says_before_what_local_counts_after(folder: Path):
    net = ("mine.py:net", "--input", "1x8x8", "--protocol", "fhe")
    priced = answer("cost", *net, "--link", "wan,loopback", cwd=folder)
    count = str(priced["images_a_ciphertext"])
    ran = answer("private", "fhe", "local", "--model", "mine.py:net", *SAMPLES, "--images", count, cwd=folder)
    for name in ("levels", "degree", "squares", "rotations", "products", "images_a_ciphertext", "bytes"):
        assert priced[name] == ran[name]
    assert 0 < priced["seconds"]["kept"] < priced["seconds"]["first"]
    assert priced["links"]["wan"]["keys"] > priced["links"]["loopback"]["keys"] == 0
    said = call("cost", *net, cwd=folder)
    assert "no statistical protection" in " ".join(said.out.split())


def test_of_several_outputs_the_first_is_answered(folder: Path):
    two, one = (
        answer("private", "fhe", "local", "--model", f"mine.py:{name}", *SAMPLES, cwd=folder) for name in ("Two", "net")
    )
    assert two["agree"]
    assert two["largest_output"] == pytest.approx(one["largest_output"])
    assert two["products"] == one["products"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("resnet18-m4-herpn", "17 squares in a row .* too deep"),
        ("resnet20-phi1.1.1", "stem.act: a ReLU .* herpn --budget 0"),
        ("stch-2x-phi1.1-herpn --slots", "--slots is not for fhe"),
    ],
)
def test_what_has_no_price_under_ckks_is_one_line(words: str, line: str):
    assert re.search(line, refusal("cost", *words.split(), "--protocol", "fhe"))


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    """Of a server on a free port."""
    words = "private fhe server --model mine.py:net --circuit public/client.json --keys certs --store shelf --port 0"
    with subprocess.Popen(
        [sys.executable, "-m", "deepreshape", *words.split()],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            assert process.stderr
            first = ""
            while "serving" not in first:
                first = process.stderr.readline()
                assert first
            assert "no statistical protection" in first
            yield int(first.split(";")[0].rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def test_client_and_server(folder: Path, port: int):
    words = ("private", "fhe", "client", "--circuit", "public/client.json", "--secret", "me.key", "--keys", "certs")
    words = (*words, "--port", str(port))
    first = answer(*words, "x0.npy", "x1.npy", cwd=folder)
    assert first["bytes"]["keys"] > 1_000_000
    again = answer(*words, "x0.npy", "x1.npy", cwd=folder)
    assert again["bytes"]["keys"] == 0
    assert [row[0]["class"] for row in again["inputs"]] == [row[0]["class"] for row in first["inputs"]]
    assert all(type(one["percent"]) is int for row in again["inputs"] for one in row)  # no decryption in full
    said = call(*words, "x0.npy", cwd=folder)
    assert "uploaded once" in " ".join(said.err.split())
    assert answer(*words, "--forget", cwd=folder)["keys"] == "deleted"
    assert "has deleted your evaluation keys" in call(*words, "--forget", cwd=folder).out
    assert not list((folder / "shelf" / "evaluation-keys").glob("*/*"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "local --model mine.py:deep --samples x.npy",
            r"13 squares in a row .* too deep .* where 11 fit",
        ),
        ("local --model mine.py:pooled --samples x.npy", "average pools of max pools|max_pool"),
        ("local --model mine.py:large --samples x.npy", "outputs reach .* scale the last layer"),
        ("local --model mine.py:large_soft --samples x.npy", "outputs reach .* scale the last layer"),
        ("local --model zoo:digits", "a ReLU is not"),
        ("keygen --circuit public/client.json --out me.key", "me.key: exists and is not overwritten"),
        ("keygen --circuit mine.py --out new.key", "not what `private fhe lower` makes for clients"),
        (
            "client x0.npy --circuit public/client.json --secret mine.py --keys certs",
            "others can read this key|not a secret key",
        ),
        ("client x.npy --circuit public/client.json --secret me.key --keys certs", "does not fit"),
        ("server --model mine.py:large --circuit public/client.json --keys certs --store s", "made of another network"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, words: str, line: str):
    assert re.search(line, refusal("private", "fhe", *words.split(), cwd=folder))
    assert not (folder / "new.key").exists()
