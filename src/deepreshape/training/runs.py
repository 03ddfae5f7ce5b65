"""Rows of results, and whose a folder of checkpoints is.

A folder of results (:mod:`deepreshape.experiments.experiment`) has a row a line in ``results.jsonl``. A folder of
checkpoints says in ``run.json`` whose they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

__all__ = [
    "Result",
    "append_row",
    "claim_folder",
    "finished",
    "measured_as",
    "read_rows",
    "refuse_others",
    "replace_text",
    "rows_in",
    "write_rows",
]

CONFIG, RESULTS, RUN = "config.yaml", "results.jsonl", "run.json"


@dataclass(frozen=True)
class Result:
    """What became of one network that was trained or reduced: a row of ``results.jsonl``.

    Attributes:
        id: name of its folders.
        network, method, plan: what was trained, by which method it was reduced (``"all"`` for coarse plans and whole
            networks), and what was removed.
        granularity: of the removal.
        budget: ReLUs it was reduced to; None for all.
        relus, relus_without_stem, maxpool_comparisons, signs, macs, params: counts.
        priced_seconds: of one inference, by published profile.
        top1: percent, on the ``n`` images of ``split`` of the data set ``data``; of another metric, where ``measures``
            names it.
        top1_validation: alike; None where that split was trained on.
        seed, epochs, cpu_minutes: of the training.
        command: that makes this one alone.
        measures: the word for the metric, which rows have in place of ``top1``.
    """

    id: str
    network: str
    plan: str
    budget: int | None
    relus: int
    macs: int
    params: int
    top1: float
    n: int
    data: str
    seed: int
    command: str
    priced_seconds: Mapping[str, float]
    method: str = "all"
    granularity: str = "layer"
    relus_without_stem: int = 0
    maxpool_comparisons: int = 0
    signs: int = 0
    split: str = "test"
    top1_validation: float | None = None
    epochs: int = 0
    cpu_minutes: float = 0.0
    measures: str = "top1"

    def to_row(self) -> dict[str, Any]:
        """As plain JSON values."""
        return measured_as(asdict(self))

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Result:
        """The result that a row holds; what a later version added to it is left out.

        Raises:
            ValueError: naming what is missing.
        """
        known = {field.name for field in fields(cls)}
        measures = next((word for word in ("miou",) if word in row), "top1")
        named: dict[str, Any] = {name.replace(measures, "top1"): value for name, value in row.items()}
        named["measures"] = measures
        try:
            return cls(**{name: value for name, value in named.items() if name in known})
        except TypeError as error:
            raise ValueError(f"a row of results is not complete: {str(error).partition('() ')[2]}") from None


def measured_as(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose fields of the metric have the name of what it ``measures``."""
    row = dict(values)
    measures = row.pop("measures")
    return {name.replace("top1", measures): value for name, value in row.items()}


def claim_folder(folder: Path, settings: Mapping[str, Any], *, writes: bool = True) -> None:
    """Make a folder of checkpoints that of a run with these settings, or see that it is.

    Args:
        folder: made, if it is not there.
        settings: whatever the result depends on.
        writes: whether this process is the one that writes.

    Raises:
        ValueError: if it is another run's.
    """
    values = json.loads(json.dumps(settings))
    path = folder / RUN
    if path.is_file():
        refuse_others(folder, "run", json.loads(path.read_text()), values)
    elif writes:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(values, indent=1) + "\n")


def refuse_others(folder: Path, kind: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """See that the settings a folder was made with are those of now.

    Raises:
        ValueError: naming those that differ.
    """
    differing = [difference for name in ours for difference in _differences(name, theirs, ours)]
    if differing:
        shown = "; ".join(differing)
        raise ValueError(f"{folder} holds another {kind} ({shown}); use those settings, or another folder")


def _differences(path: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """What differs in a setting, by the path to it where settings hold settings."""
    name = path.rpartition(".")[2]
    was, now = theirs.get(name), ours.get(name)
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for part in {**was, **now}:
            yield from _differences(f"{path}.{part}", was, now)
    elif name not in theirs or was != now:
        yield f"{path} was {was}, now {now}"


def finished(folder: Path) -> list[Result]:
    """The results of what is finished; a last line that was cut off is left out.

    Raises:
        ValueError: if the folder holds no results, or a line in the middle is broken.
    """
    return [Result.of(row) for row in rows_in(folder)]


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's results, as :func:`read_rows` gives them.

    Raises:
        ValueError: if the folder holds no results, or a line in the middle is broken.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no results: there is no {RESULTS} in it; `deepreshape run --out {folder}` makes it"
        )
    return read_rows(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with one a line; a last line that was cut off is left out.

    Raises:
        ValueError: if a line in the middle is broken.
    """
    rows: list[dict[str, Any]] = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"line {number} of {path} is not a result: {line[:60]!r}") from None
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, one a line, in place of what is there."""
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file with one a line, and see it on the disk."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Write a file beside the one that is there, and put it in its place."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
