"""Images in folders: sizes, splits that stay, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deepreshape.data import Dataset, images
from deepreshape.models import architecture, build
from deepreshape.training import Recipe, accuracy, train

image = pytest.importorskip("PIL.Image")


def picture(path: Path, size: tuple[int, int] = (12, 10), mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image.fromarray(pixels).save(path)


def pictures(root: Path, each: int = 20, **settings) -> Path:
    for at, name in enumerate(("cat", "dog")):
        for number in range(each):
            picture(root / name / f"{number}.png", seed=100 * at + number, **settings)
    return root


def test_classes_are_folders_and_every_image_is_in_one_split(tmp_path: Path):
    data = Dataset.load(f"folder:{pictures(tmp_path)}")
    assert data.class_names == ("cat", "dog")
    assert data.shape == (3, 10, 12)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [30, 4, 6]
    splits = json.loads((tmp_path / "splits.json").read_text())
    assert sorted(file for split in splits.values() for file in split) == sorted(
        f"{name}/{at}.png" for name in ("cat", "dog") for at in range(20)
    )
    at = splits["test"].index(next(file for file in splits["test"] if file.startswith("dog")))
    with image.open(tmp_path / splits["test"][at]) as raw:
        assert torch.equal(data.test.images[at], torch.from_numpy(np.array(raw)).movedim(-1, 0))
    assert int(data.test.labels[at]) == 1


def test_splits_are_the_same_in_another_place_and_are_kept(tmp_path: Path):
    first, second = (Dataset.from_folder(pictures(tmp_path / name)) for name in ("one", "two"))
    assert torch.equal(first.test.images[:], second.test.images[:])
    other = json.loads((tmp_path / "one" / "splits.json").read_text())
    other["train"], other["test"] = other["test"], other["train"]
    (tmp_path / "one" / "splits.json").write_text(json.dumps(other))
    assert len(Dataset.from_folder(tmp_path / "one").test) == 30


def test_a_folder_that_changed_under_its_splits_is_refused(tmp_path: Path):
    Dataset.from_folder(pictures(tmp_path))
    picture(tmp_path / "cat" / "new.png")
    with pytest.raises(ValueError, match=r"splits.json is for other images: 1 are new and 0 are gone, such as cat/new"):
        Dataset.from_folder(tmp_path)


def test_splits_that_are_there_are_taken(tmp_path: Path):
    pictures(tmp_path / "train")
    pictures(tmp_path / "val", each=3)
    papers = Dataset.from_folder(tmp_path)  # train and val only: val is what results are told on
    assert [len(split) for split in (papers.train, papers.validation, papers.test)] == [36, 4, 6]
    (tmp_path / "splits.json").unlink()
    pictures(tmp_path / "test", each=2)
    data = Dataset.from_folder(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [40, 6, 4]


@pytest.mark.parametrize("words", [("Train", "Val", "TEST"), ("training", "validation", "testing"),
                                   ("Training", "Valid", "test")])  # fmt: skip
def test_splits_have_several_words(words: tuple[str, str, str], tmp_path: Path):
    for word, each in zip(words, (4, 3, 2), strict=True):
        pictures(tmp_path / word, each=each)
    data = Dataset.from_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [8, 6, 4]
    assert not (tmp_path / "splits.json").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train/cat", "train/dog", "Training/cat"), "has Training and train, which are both words for train; leave"),
        (("train/cat", "train/dog", "val/cat", "valid/cat"), "has val and valid, which are both words for validation"),
        (("train/steam", "train/diesel", "bus"), "bus has images beside the split train; move it away or, if train is"),
        (("Train", "bus"), "bus has images beside the split Train; move it away or, if Train is a class, give that an"),
        (("learn/cat", "learn/dog", "test/cat"), "test has folders of images, as a split has, and there is no .*train"),
        (("train", "test"), "holds images of 0 classes"),
    ],
)
def test_folders_that_can_be_read_in_two_ways_are_refused(files: tuple[str, ...], message: str, tmp_path: Path):
    for name in files:
        for number in range(4):
            picture(tmp_path / name / f"{number}.png")
    with pytest.raises(ValueError, match=message) as caught:
        Dataset.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_may_have_the_word_of_a_split(tmp_path: Path):
    for name in ("valid", "invalid"):
        pictures(tmp_path / name)
        for file in [*(tmp_path / name).rglob("*.png")]:
            file.rename(tmp_path / name / f"{file.parent.name}{file.name}")
        for kind in ("cat", "dog"):
            (tmp_path / name / kind).rmdir()
    assert Dataset.from_folder(tmp_path).class_names == ("invalid", "valid")


def test_folders_behind_links_are_read_and_none_twice(tmp_path: Path):
    pictures(tmp_path / "elsewhere")
    root = tmp_path / "root"
    pictures(root, each=5)
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "cow").symlink_to(tmp_path / "elsewhere" / "dog")
    data = Dataset.from_folder(root)
    assert data.class_names == ("cat", "cow", "dog")
    assert sum(map(len, (data.train, data.validation, data.test))) == 5 + 5 + 20 + 20
    for name, target in (("cat/again", root / "dog"), ("dog/again", root), ("dog/up", tmp_path)):
        (root / name).symlink_to(target)
        with pytest.raises(ValueError, match="are the same folder by a link, and their images would count twice; rem"):
            Dataset.from_folder(root)
        (root / name).unlink()


def test_images_of_any_size_and_mode_become_squares(tmp_path: Path):
    pictures(tmp_path)
    picture(tmp_path / "cat" / "0.png", size=(40, 9))
    picture(tmp_path / "dog" / "0.png", size=(9, 31), mode="L")
    data = Dataset.load(f"folder:{tmp_path}:8")
    assert data.shape == (3, 8, 8)
    assert data.whole.images[:].shape == (34, 3, 8, 8)
    with pytest.raises(ValueError, match=r"have several sizes, such as .* as folder:.*:64, or give"):
        Dataset.load(f"folder:{tmp_path}")
    pictures(tmp_path / "other")
    picture(tmp_path / "other" / "cat" / "9.png", size=(40, 9))
    with pytest.raises(ValueError, match=r"cat/9.png is torch.uint8 of shape \(3, 9, 40\), the first image is"):
        Dataset.load(f"folder:{tmp_path / 'other'}").whole.images[:]


def test_grey_images_have_one_channel(tmp_path: Path):
    assert Dataset.from_folder(pictures(tmp_path, mode="L")).shape == (1, 10, 12)


@pytest.mark.parametrize("file", ["train/dog/17.png", "val/cat/2.png"])
def test_images_are_grey_only_if_all_are(file: str, tmp_path: Path):
    pictures(tmp_path / "train", mode="L")
    pictures(tmp_path / "val", each=3, mode="L")
    picture(tmp_path / file)
    assert Dataset.from_folder(tmp_path).shape == (3, 10, 12)
    (tmp_path / file).write_bytes(b"not an image")
    with pytest.raises(ValueError, match=f"{file} is not an image that can be read"):
        Dataset.from_folder(tmp_path)


def test_a_transform_decides_what_the_network_sees(tmp_path: Path):
    pictures(tmp_path)
    data = Dataset.from_folder(
        tmp_path, transform=lambda picture: torch.full((3, 4, 4), picture.size[0] / 10), mean=(0.5,) * 3, std=(0.2,) * 3
    )
    assert data.mean == (0.5,) * 3
    assert torch.equal(data.normalize(data.test.images[:2]), torch.full((2, 3, 4, 4), 1.2))
    with pytest.raises(ValueError, match="side=8 and a transform"):
        Dataset.from_folder(tmp_path, side=8, transform=lambda picture: picture)


def test_a_collection_that_does_not_fit_in_memory_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = Dataset.from_folder(pictures(tmp_path), side=8)
    monkeypatch.setattr(images, "KEPT_BYTES", 0)
    streamed = Dataset.from_folder(tmp_path, side=8)
    assert streamed.train.images.images._kept is None  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(streamed.train.images[5:25], kept.train.images[5:25])
    recipe = Recipe(epochs=2, batch=16, lr=0.1, crop=1, precision="float32", holdout=False)
    models = [build(architecture("resnet20-m2-phi1.1.1", (3, 8, 8), 2), seed=0) for _ in range(2)]
    for model, data in zip(models, (kept, streamed), strict=True):
        train(model, data, recipe, seed=0)
    assert accuracy(models[0], kept, kept.test) == accuracy(models[1], streamed, streamed.test)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds images of 0 classes"),
        ({"cat/1.png": b""}, "holds images of 1 classes; it is to hold a folder of images for each of two or more"),
        ({"cat/1.png": b"", "dog/1.png": b""}, "has 1 images of cat; splits need at least 3"),
    ],
)
def test_folders_that_hold_no_data_set_are_one_line(files: dict[str, bytes], message: str, tmp_path: Path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Dataset.from_folder(tmp_path)


def test_a_class_without_an_image_and_images_without_pixels_are_refused(tmp_path: Path):
    pictures(tmp_path)
    with pytest.raises(ValueError, match="has images of no pixels"):
        Dataset.load(f"folder:{tmp_path}:0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no image; a class needs some"):
        Dataset.load(f"folder:{tmp_path}:8")


def test_a_broken_image_is_named(tmp_path: Path):
    pictures(tmp_path)
    data = Dataset.from_folder(tmp_path, side=8)
    (tmp_path / "dog" / "3.png").write_bytes(b"not an image")
    fresh = replace(Dataset.from_folder(tmp_path, side=8, mean=(0.5,) * 3, std=(0.2,) * 3), name=data.name)
    with pytest.raises(ValueError, match=r"dog/3.png is not an image that can be read"):
        fresh.whole.images[:], fresh.test.images[:]
    with pytest.raises(ValueError, match="there is no folder"):
        Dataset.load("folder:/nowhere/at/all")


def test_hidden_folders_hold_no_images(tmp_path: Path):
    pictures(tmp_path)
    picture(tmp_path / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    picture(tmp_path / ".thumbnails" / "0.png")
    data = Dataset.load(f"folder:{tmp_path}")
    assert data.class_names == ("cat", "dog")
    assert sum(map(len, (data.train, data.validation, data.test))) == 40


@pytest.mark.parametrize(("pixels", "mode"), [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_pixels_of_more_than_8_bits_are_refused_and_not_clipped(pixels: type, mode: str, tmp_path: Path):
    pictures(tmp_path, size=(12, 10), mode="L")
    for file in [*tmp_path.rglob("*.png")]:
        image.fromarray(np.full((10, 12), 5000, pixels)).save(file.with_suffix(".tif"))
        file.unlink()
    with pytest.raises(ValueError, match=rf"more than 8 bits \(mode {mode}\); scale them to 8 bits, or give a tr"):
        Dataset.load(f"folder:{tmp_path}")
