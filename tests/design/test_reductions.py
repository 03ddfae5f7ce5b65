"""Where a network of cells halves its maps: the search over pairs of places."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.command_line import answer, call

from deepreshape.counting import count
from deepreshape.data import Dataset, Split
from deepreshape.design.alpha_steps import AlphaConfig
from deepreshape.design.reductions import _Placed, reduction_pairs, search_reductions
from deepreshape.models import CellNet, architecture, build
from deepreshape.training import Progress, Recipe, loop

RECIPE = Recipe(epochs=2, lr=0.05, crop=1, flip=False, precision="float32")
CONFIG = AlphaConfig(alpha_lr=0.5, batch=16)


@pytest.fixture(scope="module")
def few() -> Dataset:
    whole = Dataset.load("digits")
    return replace(whole, train=Split(whole.train.images[:64], whole.train.labels[:64]))


@pytest.fixture
def network() -> CellNet:
    start = architecture("sphynx-c2-l4-r0.1", (1, 8, 8), 10)
    assert isinstance(start, CellNet)
    return start


def test_the_pairs_are_those_of_the_paper_and_all_have_the_same_relus():
    assert reduction_pairs(10) == [(i, j) for j in range(1, 7) for i in range(j)]
    assert len(reduction_pairs(10)) == 21
    relus = {
        count(build(architecture(f"sphynx-c4-l6-r{i}.{j}"), "meta"), (3, 32, 32)).total.relus
        for i, j in reduction_pairs(6)
    }
    assert relus == {6 * 4 * 32 * 32}


def test_one_seed_gives_one_answer_and_a_killed_search_goes_on_to_it(
    few: Dataset, network: CellNet, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)

    class KilledError(Exception):
        pass

    def kill(at: Progress) -> None:
        if at.step == 3:
            raise KilledError

    whole = search_reductions(network, few, CONFIG, RECIPE, seed=3)
    with pytest.raises(KilledError):
        search_reductions(network, few, CONFIG, RECIPE, seed=3, folder=tmp_path, progress=kill)
    steps: list[int] = []
    rest = search_reductions(
        network, few, CONFIG, RECIPE, seed=3, folder=tmp_path, progress=lambda at: steps.append(at.step)
    )
    assert (rest, steps) == (whole, [4])
    assert whole.relus == network.relus
    assert len({search_reductions(network, few, CONFIG, replace(RECIPE, epochs=1), seed=s).name for s in range(6)}) > 1


def layers_of(pair: int) -> Iterator[torch.nn.Module]:
    for number in range(3):
        layer = torch.nn.Linear(1, 2, bias=False)
        layer.weight.data = torch.tensor([[1.0], [-1.0]]) * (1 if number == pair else -1)
        yield layer


@pytest.mark.parametrize("right", [0, 1, 2])
def test_places_move_to_the_network_that_is_right(right: int):
    searched = _Placed(list(layers_of(right)))
    x, labels = torch.ones(4, 1), torch.zeros(4, dtype=torch.long)
    for step in range(200):
        searched.begin(step, 200, seed=1)
        places = searched.places.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(searched(x, (places,)), labels)
        (gradient,) = torch.autograd.grad(loss, places)
        searched.places.sub_(gradient)
    assert int(searched.places.argmax()) == right


def test_one_network_answers_as_it_does_alone(network: CellNet):
    searched = _Placed([build(network, seed=seed) for seed in range(3)]).eval()
    x = torch.rand(2, 1, 8, 8)
    for step in range(4):
        searched.begin(step, 4, seed=0)
        assert any(torch.equal(searched(x), each(x)) for each in searched.networks)
    assert searched.temperature == pytest.approx(0.1)


def test_the_command_names_the_network_to_train(tmp_path: Path):
    words = "cells reductions sphynx-c2-l4-r0.1 --epochs 1 --threads 1".split()
    values = answer(*words, "--out", str(tmp_path / "r"))
    i, j = values["reductions"]
    assert values["network"] == f"sphynx-c2-l4-r{i}.{j}"
    assert (tmp_path / "r" / "reductions.json").is_file()
    done = call("cells", "reductions", "resnet18", "--out", str(tmp_path / "x"))
    assert (done.code, "resnet18 is not a network of cells" in done.err) == (2, True)


def test_what_cannot_be_searched_is_refused(few: Dataset, network: CellNet):
    with pytest.raises(ValueError, match="order=2: reductions are searched with first order"):
        search_reductions(network, few, AlphaConfig(order=2), RECIPE)
