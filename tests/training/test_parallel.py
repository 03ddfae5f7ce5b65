"""Two processes that train together do what one does with the whole batch, to rounding."""

import os
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import distributed, multiprocessing, nn

from deepreshape.data import Dataset, Split
from deepreshape.models import architecture, build
from deepreshape.removal import METHODS, linearize, masks_of
from deepreshape.training import Progress, Recipe, parallel

RECIPE = Recipe(epochs=1, batch=51, lr=0.02, crop=1, flip=False, precision="float32")


def data() -> Dataset:
    whole = Dataset.load("digits")
    few = Split(whole.train.images[:200], whole.train.labels[:200])
    return replace(whole, train=few, validation=Split(whole.validation.images[:20], whole.validation.labels[:20]))


NAMES = sorted(set(METHODS) - {"herpn"})
"""All but the one that leaves no ReLU."""

SETTINGS = {"senet": {"rounds": 2}}
"""A round longer than a step, to be killed in."""


class KilledError(Exception):
    """In place of a kill."""


def kill(phase: str, at: Progress) -> None:
    if (phase, at.step) == ("search", 1):
        raise KilledError


def reduced(name: str, folder: Path | None = None, progress: Any = None) -> nn.Module:
    given = data()
    model = build(architecture("resnet20-m2-phi1.1.1", given.shape, 10), seed=0)
    return linearize(
        model, METHODS[name](200, **SETTINGS.get(name, {})), given, recipe=RECIPE, folder=folder, progress=progress
    )[0]


def work(rank: int, port: int, folder: str) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    for name in NAMES:
        model = reduced(name, Path(folder) / name)
        torch.save(model.state_dict(), f"{folder}/{name}.{rank}")
        if name == "coarse":  # has no search to be killed in
            continue
        with patch("deepreshape.training.loop.CHECKPOINT_SECONDS", 0.0), suppress(KilledError):
            reduced(name, Path(folder) / f"{name}-killed", kill)
        distributed.barrier()
        torch.save(reduced(name, Path(folder) / f"{name}-killed").state_dict(), f"{folder}/{name}-killed.{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(work, (port, str(folder)), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_do_what_one_does(name: str, together: Path):
    one, other = (torch.load(together / f"{name}.{rank}", weights_only=True) for rank in (0, 1))
    alone = reduced(name)
    for key, tensor in alone.state_dict().items():
        assert torch.equal(one[key], other[key]), key
        if tensor.dtype == torch.bool:
            # a rounding may tip a choice between two ReLUs of nearly the same worth
            assert int((one[key] ^ tensor).sum()) <= 2, key
        else:
            assert torch.allclose(one[key].float(), tensor.float(), atol=2e-3), key
    kept = sum(int(mask.sum()) for key, mask in one.items() if key.endswith(".mask"))
    assert kept == sum(int(mask.sum()) for mask in masks_of(alone, (1, 8, 8)).values()) == 200


@pytest.mark.parametrize("name", [name for name in NAMES if name != "coarse"])
def test_two_processes_that_were_killed_go_on_to_the_same_result(name: str, together: Path):
    assert (together / f"{name}-killed" / "search" / "checkpoint.safetensors").is_file()
    for rank in (0, 1):
        whole, again = (torch.load(together / f"{part}.{rank}", weights_only=True) for part in (name, f"{name}-killed"))
        assert all(torch.equal(tensor, again[key]) for key, tensor in whole.items())


def test_only_the_first_process_writes(together: Path):
    rows = (together / "snl" / "search" / "metrics.jsonl").read_text()
    assert rows.count("\n") == 1


def test_alone_nothing_changes():
    model = build(architecture("resnet20-m2-phi1.1.1", (1, 8, 8), 10), seed=0)
    before = dict(model.named_modules())
    with parallel.shared_norms(model), parallel.process_group():
        assert dict(model.named_modules()) == before
    assert (parallel.world(), parallel.rank()) == (1, 0)
    assert torch.equal(parallel.part(torch.arange(5)), torch.arange(5))
    assert torch.equal(parallel.add_up(torch.ones(3)), torch.ones(3))


def test_the_shared_norm_alone_is_the_usual_one():
    usual, x = nn.BatchNorm2d(3), torch.randn(6, 3, 4, 4)
    shared = parallel._SharedNorm(nn.BatchNorm2d(3))
    assert shared.state_dict().keys() == usual.state_dict().keys()
    assert torch.allclose(usual(x), shared(x), atol=1e-5)
    assert torch.allclose(usual.running_var, shared.running_var)
    assert torch.allclose(usual.eval()(x), shared.eval()(x), atol=1e-5)


def test_a_batch_smaller_than_the_processes_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "world", lambda: 8)
    with pytest.raises(ValueError, match="a batch of 5 cannot be divided among 8 processes"):
        parallel.part(torch.arange(5))
