"""Any torch ``Dataset`` or ``DataLoader`` as a data set: torchvision's, Hugging Face's, your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
    default_convert,
)

from deepreshape.data.dataset import Dataset, Split
from deepreshape.data.folder import SHARES, as_tensor
from deepreshape.data.images import Chosen, Images, ReadImages, statistics

__all__ = ["from_loader"]

IMAGE_KEYS = ("image", "img", "pixel_values", "images")
LABEL_KEYS = ("label", "labels", "fine_label", "target", "targets")


def from_loader(
    train: Any,
    *,
    validation: Any = None,
    test: Any = None,
    class_names: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    name: str = "loader",
) -> Dataset:
    """A data set of the items of torch data sets, which are read when they are asked for.

    Args:
        train: a ``torch.utils.data.Dataset`` whose items are (image, label), or mappings with an image and a label as
            Hugging Face has them; or a ``DataLoader`` of one, whose own order and batches do not matter. Of a loader
            with a ``SubsetRandomSampler`` it is the items that this names. Images are PIL images, arrays (H, W, C) or
            tensors (C, H, W), uint8 or floats as the network sees them, all of one size; labels count from 0.
        validation: alike; a tenth of train, by a permutation that depends on its length only, without.
        test: alike; 15 % of train without.
        class_names: in the order of the labels; those that the data set knows, or numbers, without.
        mean: by channel, on the scale 0 to 1, that the images are normalised by, or were; of the training images
            without.
        std: alike.
        name: of the data set, in records.

    Raises:
        ValueError: if items are something else, or a loader selects or changes them in a way of its own.
    """
    whole = _Items.of(train, "train")
    given = {"validation": validation, "test": test}
    missing = [part for part in SHARES if given[part] is None]
    if missing and whole.repeated is not None:
        raise ValueError(
            f"train has item {whole.repeated} more than once, so that {' and '.join(missing)} taken from it would hold "
            "training images; give them too"
        )
    order = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(0))
    if len(order) <= len(missing):
        raise ValueError(f"{len(order)} images are too few for {', '.join(['train', *missing])}")
    splits: dict[str, Split] = {}
    for part in missing:
        count = max(1, int(SHARES[part] * len(whole.labels)))
        splits[part], order = whole.split(order[:count]), order[count:]
    splits["train"] = whole.split(order)
    for part in given.keys() - set(missing):
        items = _Items.of(given[part], part)
        splits[part] = Split(items.images, items.labels)
    names = tuple(class_names) or whole.class_names
    largest = max(int(split.labels.max()) for split in splits.values())
    names = names or tuple(map(str, range(largest + 1)))
    if largest >= len(names):
        raise ValueError(f"a label is {largest} and there are {len(names)} class names; labels count from 0")
    known = statistics(splits["train"].images) if not mean or not std else ((), ())
    return Dataset(
        name,
        splits["train"],
        splits["validation"],
        splits["test"],
        names,
        tuple(mean) or known[0],
        tuple(std) or known[1],
    )


class _Items:
    """Images and labels of one source, and an item that it has more than once."""

    def __init__(
        self, images: Images, labels: Tensor, class_names: tuple[str, ...], repeated: int | None = None
    ) -> None:
        self.images, self.labels, self.class_names, self.repeated = images, labels, class_names, repeated

    @staticmethod
    def of(source: Any, part: str) -> _Items:
        items: Any = _selected(source, part) if isinstance(source, DataLoader) else source
        if isinstance(items, IterableDataset) or not hasattr(items, "__getitem__"):
            items = list(items)  # a stream is read once, and kept
        if not len(items):
            raise ValueError(f"the {part} data set is empty")

        def what(place: int) -> str:
            return f"item {place} of {part}"

        known = _labels(items)
        if known is None:
            known = [_pair(items[place])[1] for place in range(len(items))]
        labels = [_class_number(label, what(place)) for place, label in enumerate(known)]

        def read(place: int) -> Tensor:
            image, label = _pair(items[place])
            if _class_number(label, what(place)) != labels[place]:  # of a class whose own code changes its labels
                raise ValueError(
                    f"{what(place)} has the label {label} and was listed with {labels[place]}; correct the data set's "
                    "own list of labels, or give one whose labels stay the same"
                )
            return as_tensor(image)

        return _Items(ReadImages(len(items), read, what), torch.tensor(labels), _names(items), _repeated(items))

    def split(self, places: Tensor) -> Split:
        places = places.sort().values
        return Split(Chosen(self.images, places), self.labels[places])


def _selected(loader: DataLoader[Any], part: str) -> Any:
    """The data set behind a loader, or what its sampler selects of it."""
    items: Any = loader.dataset
    if loader.collate_fn not in (default_collate, default_convert):
        name = getattr(loader.collate_fn, "__name__", type(loader.collate_fn).__name__)
        raise ValueError(
            f"the {part} loader has a collate_fn of its own, {name}, and images are read one by one; do what it does "
            "in the data set's transform, and give the data set"
        )
    if isinstance(items, IterableDataset):
        return items
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    if type(sampler) is SubsetRandomSampler:
        return Subset(items, [*sampler.indices])
    if (
        type(sampler) not in (SequentialSampler, RandomSampler)
        or not len(sampler) == len(sampler.data_source) == len(items)
        or getattr(sampler, "replacement", False)
    ):
        raise ValueError(
            f"the {part} loader takes {len(items)} images by a {type(sampler).__name__}, which may select or repeat "
            "some; give the data set itself, or torch.utils.data.Subset(dataset, places)"
        )
    return items


def _repeated(items: Any) -> int | None:
    """An item that a part of a data set names more than once."""
    if isinstance(items, Subset):
        seen: set[int] = set()
        for place in map(int, items.indices):
            if place in seen:
                return place
            seen.add(place)
    return None


def _class_number(label: Any, what: str) -> int:
    """The label of ``what`` as a number from 0."""
    value = label.item() if getattr(label, "shape", None) in ((), (1,)) else label
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and value >= 0:
        return value
    shape = getattr(label, "shape", (len(label),) if isinstance(label, Sequence) and not isinstance(label, str) else ())
    shown = f"a label of shape {tuple(shape)}" if shape not in ((), (1,)) else f"the label {value!r}"
    raise ValueError(
        f"{what} has {shown}; a label is a whole number from 0, the place of its class in class_names"
        + ("; for one-hot labels that is argmax" if len(shape) == 1 else "")
    )


def _pair(item: Any) -> tuple[Any, Any]:
    """Image and label of an item."""
    if isinstance(item, Mapping):
        image, label = (next((key for key in keys if key in item), None) for keys in (IMAGE_KEYS, LABEL_KEYS))
        if image and label:
            return item[image], item[label]
    elif isinstance(item, Sequence) and not isinstance(item, str) and len(item) >= 2:
        return item[0], item[1]
    shown = f"a mapping of {', '.join(map(str, item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"
    raise ValueError(f"an item is (image, label), or a mapping with image and label; this one is {shown}")


def _labels(items: Any) -> Any:
    """All labels, where the data set knows them without reading its images, and gives them as they are."""
    if isinstance(items, Subset):
        whole = _labels(items.dataset)
        return None if whole is None else [whole[place] for place in items.indices]
    columns = getattr(items, "column_names", None)
    if isinstance(columns, list):
        key = next((key for key in LABEL_KEYS if key in columns), None)
        plain = items.with_format(None) if hasattr(items, "with_format") else items  # its transform may want images
        return plain[key] if key else None
    if getattr(items, "target_transform", None) is not None:
        return None
    targets = getattr(items, "targets", None)
    return targets if isinstance(targets, Sequence | Tensor) and len(targets) == len(items) else None


def _names(items: Any) -> tuple[str, ...]:
    while isinstance(items, Subset):
        items = items.dataset
    features = getattr(items, "features", None)
    if isinstance(features, Mapping):
        key = next((key for key in LABEL_KEYS if key in features), None)
        return tuple(getattr(features[key], "names", None) or ()) if key else ()
    classes = getattr(items, "classes", None)
    return tuple(map(str, classes)) if isinstance(classes, Sequence) else ()
