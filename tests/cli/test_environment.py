"""The command line in poor environments: without torch, without a reader, on a full disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import deepreshape

WITHOUT_TORCH = """
import sys
for name in ("torch", "safetensors", "sklearn", "llvmlite"):
    sys.modules[name] = None
"""
RUN = "from deepreshape.cli import main\nsys.argv[0] = 'deepreshape'\nmain()\n"


def python(code: str, *words: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, **settings)


def test_the_version_is_told():
    assert deepreshape.__version__
    told = python("import sys\n" + RUN, "--version")
    assert (told.returncode, told.stdout) == (0, f"deepreshape {deepreshape.__version__}\n")


def test_a_command_without_torch_says_what_to_install():
    told = python(WITHOUT_TORCH + RUN, "count", "resnet18")
    assert told.returncode == 2
    assert told.stderr == "error: this needs torch, which is not installed: pip install 'deepreshape[train]'\n"


@pytest.mark.parametrize("words", [("--help",), ("private", "query", "--help"), ("private", "serve", "--help")])
def test_help_needs_no_torch(words: tuple[str, ...]):
    assert python(WITHOUT_TORCH + RUN, *words).returncode == 0


INTERRUPTED = """
import signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == {name!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.parametrize("name", ["typer", "deepreshape.private.errors", "torch"])
def test_an_interrupt_while_modules_are_imported_is_one_line_at_most(name: str):
    """Of the command line itself; of the command, typer may end without a word."""
    told = python(INTERRUPTED.format(name=name) + RUN, "count", "resnet18")
    assert (told.returncode, told.stdout) == (130, "")
    assert told.stderr.strip() == "stopped" or (name == "torch" and not told.stderr)


def test_a_client_needs_no_torch(tmp_path: Path):
    told = python(WITHOUT_TORCH + "from deepreshape import Client\nClient(sys.argv[1], keys='k')", str(tmp_path))
    assert f"ValueError: {tmp_path} holds no client.program" in told.stderr
    keys = python(WITHOUT_TORCH + RUN, "private", "keygen", "--out", str(tmp_path / "keys"))
    assert keys.returncode == 0, keys.stderr


@pytest.mark.parametrize("words", [("design", "--json"), ("--help",), (), ("private",), ("train", "--help")])
def test_a_reader_that_has_enough_is_no_error(words: tuple[str, ...]):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "deepreshape", *words]
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True) as process:
        os.close(write)
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "deepreshape", "design", "--json"]
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert told.stderr.startswith("error: No space left on device")
    assert told.stderr.count("\n") == 1
