"""The command line, called in this process."""

import io
import json
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from deepreshape.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


def call(*words: str, cwd: Path | None = None) -> Done:
    """What the command line does, in this process: importing torch anew takes seconds."""
    stdout, stderr, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["deepreshape", *words]
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr), chdir(cwd or "."), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
    return Done(int(ended.value.code or 0), stdout.getvalue(), stderr.getvalue())


def refusal(*words: str, cwd: Path | None = None) -> str:
    """The one line with which the command line refuses; warnings may stand before it."""
    done = call(*words, cwd=cwd)
    assert done.code == 2
    *before, last = done.err.splitlines()
    assert last.startswith("error: ")
    assert not any(line.startswith(("error", "Traceback")) for line in before)
    return last


def answer(*words: str, cwd: Path | None = None) -> dict:
    done = call(*words, "--json", cwd=cwd)
    assert done.code == 0, done.err
    return json.loads(done.out)
