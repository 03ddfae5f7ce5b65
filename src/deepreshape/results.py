"""A folder of results: its settings, and one row for each part that is finished.

``config.yaml`` holds the settings as resolved, ``results.jsonl`` a row a line. Whoever works in such a folder goes on
with the first part that has no row, however it was ended before.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

__all__ = ["append", "finished", "open_folder"]

CONFIG, RESULTS = "config.yaml", "results.jsonl"


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


def append(folder: Path, row: dict[str, Any]) -> None:
    """Add a row, and see it on the disk."""
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
