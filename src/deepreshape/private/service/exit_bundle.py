"""A folder that holds the programs of a network's exits, each a bundle of its own, and what clients may know of them.

    write_exits("bundle", {1: first, 4: whole}, threshold=0.8)   # bundle/exit1, bundle/exit4, bundle/exits.json
    read_exits("bundle")                                         # ExitFacts((1, 4), 0.8)

A client's copy leaves out the ``server.program`` of every exit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from deepreshape.private.files import read_json, replace_file
from deepreshape.private.service.bundle import CLIENT_PROGRAM, FACTS, SERVER_PROGRAM, Bundle

__all__ = ["EXITS", "ExitFacts", "exit_folder", "read_exits", "write_exits"]

EXITS = "exits.json"
EXITS_BYTES = 1 << 16
"""The largest exits.json that is read."""
MOST_EXITS = 64


@dataclass(frozen=True)
class ExitFacts:
    """Public facts of a network's exits.

    Attributes:
        points: stages after which there is an answer, rising; the last is the whole network's.
        threshold: confidence from which the one who made the folder would take an answer; a client may take another.
            None where no labelled inputs said.
    """

    points: tuple[int, ...]
    threshold: float | None = None


def exit_folder(folder: Path | str, point: int) -> Path:
    """Where the bundle of one exit lies."""
    return Path(folder) / f"exit{point}"


def write_exits(folder: Path | str, bundles: Mapping[int, Bundle], threshold: float | None = None) -> None:
    """Write the bundles of exits by their stages, in rising order, and the facts.

    Args:
        folder: is made; a bundle of one program that it held is deleted, as parties would take that one.
        bundles: by stage.
        threshold: as :class:`ExitFacts` has it.
    """
    for name in (SERVER_PROGRAM, CLIENT_PROGRAM, FACTS):
        (Path(folder) / name).unlink(missing_ok=True)
    for point, bundle in bundles.items():
        bundle.write(exit_folder(folder, point))
    facts = json.dumps(asdict(ExitFacts(tuple(bundles), threshold))) + "\n"
    replace_file(Path(folder) / EXITS, facts.encode("ascii"), 0o644)


def read_exits(folder: Path | str) -> ExitFacts:
    """The facts of a folder, which another party may have written.

    Raises:
        ValueError: if there are none, or they are not as they should be.
    """
    path = Path(folder) / EXITS
    if not path.is_file():
        raise ValueError(f"{folder} holds no {EXITS}; `deepreshape private lower M --exit all --out {folder}` makes it")
    try:
        given = read_json(path, EXITS_BYTES)
        points, threshold = given["points"], given["threshold"]
        rising = all(type(point) is int and point > 0 for point in points) and points == sorted(set(points))
        if not rising or not 0 < len(points) <= MOST_EXITS:
            raise ValueError(points)
        if threshold is not None and not (type(threshold) in (int, float) and 0 <= threshold <= 1):
            raise ValueError(threshold)
        return ExitFacts(tuple(points), threshold)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path} is to hold points, stages that rise, and threshold, a number from 0 to 1 or null"
        ) from None
