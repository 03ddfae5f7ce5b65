"""A user's own images with maps of classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepreshape.data import Dataset
from deepreshape.data.augment import VOID

COUNT = 12


def write(root: Path, size: tuple[int, int] = (24, 16), classes: int = 3, count: int = COUNT) -> None:
    """Images whose grey level says their number, and maps of their number modulo the classes, void at the corner."""
    for number in range(count):
        labels = np.full(size[::-1], number % classes, np.uint8)
        labels[0, 0] = VOID
        for path, picture in (
            (root / "images" / f"{number}.png", Image.new("L", size, 10 * number)),
            (root / "maps" / f"{number}.png", Image.fromarray(labels)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)


def test_images_and_maps_of_one_name_belong_together(tmp_path: Path):
    write(tmp_path)
    data = Dataset.load(f"folder:{tmp_path}")
    assert data.maps
    assert (data.shape, data.class_names) == ((1, 16, 24), ("0", "1", "2"))
    for split in (data.train, data.validation, data.test):
        for image, labels in zip(split.images[:], split.labels, strict=True):
            assert int(labels[0, 0]) == VOID
            assert int(labels[1, 1]) == int(image[0, 0, 0]) // 10 % 3
    again = Dataset.load(f"folder:{tmp_path}")
    assert torch.equal(again.test.labels, data.test.labels)
    assert sum(map(len, json.loads((tmp_path / "splits.json").read_text()).values())) == COUNT


def test_splits_of_ones_own_and_names_with_colours(tmp_path: Path):
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        write(tmp_path / part, count=count)
    (tmp_path / "classes.txt").write_text("road #804080\nopen sky #0000ff\n\ntree #00FF00\n")
    data = Dataset.load(f"folder:{tmp_path}")
    assert [len(data.train), len(data.validation), len(data.test)] == [4, 2, 3]
    assert data.class_names == ("road", "open sky", "tree")
    assert data.colours == ((128, 64, 128), (0, 0, 255), (0, 255, 0))
    assert data.facts["upsample"] == (16, 24)


def test_images_are_grey_only_if_all_are(tmp_path: Path):
    write(tmp_path)
    Image.new("RGB", (24, 16), (1, 2, 3)).save(tmp_path / "images" / "7.png")
    assert Dataset.load(f"folder:{tmp_path}").shape == (3, 16, 24)


def test_classes_that_occur_nowhere_are_named_by_a_file(tmp_path: Path):
    write(tmp_path)
    labels = np.zeros((16, 24), np.uint8)
    labels[3, 3] = 9
    for number in range(COUNT):
        Image.fromarray(labels).save(tmp_path / "maps" / f"{number}.png")
    with pytest.raises(ValueError, match=r"have class 9 and nowhere class 1; classes\.txt says how many"):
        Dataset.load(f"folder:{tmp_path}")
    (tmp_path / "classes.txt").write_text("\n".join("abcdefghij"))
    assert len(Dataset.load(f"folder:{tmp_path}").class_names) == 10


def test_a_side_crops_images_and_maps_alike(tmp_path: Path):
    write(tmp_path, size=(40, 20))
    labels = np.zeros((20, 40), np.uint8)
    labels[:, 20:] = 2
    Image.fromarray(labels).save(tmp_path / "maps" / "3.png")
    Image.fromarray((labels * 100).astype(np.uint8)).save(tmp_path / "images" / "3.png")
    data = Dataset.load(f"folder:{tmp_path}:10")
    assert data.shape == (1, 10, 10)
    splits = data.train, data.validation, data.test
    pairs = [pair for split in splits for pair in zip(split.images[:], split.labels, strict=True)]
    image, cut = next(pair for pair in pairs if set(pair[1].unique().tolist()) == {0, 2})
    assert torch.equal(image[0] > 100, cut == 2)
    assert cut[:, 5:].eq(2).all()


def smaller(root: Path) -> None:
    for what in ("images", "maps"):
        Image.new("L", (8, 8)).save(root / what / "3.png")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: Image.new("L", (8, 8)).save(root / "maps" / "3.png"), "3.png is a map of 8x8 pixels, and its"),
        (lambda root: (root / "maps" / "3.png").unlink(), "3.png has no map: there is no .*maps/3.png"),
        (lambda root: (root / "images" / "3.png").unlink(), "maps/3.png is the map of no image"),
        (lambda root: Image.new("RGB", (24, 16)).save(root / "maps" / "3.png"), "of mode RGB; a map has one channel"),
        (lambda root: (root / "maps" / "3.png").write_bytes(b"x"), "maps/3.png is not an image that can be read"),
        (lambda root: (root / "classes.txt").write_text("a\nb\n"), "has class 2, and there are 2 classes, 0 to 1"),
        (lambda root: (root / "classes.txt").write_text("a\nb #000000\nc\n"), "3 lines, 3 names and 1 colours"),
        (lambda root: (root / "classes.txt").write_text("a\na\nc\n"), "classes.txt names a class twice"),
        (smaller, "several sizes, such as 24x16 and 8x8"),
    ],
)
def test_what_does_not_belong_together_is_one_line(tmp_path: Path, spoil, said: str):
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        Dataset.load(f"folder:{tmp_path}")
    assert "\n" not in str(error.value)


def test_a_class_that_training_maps_do_not_have_and_a_turned_image(tmp_path: Path):
    for part, classes in (("train", 2), ("val", 2), ("test", 3)):
        write(tmp_path / part, classes=classes, count=4)
    with pytest.raises(ValueError, match="a map of test has class 2, and those of train have 2 classes, 0 to 1"):
        Dataset.load(f"folder:{tmp_path}")
    turned = Image.Exif()
    turned[0x0112] = 3
    Image.new("L", (24, 16)).save(tmp_path / "train" / "images" / "0.png", exif=turned)
    with pytest.raises(ValueError, match="turned by its EXIF data"):
        Dataset.load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="transform of images alone"):
        Dataset.from_folder(tmp_path, transform=lambda image: image)
