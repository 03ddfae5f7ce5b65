"""One engine for every folder of results: points in order, one row each, continued after a kill.

A folder holds ``config.yaml`` with the settings as resolved, ``results.jsonl`` with a row a line
(:class:`~deepreshape.training.runs.Result`), ``models/`` with what the points trained, and ``runs/`` with the
checkpoints of the one that is under way. An experiment goes on with the first point that has no row, however it was
ended before.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from deepreshape.data import Dataset
from deepreshape.training import Progress
from deepreshape.training.runs import (
    CONFIG,
    RESULTS,
    Result,
    append_row,
    read_rows,
    refuse_others,
    replace_text,
    write_rows,
)

__all__ = ["Experiment", "Point"]


class Point(Protocol):
    """One network to train or to reduce."""

    @property
    def id(self) -> str:
        """Name of its row and its folders."""
        ...

    @property
    def title(self) -> str:
        """What it is, for people."""
        ...

    def result(self, data: Dataset, to: Path, folder: Path, progress: Callable[[Progress], None]) -> Result:
        """Do it, and save the network. The test split is read here, once, when the network is final.

        Args:
            data: the data set.
            to: folder for the network.
            folder: for checkpoints; the caller removes it when the row is safe.
            progress: called after every step.

        Raises:
            ValueError: if a saved model or a setting does not fit, or the folder for checkpoints is another run's.
        """
        ...


@dataclass(frozen=True)
class Experiment(ABC):
    """Settings, all resolved, and the points that they mean.

    Attributes:
        data: name of the data set.
    """

    data: str

    @abstractmethod
    def points(self, data: Dataset, models: Path) -> Iterator[Point]:
        """Every point, each after those whose networks it starts from.

        Args:
            data: the data set, loaded.
            models: where the networks of finished points lie, each in a folder of its point's id.

        Raises:
            ValueError: if a name or a setting does not fit.
        """

    def to_config(self) -> dict[str, Any]:
        """What ``config.yaml`` holds, as plain values."""
        return asdict(self)

    def run(self, data: Dataset, out: Path, report: Callable[[int, int, Point, Progress | None], None]) -> list[Result]:
        """Do the experiment, or what is left of it.

        Args:
            data: the data set, loaded.
            out: the experiment's folder; the settings of one that exists must be the same.
            report: told (number of the point, number of points, point, progress in it); None for the progress when it
                is done.

        Returns:
            The results of all points.

        Raises:
            ValueError: if the settings do not fit, or the folder holds results of other settings, or something else.
        """
        points = list({point.id: point for point in self.points(data, out / "models")}.values())
        results = [Result.of(row) for row in self._open(out)]
        done = {result.id for result in results}
        for number, point in enumerate(points, start=1):
            folder = out / "runs" / point.id
            if point.id not in done:
                result = point.result(
                    data,
                    out / "models" / point.id,
                    folder,
                    lambda progress, at=number, of=point: report(at, len(points), of, progress),
                )
                append_row(out / RESULTS, result.to_row())
                results.append(result)
            shutil.rmtree(folder, ignore_errors=True)
            report(number, len(points), point, None)
        return results

    def _open(self, out: Path) -> list[dict[str, Any]]:
        """Create the folder, or see that it belongs to these very settings; the rows that are finished.

        What was left of a row that was cut off is gone from the file.
        """
        kind = type(self).__name__.lower()
        values = json.loads(json.dumps(self.to_config()))
        path = out / CONFIG
        if path.is_file():
            refuse_others(out, kind, yaml.safe_load(path.read_text()) or {}, values)
        elif out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty and holds no {kind}; choose another folder")
        else:
            out.mkdir(parents=True, exist_ok=True)
            replace_text(path, yaml.safe_dump(values, sort_keys=False))
        rows = read_rows(out / RESULTS) if (out / RESULTS).is_file() else []
        write_rows(out / RESULTS, rows)
        return rows
