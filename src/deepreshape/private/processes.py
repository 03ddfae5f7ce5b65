"""Helper processes of this package: how many pay, and starting one with nothing on its module path that happens to lie
around.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
"""The folder that holds this package: a checkout's ``src``, or where it is installed."""


def available_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(module: str, *words: object) -> list[str]:
    """What runs a module of this package in a process of its own; without ``-P`` Python would search the current
    folder first, and run what lies there inside a process that holds secrets.
    """
    return [sys.executable, "-P", "-m", module, *map(str, words)]


def safe_environment() -> dict[str, str]:
    """The environment of such a process: this very copy of the package comes first on its path.

    An empty or relative entry of PYTHONPATH means the current folder, or one inside it, and is left out.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [str(SOURCE), *(entry for entry in entries if os.path.isabs(entry))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}
