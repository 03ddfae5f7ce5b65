import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepreshape.data import Dataset, Split
from deepreshape.data.augment import draw_moves
from deepreshape.models import architecture, build
from deepreshape.training import CachedTeacher, Recipe, load_cache, teach, train

TINY = architecture("resnet20-m2-phi1.1.1", (1, 8, 8), 10)
RECIPE = Recipe(epochs=2, batch=32, lr=0.1, crop=1, flip=True, precision="float32", smoothing=0.0)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = Dataset.load("digits")
    few = [Split(split.images[:90], split.labels[:90]) for split in (whole.train, whole.validation, whole.test)]
    return Dataset("digits", *few, whole.class_names, whole.mean, whole.std)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])


def test_an_answer_is_the_teachers_for_that_window(digits: Dataset, tmp_path: Path):
    teacher = build(TINY, seed=0).eval()
    cache = teach(teacher, digits, tmp_path, views=3, crop=1, keep=10, teacher="t")
    numbers = torch.tensor([0, 7, 89, 120])
    offsets, answers = cache.draw(numbers, torch.Generator().manual_seed(3))
    images = digits.whole.images[numbers]
    moves = draw_moves((4, 8, 8), torch.Generator(), crop=1, flip=False, cutout=0, offsets=offsets)
    with torch.no_grad():
        expected = teacher(digits.normalize(moves.images(images))).log_softmax(1)
    assert torch.allclose(answers, expected, atol=5e-3)
    drawn = torch.stack([cache.draw(numbers, torch.Generator().manual_seed(seed))[0] for seed in range(20)])
    assert all(len(drawn[:, image].unique(dim=0)) > 1 for image in range(4))


def test_what_is_not_kept_shares_the_rest(digits: Dataset, tmp_path: Path):
    teacher = build(TINY, seed=0).eval()
    everything = teach(teacher, digits, tmp_path / "all", views=1, crop=1, keep=10, teacher="t")
    few = teach(teacher, digits, tmp_path / "few", views=1, crop=1, keep=3, teacher="t")
    numbers = torch.arange(180)
    exact = everything.draw(numbers, torch.Generator().manual_seed(0))[1].exp()
    short = few.draw(numbers, torch.Generator().manual_seed(0))[1].exp()
    assert torch.allclose(short.sum(1), torch.ones(180), atol=3e-3)
    top, classes = exact.topk(3, dim=1)
    assert torch.allclose(short.gather(1, classes), top, atol=2e-3)
    others = short.scatter(1, classes, torch.nan)
    assert torch.all((others.nanquantile(1.0, dim=1) - others.nanquantile(0.0, dim=1)) < 1e-3)


def test_with_one_view_and_no_mirrors_it_teaches_what_the_network_does(digits: Dataset, tmp_path: Path):
    teacher = build(TINY, seed=0).eval()
    cache = teach(teacher, digits, tmp_path, views=1, crop=0, keep=10, teacher="t")
    recipe = replace(RECIPE, crop=0, flip=False, epochs=1)
    stored, asked = build(TINY, seed=1), build(TINY, seed=1)
    train(stored, digits, recipe, seed=2, teacher=cache)
    train(asked, digits, recipe, seed=2, teacher=teacher)
    untaught = build(TINY, seed=1)
    train(untaught, digits, recipe, seed=2)
    assert torch.allclose(weights(stored), weights(asked), atol=5e-3)
    assert not torch.allclose(weights(untaught), weights(asked), atol=5e-2)


def test_a_cut_cache_goes_on(digits: Dataset, tmp_path: Path):
    teacher = build(TINY, seed=0).eval()
    whole = teach(teacher, digits, tmp_path / "whole", views=2, crop=1, teacher="t")

    class CutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done > total // 2:
            raise CutError

    with pytest.raises(CutError):
        teach(teacher, digits, tmp_path / "cut", views=2, crop=1, teacher="t", progress=cut)
    assert len(load_cache(tmp_path / "cut", digits).offsets) == 1
    seen: list[int] = []
    rest = teach(
        teacher, digits, tmp_path / "cut", views=2, crop=1, teacher="t", progress=lambda done, _: seen.append(done)
    )
    assert min(seen) > 180
    assert all(torch.equal(tensor, rest.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_what_does_not_fit_is_refused(digits: Dataset, tmp_path: Path):
    teacher = build(TINY, seed=0).eval()
    cache = teach(teacher, digits, tmp_path, views=1, crop=1, teacher="t")
    with pytest.raises(ValueError, match="teacher was t, now u"):
        teach(teacher, digits, tmp_path, views=1, crop=1, teacher="u")
    with pytest.raises(ValueError, match=r"crop=1, the recipe has crop=2"):
        train(build(TINY), digits, replace(RECIPE, crop=2), seed=0, teacher=cache)
    other = Dataset("digits", digits.validation, digits.train, *list(vars(digits).values())[3:])
    with pytest.raises(ValueError, match="not to those of 'digits'"):
        load_cache(tmp_path, other)
    with pytest.raises(TypeError, match="by the number of an image"):
        cache(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("damage", ["cut", "settings", "shape"])
def test_damaged_answers_are_refused(digits: Dataset, tmp_path: Path, damage: str):
    teach(build(TINY, seed=0).eval(), digits, tmp_path, views=1, crop=1, keep=4, teacher="t")
    view, settings = tmp_path / "view-000.safetensors", tmp_path / "run.json"
    if damage == "cut":
        view.write_bytes(view.read_bytes()[:-20])
    elif damage == "settings":
        settings.write_text("[1")
    else:
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"keep": 5}))
    with pytest.raises(ValueError, match=r"damaged|can be read"):
        load_cache(tmp_path, digits)


def test_a_cached_teacher_is_a_module_without_parameters(digits: Dataset, tmp_path: Path):
    cache = teach(build(TINY, seed=0).eval(), digits, tmp_path, views=1, crop=1, teacher="t")
    assert isinstance(cache, CachedTeacher)
    assert not list(cache.parameters())
