"""Torch data sets of several makes."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
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


def test_a_loader_of_a_part_gives_that_part():
    parts = [range(0, 20), range(20, 30), range(30, 40)]
    loaders = [DataLoader(Arrays(), batch_size=4, sampler=SubsetRandomSampler(part)) for part in parts]
    loaders[1] = DataLoader(Arrays(), batch_sampler=BatchSampler(SubsetRandomSampler(parts[1]), 4, drop_last=False))
    data = Dataset.from_loader(loaders[0], validation=loaders[1], test=loaders[2])
    for split, part in zip((data.train, data.validation, data.test), parts, strict=True):
        assert torch.equal(split.images[:], PIXELS[part.start : part.stop])
        assert torch.equal(split.labels, LABELS[part.start : part.stop])


class Batches(BatchSampler):
    """Selects in a way of its own."""


def halved(batch: list) -> object:
    images, labels = default_collate(batch)
    return images // 2, labels


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"sampler": WeightedRandomSampler([1.0] * 40, 40)}, "train loader takes 40 images by a WeightedRandomSampler"),
        ({"sampler": RandomSampler(Arrays(), replacement=True)}, "by a RandomSampler, which may select or repeat"),
        ({"sampler": RandomSampler(Arrays(), num_samples=20)}, "by a RandomSampler"),
        ({"sampler": SequentialSampler(range(20))}, "by a SequentialSampler"),
        ({"sampler": [3, 5, 7]}, "by a list, which"),
        ({"batch_sampler": Batches(range(20), 4, drop_last=False)}, "by a Batches, which"),
        ({"collate_fn": halved}, "the train loader has a collate_fn of its own, halved, and images are read one by"),
    ],
)
def test_a_loader_that_selects_or_changes_in_a_way_of_its_own_is_refused(choice: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        Dataset.from_loader(DataLoader(Arrays(), **choice))
    assert "\n" not in str(caught.value)


def test_what_is_there_twice_is_not_split():
    twice = Subset(Arrays(), [*range(20), 7])
    with pytest.raises(ValueError, match="train has item 7 more than once, so that test and validation taken from it"):
        Dataset.from_loader(twice)
    assert len(Dataset.from_loader(twice, validation=Arrays(), test=Arrays()).train) == 21


class Even(Arrays):
    """Whether a label is even, by torchvision's argument: ``targets`` are as they were before."""

    classes = ("even", "odd")

    def __init__(self) -> None:
        super().__init__()
        self.target_transform = lambda label: label % 2

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        image, label = super().__getitem__(place)
        return image, self.target_transform(label)


def test_a_transform_of_labels_is_followed():
    data = Dataset.from_loader(Subset(Even(), range(40)), validation=Even(), test=Even())
    assert torch.equal(data.train.labels, LABELS % 2)
    assert torch.equal(data.test.labels, LABELS % 2)


class Shifted(Arrays):
    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        image, label = super().__getitem__(place)
        return image, (label + 1) % 4 if place > 20 else label


def test_labels_that_are_not_those_of_the_list_are_refused():
    with pytest.raises(ValueError, match=r"item 2. of train has the label . and was listed with .; correct the"):
        everything(Dataset.from_loader(Shifted()))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (0.7, "item 0 of train has the label 0.7; a label is a whole number from 0, the place of its class in class_n"),
        (torch.tensor(0.5), "item 0 of train has the label 0.5; a label"),
        (float("nan"), "the label nan"),
        (-1, "item 0 of train has the label -1; a label is a whole number from 0"),
        ("cat", "the label 'cat'; a label is a whole number from 0"),
        (None, "the label None; a label is"),
        (torch.eye(4)[1], r"a label of shape \(4,\); .*; for one-hot labels that is argmax"),
        ([0, 1, 0, 0], r"a label of shape \(4,\); .*; for one-hot labels that is argmax"),
        (torch.zeros(6, 6), r"a label of shape \(6, 6\); a label is a whole number .* in class_names$"),
    ],
)
def test_labels_that_are_no_numbers_from_0_are_one_line(label: object, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        Dataset.from_loader([(PIXELS[0], label)] * 9)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [3, 3.0, np.int64(3), np.float32(3), torch.tensor(3), torch.tensor([3.0])])
def test_whole_numbers_of_any_make_are_labels(label: object):
    data = Dataset.from_loader([(PIXELS[0], label)] * 9)  # pyright: ignore[reportArgumentType]
    assert data.train.labels.unique().tolist() == [3]
    assert data.train.labels.dtype == torch.int64
