"""Data sets by name, from files in the ecosystem's own formats: digits, shapes, CIFAR, Tiny-ImageNet, CamVid."""

from __future__ import annotations

import math
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from deepreshape.data.camvid import camvid
from deepreshape.data.dataset import Dataset, Split
from deepreshape.data.fetch import ARCHIVES
from deepreshape.data.images import moments
from deepreshape.data.shapes import shapes

__all__ = ["ARCHIVED", "data_folder", "load_archive"]

CIFAR_BYTES = 1 << 28
"""The official files have at most 155 MB."""


def data_folder(given: Path | None = None) -> Path:
    """Where data sets lie: the folder given, else the environment variable DEEPRESHAPE_DATA, else ``data``."""
    return given or Path(os.environ.get("DEEPRESHAPE_DATA", "data"))


def load_archive(name: str, folder: Path | None = None) -> Dataset:
    """A data set of :data:`ARCHIVED`; :meth:`.Dataset.load` says the rest."""
    if name not in ARCHIVED:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(ARCHIVED)} and folder:PATH")
    return ARCHIVED[name](data_folder(folder))


def _split_off(
    name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], names: list[str], held: int
) -> Dataset:
    """Splits ``held`` images off train, the same ones every time."""
    images, labels = torch.from_numpy(train[0]), torch.from_numpy(train[1]).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept, out = order[held:].sort().values, order[:held].sort().values
    training = images[kept]
    return Dataset(
        name,
        Split(training, labels[kept]),
        Split(images[out], labels[out]),
        Split(torch.from_numpy(test[0]), torch.from_numpy(test[1]).long()),
        tuple(names),
        *moments(training),
    )


def _digits(_: Path) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; every fifth is a test image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("the digits come with scikit-learn: pip install 'deepreshape[digits]'") from None
    pixels, labels = load_digits(return_X_y=True)
    images = (np.asarray(pixels).reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    labels = np.asarray(labels)
    test = np.arange(len(images)) % 5 == 0
    return _split_off(
        "digits",
        (images[~test], labels[~test]),
        (images[test], labels[test]),
        [str(digit) for digit in range(10)],
        held=180,
    )


def _digit_sums(folder: Path) -> Dataset:
    """Two of the digits side by side in 16x16 pixels, each at a height of its own; the class is their sum, 0 to 18.

    The pairs are drawn from a fixed seed, those of a split from the digits of that split alone.
    """
    digits, random = _digits(folder), np.random.default_rng(0)

    def pairs(split: Split, count: int) -> Split:
        chosen = random.integers(len(split), size=(2, count))
        images = np.zeros((count, 1, 16, 16), np.uint8)
        for side, places in enumerate(chosen):
            for at, (place, above) in enumerate(zip(places, random.integers(9, size=count), strict=True)):
                images[at, 0, above : above + 8, 8 * side : 8 * side + 8] = split.images[int(place)][0]
        return Split(torch.from_numpy(images), split.labels[torch.from_numpy(chosen)].sum(0))

    train, validation, test = pairs(digits.train, 3000), pairs(digits.validation, 1000), pairs(digits.test, 2000)
    assert isinstance(train.images, torch.Tensor)  # noqa: S101 - for the type checker
    values = train.images.double() / 255
    names = tuple(map(str, range(19)))
    return Dataset("digit-sums", train, validation, test, names, (float(values.mean()),), (float(values.std()),))


class _ByteArray:
    """Stands for NumPy's ``ndarray`` while a pickle is read; of what the pickle says it takes bytes and a shape only.

    NumPy's own types cannot be handed to a pickle: their states can make an array of objects out of raw bytes, and the
    process then follows pointers that the file chose.
    """

    array: np.ndarray

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _ByteType(), False, bytes() as data):
                pass
            case (int(), tuple() as shape, _ByteType(), False, str() as text):  # Python 2's bytes; ours are latin1
                data = text.encode("latin1")
            case _:
                raise pickle.UnpicklingError("it holds an array that is not of bytes")
        if not all(type(side) is int and 0 <= side <= len(data) for side in shape) or math.prod(shape) != len(data):
            raise pickle.UnpicklingError(f"an array of {len(data)} bytes has another shape")
        self.array = np.frombuffer(bytearray(data), np.uint8).reshape(shape)


class _ByteType:
    """Stands for NumPy's ``dtype``, of unsigned bytes; whatever else the pickle says of it is not listened to."""

    def __init__(self, kind: object, *_: object) -> None:
        if kind not in ("u1", "|u1"):
            raise pickle.UnpicklingError("it holds an array that is not of bytes")

    def __setstate__(self, state: object) -> None: ...


def _new_array(*_: object) -> _ByteArray:
    return _ByteArray()


def _latin1(text: object, encoding: object) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it holds bytes in another encoding than latin1")
    return text.encode("latin1")


class _BytesOnly(pickle.Unpickler):
    """Reads the official CIFAR pickles and nothing else: byte arrays, strings, numbers and their containers."""

    STAND_INS: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy.core.multiarray", "_reconstruct"): _new_array,
        ("numpy._core.multiarray", "_reconstruct"): _new_array,
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _ByteType,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.STAND_INS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR file")
        return self.STAND_INS[module, name]


