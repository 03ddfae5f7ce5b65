"""Torch data sets of several makes."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from deepreshape.data import Dataset

PIXELS = torch.randint(0, 256, (40, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4


class Arrays(TorchDataset):
    """As torchvision's: labels beside, images as arrays (H, W, C), read one at a time."""

    classes = ("a", "b", "c", "d")
    targets = LABELS.tolist()

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 40

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        self.read.append(place)
        return PIXELS[place].movedim(0, -1).numpy(), int(LABELS[place])


class Stream(IterableDataset):
    def __iter__(self):
        return ({"img": image, "label": label} for image, label in zip(PIXELS, LABELS, strict=True))


def everything(data: Dataset) -> list[tuple[bytes, int]]:
    splits = (data.train, data.validation, data.test)
    return sorted((image.numpy().tobytes(), int(label)) for split in splits for image, label in
                  zip(split.images[:], split.labels, strict=True))  # fmt: skip


@pytest.mark.parametrize(
    "source", [Arrays(), TensorDataset(PIXELS, LABELS), Stream(), DataLoader(Arrays(), batch_size=7, shuffle=True)]
)
def test_every_item_is_in_one_split(source: object):
    data = Dataset.from_loader(source)  # pyright: ignore[reportArgumentType]
    assert everything(data) == sorted(
        (image.numpy().tobytes(), int(label)) for image, label in zip(PIXELS, LABELS, strict=True)
    )
    assert [len(split) for split in (data.train, data.validation, data.test)] == [30, 4, 6]
    again = Dataset.from_loader(source)  # pyright: ignore[reportArgumentType]
    assert torch.equal(data.test.images[:], again.test.images[:])


def test_nothing_is_read_before_it_is_asked_for():
    source = Arrays()
    data = Dataset.from_loader(source, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert len(source.read) == 1
    data.test.images[:2]
    data.test.images[:3]
    assert len(source.read) == 4
    assert data.class_names == ("a", "b", "c", "d")


def test_splits_that_are_given_are_taken():
    parts = [Subset(Arrays(), list(range(*bounds))) for bounds in ((0, 20), (20, 30), (30, 40))]
    data = Dataset.from_loader(parts[0], validation=parts[1], test=parts[2])
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 10, 10]
    assert torch.equal(data.validation.labels, LABELS[20:30])
    assert torch.equal(data.test.images[4], PIXELS[34])


def test_floats_are_as_the_network_sees_them():
    data = Dataset.from_loader(TensorDataset(PIXELS.float() / 255, LABELS))
    assert torch.equal(data.normalize(data.train.images[:3]), data.train.images[:3])
    assert data.mean == data.std == ()


def test_what_normalises_floats_is_told_to_nobody_unless_it_is_given():
    """A client that divided its image by 255 alone would send something else than the network has seen."""
    floats = TensorDataset(PIXELS.float() / 255 - 0.5, LABELS)
    assert Dataset.from_loader(floats).facts == {"class_names": ("0", "1", "2", "3")}
    given = Dataset.from_loader(floats, mean=(0.5,) * 3, std=(1.0,) * 3).facts
    assert (given["mean"], given["std"], given["resize"]) == ((0.5,) * 3, (1.0,) * 3, "crop")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the train data set is empty"),
        ([1, 2], r"an item is \(image, label\), or a mapping with image and label; this one is a int"),
        ([{"pixels": 1}], "this one is a mapping of pixels"),
        ([(torch.zeros(5), 0)] * 3, r"an image is a PIL image.* shape \(5,\)"),
        (
            [(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 5), 1)] * 9,
            "item 1 of train is .* all alike",
        ),
        ([(torch.zeros(1, 4, 4), 0)], "1 images are too few for train, test, validation"),
    ],
)
def test_what_is_no_data_set_is_one_line(source: list, message: str):
    with pytest.raises(ValueError, match=message):
        everything(Dataset.from_loader(source))  # pyright: ignore[reportArgumentType]


def test_labels_beyond_the_class_names_are_refused():
    with pytest.raises(ValueError, match="a label is 3 and there are 2 class names"):
        Dataset.from_loader(TensorDataset(PIXELS, LABELS), class_names=("a", "b"))
