"""Data sets by name, from files in the ecosystem's own formats: digits, CIFAR-10, CIFAR-100, Tiny-ImageNet."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deepreshape.data.dataset import Dataset, Split

__all__ = ["ARCHIVED", "data_folder", "load"]


def data_folder(given: Path | None = None) -> Path:
    """Where data sets lie: the folder given, else the environment variable DEEPRESHAPE_DATA, else ``data``."""
    return given or Path(os.environ.get("DEEPRESHAPE_DATA", "data"))


def load(name: str, folder: Path | None = None) -> Dataset:
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
    scaled = images[kept].float() / 255
    return Dataset(
        name,
        Split(images[kept], labels[kept]),
        Split(images[out], labels[out]),
        Split(torch.from_numpy(test[0]), torch.from_numpy(test[1]).long()),
        tuple(names),
        tuple(round(value, 4) for value in scaled.mean((0, 2, 3)).tolist()),
        tuple(round(value, 4) for value in scaled.std((0, 2, 3)).tolist()),
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


class _ArraysOnly(pickle.Unpickler):
    """Reads the official CIFAR pickles and nothing else: arrays, strings, numbers and their containers."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR file")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _cifar_file(path: Path, dataset: str) -> dict[str, object]:
    if not path.is_file():
        raise ValueError(
            f"{dataset} is not there: no file {path}; put the official files there, point DEEPRESHAPE_DATA at the "
            f"folder that holds {path.parent.name}, or run `deepreshape fetch {dataset}`"
        )
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is not an official {dataset} file: {error}") from None


def _cifar_images(flat: object) -> np.ndarray:
    return np.asarray(flat, dtype=np.uint8).reshape(-1, 3, 32, 32)


def _cifar100(folder: Path) -> Dataset:
    train, test, meta = (
        _cifar_file(folder / "cifar-100-python" / part, "cifar100") for part in ("train", "test", "meta")
    )
    return _split_off(
        "cifar100",
        (_cifar_images(train["data"]), np.array(train["fine_labels"])),
        (_cifar_images(test["data"]), np.array(test["fine_labels"])),
        list(meta["fine_label_names"]),  # pyright: ignore[reportArgumentType]
        held=5000,
    )


def _cifar10(folder: Path) -> Dataset:
    where = folder / "cifar-10-batches-py"
    parts = [_cifar_file(where / f"data_batch_{index}", "cifar10") for index in range(1, 6)]
    test, meta = _cifar_file(where / "test_batch", "cifar10"), _cifar_file(where / "batches.meta", "cifar10")
    return _split_off(
        "cifar10",
        (
            np.concatenate([_cifar_images(part["data"]) for part in parts]),
            np.concatenate([np.array(part["labels"]) for part in parts]),
        ),
        (_cifar_images(test["data"]), np.array(test["labels"])),
        list(meta["label_names"]),  # pyright: ignore[reportArgumentType]
        held=5000,
    )


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
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "tinyimagenet": _tinyimagenet,
}
"""A function from the data folder to each data set."""
