"""The tutorial of the documentation, step by step, on a few small images."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import deepreshape as dr
from deepreshape.cli import main
from deepreshape.private.service.bundle import Bundle
from deepreshape.removal import Taylor

image = pytest.importorskip("PIL.Image")

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()
SERVE = """
import sys
import deepreshape as dr
server = dr.Server("bundle", keys="keys", address="127.0.0.1:0")
print(server.address, flush=True)
server.run(4)
"""


def photos(root: Path) -> None:
    """Dark and bright noise of several sizes."""
    generator = np.random.default_rng(0)
    for at, name in enumerate(("cat", "dog")):
        for number in range(24):
            (root / name).mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(128 * at, 128 * at + 128, (20 + number, 30, 3), dtype=np.uint8)
            image.fromarray(pixels).save(root / name / f"{number}.png")


def own_code() -> dict[str, object]:
    """What the page's ``mine.py`` defines."""
    (source,) = re.findall(r"```python\n# mine.py\n(.*?)```", PAGE, flags=re.S)
    names: dict[str, object] = {}
    exec(source, names)  # noqa: S102 - our own page
    return names


def test_from_a_folder_of_photos_to_two_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    data = dr.Dataset.from_folder("photos", side=16)
    torch.manual_seed(0)
    network = own_code()["net"](width=4, blocks=1)  # pyright: ignore[reportCallIssue]
    recipe = dr.Recipe(epochs=4, lr=0.1, batch=8, crop=1, precision="float32")
    dr.train(network, data, recipe, seed=0)

    budget = dr.count(network, data.shape).total.relus // 4
    small, record = dr.linearize(network, Taylor(budget=budget), data, recipe=recipe)
    assert record.relus == budget
    assert "MB" in str(dr.price(small, data.shape, link="wan"))

    program = dr.lower(small, data)
    Bundle.of(program).write("bundle")
    for clients in ((), ("--client", "alice", "--client", "bob")):
        monkeypatch.setattr(sys, "argv", ["deepreshape", "private", "keygen", "--out", "keys", *clients])
        with pytest.raises(SystemExit, match="0"):
            main()
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        where = {"keys": "keys", "address": server.stdout.readline().strip()}
        alice, bob = (dr.Client("bundle", **where, name=name) for name in ("alice", "bob"))
        assert len(alice.prepare(1)) == 1
        answers = [client.predict("photos/dog/1.png") for client in (alice, bob)]
        assert server.wait(60) == 0
    plain = dr.run_private(program, "photos/dog/1.png")
    assert plain.agree
    for answer in answers:
        assert answer.done == "scaled and cropped from 30x21 to 16x16"
        assert answer.name == plain.name
        # two runs round apart, as their shares do
        assert np.allclose(answer.logits, plain.logits, atol=0.01, rtol=0.01)


def test_every_name_on_the_page_is_there():
    names = re.findall(r"\bdr\.([A-Za-z_]+)", PAGE)
    assert names
    for name in names:
        assert getattr(dr, name)
