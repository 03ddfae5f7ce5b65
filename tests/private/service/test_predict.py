"""A private answer in three ways, which agree."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import deepreshape as dr
from deepreshape.private.service.bundle import Bundle, Facts
from deepreshape.private.service.predict import Prediction, read_address
from deepreshape.private.transport.certificates import create_authority, issue

DATA = dr.Dataset.load("digits")
SERVE = """
import sys
from deepreshape import Server
server = Server(sys.argv[1], keys=sys.argv[2], address="127.0.0.1:0")
print(server.address, flush=True)
server.run(int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)).eval()


@pytest.fixture(scope="module")
def bundle(network: nn.Module) -> Bundle:
    return Bundle.of(dr.lower(network, DATA))


def test_both_parties_on_this_machine(bundle: Bundle, network: nn.Module):
    image = DATA.test.images[1]
    answer = dr.run_private(bundle, image)
    assert answer.agree
    assert set(answer.seconds) == set(answer.bytes) == {"offline", "online"}
    logits = network(DATA.normalize(image[None]))[0].detach()
    assert np.allclose(answer.logits, logits.numpy(), atol=0.05)
    assert answer.name == DATA.class_names[int(answer.logits.argmax())]
    assert answer.probability == pytest.approx(float(logits.softmax(0).max()), abs=0.05)
    assert "equals the plain program bit for bit" in str(answer)


def test_a_server_and_two_clients(bundle: Bundle, tmp_path: Path):
    bundle.write(tmp_path / "bundle")
    keys = tmp_path / "keys"
    create_authority(keys)
    for role, name in (("server", "server"), ("client", "alice"), ("client", "bob")):
        issue(keys, role, name)  # pyright: ignore[reportArgumentType]
    command = [sys.executable, "-c", SERVE, str(tmp_path / "bundle"), str(keys), "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            address = server.stdout.readline().strip()
            alice, bob = (
                dr.Client(tmp_path / "bundle", keys=keys, address=address, name=name) for name in ("alice", "bob")
            )
            assert len(alice.prepare(1)) == 1
            answers = [client.predict(DATA.test.images[2]) for client in (alice, bob)]
            assert server.wait(60) == 0
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
    x = bundle.facts.input_of(DATA.test.images[2], (1, 8, 8))[0]
    assert x.shape == (1, 8, 8)
    assert answers[0].name == answers[1].name
    assert np.allclose(answers[0].logits, answers[1].logits, atol=0.01)
    assert set(answers[0].seconds) == {"online"}


def test_a_prediction_ranks_five_classes():
    answer = Prediction.of(np.arange(7.0), Facts(), seconds={}, bytes={}, agree=None)
    assert [name for name, _ in answer.ranked] == ["6", "5", "4", "3", "2"]
    assert answer.name == "6"


def test_one_logit_is_a_number_and_no_class_of_100_percent():
    answer = Prediction.of(np.array([-3.25]), Facts(), seconds={}, bytes={}, agree=True)
    assert (answer.name, answer.probability, answer.ranked) == ("0", None, ())
    assert str(answer) == "-3.25; ; equals the plain program bit for bit"


@pytest.mark.parametrize("text", ["7411", "host", "host:port", ":7411", "host:70000"])
def test_an_address_is_host_and_port(text: str):
    with pytest.raises(ValueError, match=f"an address is host:port, such as 127.0.0.1:7411, not '{text}'"):
        read_address(text)
