"""Tables to fit: rows of numbers and a target, from a file or by name."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.files import read_arrays

__all__ = ["TABLES", "Table", "read_inputs", "read_table"]

TABLES = ("breast_cancer", "diabetes", "digits", "iris", "wine")
"""Those that come with scikit-learn."""

FEW = 20
"""Whole numbers with at most so many values are taken for classes."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows and what is to be predicted of them.

    Attributes:
        rows: float64 (N, features).
        target: (N,), float64, or the place in ``classes``.
        features: a name for each column.
        classes: names of the classes in order; none where the target is a number.
    """

    rows: NDArray[np.float64]
    target: NDArray[Any]
    features: tuple[str, ...]
    classes: tuple[str, ...]

    def split(self, share: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Places of training and test rows, the same ones every time; ``share`` of each class is for the test.

        One row of each class stays for the training.
        """
        random = np.random.default_rng(seed)
        test: list[NDArray[np.intp]] = []
        kinds = self.target if self.classes else np.zeros(len(self.target), int)
        for kind in np.unique(kinds):
            places = random.permutation(np.flatnonzero(kinds == kind))
            test.append(places[: min(round(share * len(places)), len(places) - 1)])
        held = np.sort(np.concatenate(test))
        return np.setdiff1d(np.arange(len(self.rows)), held), held


def read_table(data: str, target: str | None = None) -> Table:
    """A table by name, or from a file: .npz with ``X`` and ``y``, or .csv with a header.

    Args:
        data: the name or the path.
        target: the column of a .csv that is to be predicted.

    Raises:
        ValueError: if there is none, or it cannot be fitted; with what would work.
    """
    if data in TABLES:
        return _known(data, target)
    path = Path(data)
    if path.suffix not in (".npz", ".csv") or not path.is_file():
        why = "there is no such file" if path.suffix in (".npz", ".csv") else "it is neither .npz nor .csv"
        raise ValueError(f"{data!r} is not a table: {why}; known by name are {', '.join(TABLES)}")
    if path.suffix == ".csv":
        return _csv(path, target)
    if target is not None:
        raise ValueError(f"--target {target} names a column of a .csv; {path} has its target as y")
    arrays = _arrays(path)
    if not set(arrays) >= {"X", "y"} or not arrays["X"].ndim:
        raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}; it is to hold X (N, features) and y (N,)")
    rows, names = arrays["X"], arrays.get("feature_names")
    features = names.tolist() if names is not None else [f"x{k}" for k in range(rows.shape[-1])]
    return _table(str(path), rows, arrays["y"], features, arrays.get("target_names"))


def read_inputs(path: Path, features: tuple[str, ...]) -> NDArray[np.float64]:
    """Rows of a fitted table without their target: .npy or .npz (``X``) in the order of ``features``, or .csv by name.

    Raises:
        ValueError: if a column is missing, or a value is not a finite number.
    """
    if path.suffix == ".csv":
        header, lines = _lines(path)
        missing = [name for name in features if name not in header]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(header)}")
        rows: NDArray[Any] = np.array([[line[header.index(name)] for name in features] for line in lines])
    else:
        arrays = _arrays(path)
        rows = arrays["X"] if "X" in arrays else np.atleast_2d(next(iter(arrays.values()), np.zeros(0)))
    return _numbers(str(path), rows, len(features))


def _known(name: str, target: str | None) -> Table:
    try:
        from sklearn import datasets
    except ImportError:
        raise ValueError(f"{name} comes with scikit-learn: pip install scikit-learn") from None
    if target is not None:
        raise ValueError(f"--target {target} names a column of a .csv; {name} has its own target")
    loaded: Any = getattr(datasets, f"load_{name}")()
    names = getattr(loaded, "target_names", None)
    return _table(name, loaded.data, loaded.target, list(loaded.feature_names), names)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    arrays = read_arrays(path)
    return {"X": arrays} if isinstance(arrays, np.ndarray) else arrays


def _lines(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in csv.reader(file) if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table of comma-separated values in UTF-8: {error}") from None
    if len(lines) < 2:
        raise ValueError(f"{path} has {len(lines)} lines; it needs a header and rows")
    header = [name.strip() for name in lines[0]]
    if len({*header}) < len(header):
        raise ValueError(f"{path} has two columns {next(name for name in header if header.count(name) > 1)!r}")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise ValueError(f"{path}, row {number}: {len(line)} values and {len(header)} columns")
    return header, lines[1:]


def _csv(path: Path, target: str | None) -> Table:
    header, lines = _lines(path)
    if target not in header:
        given = f"--target {target} is none of them" if target else "--target says which is to be predicted"
        raise ValueError(f"{path} has the columns {', '.join(header)}; {given}")
    place = header.index(target)
    features = [name for name in header if name != target]
    rows = np.array([[value for at, value in enumerate(line) if at != place] for line in lines])
    wanted = np.array([line[place].strip() for line in lines])
    numbers = [_is_number(value) for value in wanted]
    if "" in wanted:
        raise ValueError(f"{path}, row {int(np.argmax(wanted == '')) + 2}: {target} is empty; leave such rows out")
    if all(numbers):  # words are classes
        wanted = wanted.astype(np.float64)
    elif any(numbers):
        word = str(wanted[numbers.index(False)])
        raise ValueError(f"{path}: {target} has numbers and words, such as {word!r}; it is to have one or the other")
    return _table(str(path), rows, wanted, features, None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _table(
    source: str, rows: NDArray[Any], target: NDArray[Any], features: list[str], classes: NDArray[Any] | None
) -> Table:
    """Numbers and classes, checked."""
    numbers = _numbers(source, rows, len(features))
    if target.shape != (len(numbers),):
        raise ValueError(f"{source}: {len(numbers)} rows and a target of shape {target.shape}")
    if target.dtype.kind == "f" and not np.isfinite(target).all():
        row = int(np.argmin(np.isfinite(target))) + 1
        raise ValueError(f"{source}: the target of row {row}, counted from 1, is not finite")
    values, places = np.unique(target, return_inverse=True)
    whole = target.dtype.kind not in "fiu" or bool((target == np.rint(target)).all() and len(values) <= FEW)
    names = tuple(map(str, features))
    if not whole:
        return Table(numbers, target.astype(np.float64), names, ())
    if len(values) < 2:
        raise ValueError(f"{source}: all rows are of one class, {values[0]}; there is nothing to tell apart")
    words = classes if classes is not None and len(classes) == len(values) else values
    shown = [f"{value:g}" if isinstance(value, np.floating) else str(value) for value in words]
    return Table(numbers, places, names, tuple(shown))


def _numbers(source: str, rows: NDArray[Any], features: int) -> NDArray[np.float64]:
    """Rows as float64 (N, features).

    Raises:
        ValueError: with the place of the first value that is not a finite number.
    """
    if rows.ndim != 2 or rows.shape[1] != features or not len(rows):
        raise ValueError(f"{source}: rows of shape {rows.shape}; they are to be (N, {features})")
    try:
        numbers = rows.astype(np.float64)
    except (ValueError, TypeError):
        numbers = np.array([[_number(value) for value in row] for row in rows])
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        row, column = bad[0]
        where = f"row {row + 1}, feature {column + 1}, counted from 1 and without the target"
        raise ValueError(f"{source}: {rows[row, column]!s} is not a finite number ({where}); leave such rows out")
    return numbers


def _number(value: Any) -> float:
    try:
        return float(value)
    except (ValueError, TypeError):
        return float("nan")
