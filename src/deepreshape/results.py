"""A folder of results: its settings, and one row for each part that is finished.

``config.yaml`` holds the settings as resolved, ``results.jsonl`` a row a line, ``models/`` what parts have made, and
``runs/`` the checkpoints of one that is under way. Work in such a folder goes on with the first part that has no row,
however it was ended before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

__all__ = ["finished", "open_folder", "work_off"]

CONFIG, RESULTS = "config.yaml", "results.jsonl"


class _Part(Protocol):
    @property
    def id(self) -> str: ...


Part = TypeVar("Part", bound=_Part)
Progress = TypeVar("Progress")


def work_off(
    settings: Any,
    out: Path,
    parts: Sequence[Part],
    row_of: Callable[[Part, Path, Path, Callable[[Progress], None]], dict[str, Any]],
    report: Callable[[int, int, Part, Progress | None], None],
) -> list[dict[str, Any]]:
    """Do the parts that have no row yet, in order.

    Args:
        settings: a frozen dataclass.
        out: the folder.
        parts: all of them, each with an ``id`` that names its folders.
        row_of: does a part and gives its row; called with the part, the folder for its model, the folder for its
            checkpoints, and what to tell of its progress.
        report: told (number of the part, number of parts, part, progress in it); None for the progress when it is done.

    Returns:
        The rows of all parts.

    Raises:
        ValueError: as :func:`open_folder`.
    """
    rows = open_folder(settings, out)
    done = {row["id"] for row in rows}
    for number, part in enumerate(parts, start=1):
        folder = out / "runs" / part.id
        if part.id not in done:
            row = row_of(
                part,
                out / "models" / part.id,
                folder,
                lambda progress, at=number, of=part: report(at, len(parts), of, progress),
            )
            _append(out, row)
            rows.append(row)
        shutil.rmtree(folder, ignore_errors=True)
        report(number, len(parts), part, None)
    return rows


def open_folder(settings: Any, out: Path) -> list[dict[str, Any]]:
    """Make the folder, or see that it belongs to these very settings.

    Args:
        settings: a frozen dataclass.
        out: the folder.

    Returns:
        The rows that are finished; what was left of one that was cut off is gone from the file.

    Raises:
        ValueError: if the folder holds results of other settings, or something else.
    """
    kind = type(settings).__name__.lower()
    values = json.loads(json.dumps(asdict(settings)))
    path = out / CONFIG
    if path.is_file():
        theirs = yaml.safe_load(path.read_text()) or {}
        differing = [field.name for field in fields(settings) if theirs.get(field.name) != values[field.name]]
        if differing:
            shown = "; ".join(f"{name} was {theirs.get(name)}, now {values[name]}" for name in differing)
            raise ValueError(f"{out} holds another {kind} ({shown}); choose another folder or the same settings")
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {kind}; choose another folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        _write(path, yaml.safe_dump(values, sort_keys=False))
    rows = finished(out) if (out / RESULTS).is_file() else []
    _write(out / RESULTS, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def finished(folder: Path) -> list[dict[str, Any]]:
    """The rows of what is finished; a last line that was cut off is left out.

    Raises:
        ValueError: if the folder holds no results, or a line in the middle is broken.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no results: there is no {RESULTS} in it; `deepreshape run --out {folder}` makes it"
        )
    rows: list[dict[str, Any]] = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"line {number} of {path} is not a result: {line[:60]!r}") from None
    return rows


def _append(folder: Path, row: dict[str, Any]) -> None:
    """Add a row, and see it on the disk."""
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
