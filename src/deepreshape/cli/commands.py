"""All commands, and what the command line says of what goes wrong in them."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from importlib.metadata import version as installed
from itertools import pairwise
from typing import Annotated, Any

import typer
from rich.markup import escape

from deepreshape.cli import (
    binarize,
    cells,
    convex,
    costs,
    exits,
    explain,
    jobs,
    networks,
    private,
    removal,
    search,
)
from deepreshape.cli.console import err, out
from deepreshape.cli.options import PanelCommand, QuietGroup
from deepreshape.private.errors import PrivateError

__all__ = ["app", "run"]

# idle threads that spin take the time of those that work; has to be set before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REMOVED = {
    "--drop-bits": "--relu gc-stochastic:drop=BITS",
    "--mode": "--relu gc-stochastic:drop=BITS,neg-pass",
    "--calibrated": "--relu gc-sign:window or gc-stochastic:window",
}
"""Options that are part of another option's word now."""

EXTRAS = {
    **dict.fromkeys(("torch", "safetensors"), "train"),
    **dict.fromkeys(("cryptography", "nacl", "tenseal", "zstandard", "PIL"), "client"),
    "sklearn": "digits",
}
"""Which extra of the package brings a module that commands need."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Redesign convolutional networks for private inference: count, design, train, remove ReLUs, price, run.",
)
COMMANDS = (networks, costs, search, jobs, removal, binarize, explain)
for commands in (each.app for each in COMMANDS):
    app.registered_commands += commands.registered_commands
app.add_typer(cells.app, name="cells")
app.add_typer(convex.app, name="convex")
app.add_typer(exits.app, name="exits")
app.add_typer(private.app, name="private")
for group in (app, cells.app, convex.app, exits.app, private.app, private.fhe.app):
    group.info.cls = QuietGroup
    for command in group.registered_commands:
        command.cls = PanelCommand


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=lambda wanted: _show_version(wanted), is_eager=True, help="Show it.")
    ] = False,
) -> None: ...


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"deepreshape {installed('deepreshape')}", highlight=False)
        raise typer.Exit


def run() -> None:
    """Run a command; bad input ends with one line and exit code 2, and what is warned of is one line too.

    Raises:
        KeyboardInterrupt: if Ctrl-C came where nothing says what it leaves.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {_warned(str(message))}\n"
    if logging.lastResort:  # what the package logs, where nobody has said otherwise
        logging.lastResort.setFormatter(logging.Formatter("warning: %(message)s"))
    warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")  # what was asked for is done
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except FileExistsError as error:
        line = f"{error.filename} is in the way; choose another name"
    except OSError as error:
        line = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    except (ValueError, OverflowError, PrivateError) as error:  # an input beyond what a program takes overflows
        line = str(error)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        line = f"this needs {error.name}, which is not installed: pip install 'deepreshape[{extra}]'"
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # a full disk, for one; not imported for every command
            line = str(error)
        elif hasattr(error, "format_message"):  # a wrong word; typer has its classes from elsewhere since 0.20
            line = _explained(error)
        elif type(error).__name__ == "Abort":  # what typer makes of Ctrl-C
            raise KeyboardInterrupt from None
        else:
            raise
    if line:  # without any words, help was shown
        err.print(f"[bold red]error:[/] {escape(' '.join(line.split()))}", highlight=False, soft_wrap=True)
    sys.exit(2)


def _warned(text: str) -> str:
    """A warning as one line, without the path where torch was built."""
    return " ".join(re.sub(r"\(Triggered internally at [^)]*\)", "", text).split())


def _explained(error: Any) -> str:
    """What typer has against a word, with the word, or what would have been one."""
    message = error.format_message().rstrip(".")
    removed = getattr(error, "option_name", None)
    if removed in REMOVED:
        return f"{removed} is now part of a word; write {REMOVED[removed]}"
    options = getattr(getattr(error, "param", None), "opts", ())
    given = [word for name, word in pairwise(sys.argv) if name in options]
    if given:
        return f"{message}, not {given[-1]!r}"
    context = getattr(error, "ctx", None)
    known = getattr(context and context.command, "commands", {})
    for name, group in known.items():
        for word in getattr(group, "commands", {}):
            if repr(word) in message:
                return f"{message}; there is `deepreshape {name} {word}`"
    return f"{message}; there are {', '.join(sorted(known))}" if message and known else message