def _compare_cifar(dataset: str, folder: Path) -> Path:
    """The folder of a data set's files, warned of in one line if they are not the official ones.

    Others are read all the same: the reader takes bytes and numbers only, whoever wrote them.
    """
    archive = ARCHIVES[dataset]
    where = folder / archive.unpacks_to
    if names := archive.unofficial(folder):
        warnings.warn(
            f"{', '.join(names)} in {where}: not the official {dataset}, by the digest; results cannot be compared "
            f"(`deepreshape fetch {dataset}` into another folder brings the official files)",
            stacklevel=2,
        )
    return where


def _cifar_file(path: Path, dataset: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{dataset} is not there: no file {path}; put the official files there, point DEEPRESHAPE_DATA at the "
            f"folder that holds {path.parent.name}, or run `deepreshape fetch {dataset}`"
        )
    if path.stat().st_size > CIFAR_BYTES:
        raise ValueError(f"{path} is not an official {dataset} file: it has more than {CIFAR_BYTES} bytes")
    try:
        with path.open("rb") as file:
            content = _BytesOnly(file, encoding="latin1").load()
    except Exception as error:  # a pickle machine fed with bytes of any kind raises errors of nearly any class
        raise ValueError(f"{path} is not an official {dataset} file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not an official {dataset} file: it holds a {type(content).__name__}")
    return content


def _field(path: Path, content: dict[str, Any], *names: str) -> list[Any]:
    """A list out of the content of ``path``, by the first of its names that is there."""
    for name in names:
        if isinstance(content.get(name), list):
            return content[name]
    raise ValueError(f"{path} is not an official CIFAR file: it has no list {names[0]!r}")


def _cifar_part(path: Path, dataset: str, labels: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (N, 3, 32, 32), and labels, int64 (N,)."""
    content = _cifar_file(path, dataset)
    data, numbers = content.get("data"), _field(path, content, labels)
    flat = data.array if isinstance(data, _ByteArray) and hasattr(data, "array") else np.empty(0, np.uint8)
    if flat.shape != (len(numbers), 3072):
        raise ValueError(f"{path} is not an official {dataset} file: {flat.shape} bytes for {len(numbers)} labels")
    if not all(type(number) is int and 0 <= number < classes for number in numbers):
        raise ValueError(f"{path} is not an official {dataset} file: a label is not from 0 to {classes - 1}")
    return flat.reshape(-1, 3, 32, 32), np.array(numbers, np.int64)


def _cifar100(folder: Path, labels: str = "fine", classes: int = 100) -> Dataset:
    where = _compare_cifar("cifar100", folder)
    train, test = (_cifar_part(where / part, "cifar100", f"{labels}_labels", classes) for part in ("train", "test"))
    names = _field(where / "meta", _cifar_file(where / "meta", "cifar100"), f"{labels}_label_names")
    name = "cifar100" if labels == "fine" else f"cifar100-{labels}"
    return _split_off(name, train, test, list(map(str, names)), held=5000)


def _cifar100_coarse(folder: Path) -> Dataset:
    """The images of CIFAR-100 with the 20 superclasses as labels."""
    return _cifar100(folder, "coarse", 20)


def _cifar10(folder: Path) -> Dataset:
    where = _compare_cifar("cifar10", folder)
    parts = [_cifar_part(where / f"data_batch_{index}", "cifar10", "labels", 10) for index in range(1, 6)]
    test = _cifar_part(where / "test_batch", "cifar10", "labels", 10)
    names = _field(where / "batches.meta", _cifar_file(where / "batches.meta", "cifar10"), "label_names")
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _split_off("cifar10", (images, labels), test, list(map(str, names)), held=5000)


def _tinyimagenet(folder: Path) -> Dataset:
    """Tiny-ImageNet-200; its labelled validation images serve as the test split, as in the papers."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("Tiny-ImageNet is JPEG files, which need Pillow: pip install 'deepreshape[images]'") from None
    root = folder / "tiny-imagenet-200"
    if not (root / "wnids.txt").is_file():
        raise ValueError(
            f"tinyimagenet is not there: no file {root / 'wnids.txt'}; unpack tiny-imagenet-200 there, point "
            "DEEPRESHAPE_DATA at the folder that holds it, or run `deepreshape fetch tinyimagenet`"
        )
    wnids = (root / "wnids.txt").read_text().split()
    index = {wnid: label for label, wnid in enumerate(wnids)}

    def pixels(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    def read(files: list[tuple[Path, int]]) -> tuple[np.ndarray, np.ndarray]:
        if not files:
            raise ValueError(f"{root} holds no images where a data set has them")
        return np.stack([pixels(path) for path, _ in files]), np.array([label for _, label in files])

    train = [(path, index[wnid]) for wnid in wnids for path in sorted((root / "train" / wnid).rglob("*.JPEG"))]
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():
        rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines()]
        test = [(root / "val" / "images" / name, index[wnid]) for name, wnid in rows]
    else:
        test = [(path, index[wnid]) for wnid in wnids for path in sorted((root / "val" / wnid).rglob("*.JPEG"))]
    words = dict(line.split("\t", 1) for line in (root / "words.txt").read_text().splitlines() if "\t" in line)
    return _split_off(
        "tinyimagenet", read(train), read(test), [words.get(wnid, wnid) for wnid in wnids], held=len(train) // 10
    )


ARCHIVED: dict[str, Callable[[Path], Dataset]] = {
    "digits": _digits,
    "digit-sums": _digit_sums,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "cifar100-coarse": _cifar100_coarse,
    "tinyimagenet": _tinyimagenet,
    "shapes": lambda _: shapes(),
    "camvid": camvid,
    "camvid-120x96": lambda folder: camvid(folder, windows=True),
}
"""A function from the data folder to each data set."""
