from pathlib import Path

import pytest
from support.command_line import answer, call


def test_cost_prints_the_fixed_shape_and_the_bytes_that_travel(tmp_path: Path):
    quote = answer("cost", "resnet18-m2", "--protocol", "gc-full", "--link", "wan", "--plot", str(tmp_path / "a.svg"))
    assert {"seconds", "bytes", "rounds", "stored_bytes", "relu_share", "linear_share", "layers"} <= set(quote)
    assert quote["exact"]
    assert {"session", "store"} <= set(quote["layers"][0]["kinds"])
    assert set(quote["seconds"]) == set(quote["bytes"]) == {"offline", "online", "total"}
    sent = answer("private", "local", "--model", "resnet18-m2")
    assert {phase: quote["bytes"][phase] for phase in ("offline", "online")} == sent["bytes"]
    assert quote["rounds"] == sent["rounds"]
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_arrivals_are_answered():
    words = ("--protocol", "server-garbler", "--arrivals", "2", "--storage", "16gb/10tb")
    arrivals = answer("cost", "resnet18", "--classes", "10", *words)["arrivals"]
    assert arrivals["stored_batches"] == 1
    assert 2 < arrivals["sustainable_an_hour"] < arrivals["limit_an_hour"]


def test_cost_prices_a_users_network_and_refuses_what_does_not_run_privately(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(*more):\n    return nn.Sequential(nn.Conv2d(3, 4, 3), *more, nn.ReLU(), nn.MaxPool2d(2),\n"
        "        nn.Flatten(), nn.Linear(36, 10))\n"
        "def group():\n    return net(nn.GroupNorm(2, 4), nn.GELU())\n"
    )
    quotes = answer("cost", "mine.py:net", "--input", "3x8x8", "--link", "lan,wan", cwd=tmp_path)["quotes"]
    assert [quote["link"] for quote in quotes] == ["1000mbit/1000mbit/0.5ms", "100mbit/100mbit/50ms"]
    assert quotes[0]["relus"] == 144 + 108
    refused = call("cost", "mine.py:group", "--input", "3x8x8", cwd=tmp_path)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "mine.py:group does not run privately as it is, so it has no price: 1: group_norm cannot" in refused.err
    assert "take a batch norm (`deepreshape substitute --norm batch`); 2: gelu cannot be lowered" in refused.err
    words = "cost", "mine.py:group", "--input", "3x8x8", "--protocol", "server-garbler"
    assert "the price would miss aten.native_group_norm" in call(*words, cwd=tmp_path).err
    assert "say which callable makes the network, such as mine.py:net" in call("cost", "mine.py", cwd=tmp_path).err
    assert "is an ONNX file" in call("cost", "mine.onnx", cwd=tmp_path).err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--link", "dsl"), "unknown link 'dsl'; known are loopback"),
        (("--protocol", "spdz"), "unknown protocol 'spdz'; known are gc-full"),
        (("--objective", "bytes"), "--objective bytes is what auto chooses for; gc-full leaves nothing to choose"),
        (("--garbler", "me"), "--garbler is server or client, not 'me'"),
        (("--profile", "none.json"), "none.json is not a cost profile"),
        (("--plot", "bars.png"), "bars.png cannot be written: it is to be of the kind .svg"),
        (("--arrivals", "nan"), "--arrivals"),
        (("--storage", "16", "--arrivals", "5"), "--storage takes client/server in mb, gb or tb, such as 16gb/10tb"),
    ],
)
def test_wrong_terms_are_refused(words: tuple[str, ...], message: str, tmp_path: Path):
    done = call("cost", "resnet18-m2", *words, cwd=tmp_path)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize(
    ("protocol", "garbles"),
    [("gc-full", "the server garbles"), ("ot", ""), ("client-garbler+lphe+wsa", "the client garbles"), ("fhe", "")],
)
def test_who_garbles_is_said_where_somebody_does(protocol: str, garbles: str):
    network = "resnet20-m2-herpn" if protocol == "fhe" else "resnet20-m2"
    printed = " ".join(call("cost", network, "--protocol", protocol).out.split())
    assert "garbles" in printed or not garbles
    assert printed.count("garbles") == printed.count(garbles or "?")
