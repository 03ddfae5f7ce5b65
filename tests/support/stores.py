"""Stores of offline batches, and processes that use them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deepreshape.private.parties import store as store_module
from deepreshape.private.parties.manifest import Binding
from deepreshape.private.parties.store import Store

BINDING = Binding("ab" * 32, "cd" * 32, {"bits": 32, "garbler": "server"})
ONE, TWO = "1" * 64, "2" * 64
CHUNKS = [b"first chunk", b"", bytes(5000), b"last"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(store_module.__file__).parents[3])}
"""Of a process with the package on its path."""


def prepare(store: Store, session: str = ONE, binding: Binding = BINDING) -> None:
    with store.create(binding, session) as writer:
        for chunk in CHUNKS:
            writer.write("layer1.tables", chunk)
        writer.write("layer1.labels", b"labels")
        writer.commit()


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} - {"lock"}


def python(code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )
