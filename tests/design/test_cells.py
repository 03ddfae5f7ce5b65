from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepreshape.data import Dataset, Split
from deepreshape.design.cells import CellSearch, _strongest, random_genotype, search_cells
from deepreshape.models import architecture, build
from deepreshape.models.genotype import OPERATORS, SPHYNX, Genotype
from deepreshape.training import Progress, Recipe, loop

SEARCH = CellSearch(channels=2, cells=3, batch=16, alpha_lr=0.1)
RECIPE = Recipe(epochs=2, lr=0.05, crop=1, flip=False, precision="float32")


@pytest.fixture(scope="module")
def few() -> Dataset:
    """Digits enough for two steps an epoch."""
    whole = Dataset.load("digits")
    splits = [Split(split.images[:n], split.labels[:n]) for split, n in ((whole.train, 64), (whole.validation, 32))]
    return Dataset("digits", *splits, whole.test, whole.class_names, whole.mean, whole.std)


def test_one_seed_gives_one_genotype_and_a_killed_search_goes_on_to_it(few: Dataset, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)

    class KilledError(Exception):
        pass

    def kill(at: Progress) -> None:
        if at.step == 3:
            raise KilledError

    whole = search_cells(few, SEARCH, RECIPE, seed=3)
    with pytest.raises(KilledError):
        search_cells(few, SEARCH, RECIPE, seed=3, folder=tmp_path, progress=kill)
    steps: list[int] = []
    rest = search_cells(few, SEARCH, RECIPE, seed=3, folder=tmp_path, progress=lambda at: steps.append(at.step))
    assert rest == whole
    assert steps == [4]
    assert search_cells(few, SEARCH, RECIPE, seed=4) != whole
    net = build(architecture(f"sphynx-c2-l3-r0.1-g{whole}", few.shape, 10), seed=0)
    assert net(torch.zeros(2, *few.shape)).shape == (2, 10)


def test_a_folder_of_another_search_and_labels_that_are_maps_are_refused(few: Dataset, tmp_path: Path):
    def stop(at: Progress) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        search_cells(few, SEARCH, RECIPE, seed=3, folder=tmp_path, progress=stop)
    for config, data, words in (
        (replace(SEARCH, alpha_lr=0.2), few, r"search\.alpha_lr was 0\.1, now 0\.2"),
        (SEARCH, replace(few, name="others"), "data was digits, now others"),
    ):
        with pytest.raises(ValueError, match=words):
            search_cells(data, config, RECIPE, seed=3, folder=tmp_path)
    maps = torch.zeros(8, 8, 8, dtype=torch.uint8)
    pixels = replace(few, train=Split(few.train.images[:8], maps), validation=Split(few.train.images[:8], maps))
    with pytest.raises(ValueError, match="digits has a class for each pixel, and networks of cells"):
        search_cells(pixels, SEARCH, RECIPE, folder=tmp_path / "x")


def test_alpha_learns_from_the_other_half(few: Dataset):
    one = search_cells(few, replace(SEARCH, alpha_lr=1e-9), RECIPE, seed=3)
    same = search_cells(few, replace(SEARCH, alpha_lr=1e-9), replace(RECIPE, epochs=1), seed=3)
    assert one == same
    assert search_cells(few, SEARCH, RECIPE, seed=3) != one


def test_the_second_order_is_the_first_where_the_weights_do_not_move(few: Dataset):
    still = replace(RECIPE, epochs=1, lr=1e-9)
    first = search_cells(few, SEARCH, still, seed=1)
    assert search_cells(few, replace(SEARCH, order=2), still, seed=1) == first
    moving = replace(RECIPE, epochs=1, lr=0.5)
    both = [search_cells(few, replace(SEARCH, order=order), moving, seed=1) for order in (1, 2)]
    assert both[0] != both[1]


def test_a_node_keeps_two_inputs_and_a_cell_few_identities():
    letters = list(OPERATORS)
    weights = torch.rand(14, len(letters) + 1, generator=torch.Generator().manual_seed(0)) / 100
    weights[:, letters.index("s")] = torch.linspace(0.5, 0.9, 14)
    weights[:, -1] = 1.0  # nothing weighs most, and is no operator of a genotype
    for skips in (0, 2, 8):
        edges = _strongest(weights, skips)
        Genotype(edges, edges)
        assert sum(edge.operator == "s" for edge in edges) == skips
        sources = [(edges[place].source, edges[place + 1].source) for place in range(0, 8, 2)]
        assert sources == [(0, 1), (1, 2), (2, 3), (3, 4)]
    kept = [place for place, edge in enumerate(_strongest(weights, 2)) if edge.operator == "s"]
    assert kept == [6, 7]


def test_random_cells_are_of_the_space():
    drawn = [random_genotype(seed) for seed in range(20)]
    assert len({str(genotype) for genotype in drawn}) == 20
    assert random_genotype(7) == drawn[7]
    for genotype in drawn:
        for edges in (genotype.normal, genotype.reduction):
            assert all(edges[place].source != edges[place + 1].source for place in range(0, 8, 2))
    assert str(Genotype.parse(SPHYNX)) == SPHYNX


def test_a_search_that_cannot_be_is_refused(few: Dataset):
    odd = replace(few, train=Split(few.train.images[:, :, :6, :], few.train.labels))
    with pytest.raises(ValueError, match="halves a map of 3x4, which has an odd side"):
        search_cells(odd, SEARCH, RECIPE)
    with pytest.raises(ValueError, match="order must be from 1 to 2, not 3"):
        CellSearch(order=3)
