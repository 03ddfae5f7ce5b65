"""The command line: the only place that prints, shows progress, or exits."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from typing import Any

import typer
from rich.markup import escape

from deepreshape.cli import costs, jobs, networks, private, removal, search
from deepreshape.cli.console import err
from deepreshape.private.errors import PrivateError

__all__ = ["app", "main"]

# idle threads that spin take the time of those that work; has to be set before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REMOVED = {
    "--drop-bits": "--relu gc-stochastic:drop=BITS",
    "--mode": "--relu gc-stochastic:drop=BITS,neg-pass",
    "--calibrated": "--relu gc-sign:window or gc-stochastic:window",
}
"""Options that are part of another option's word now."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Redesign convolutional networks for private inference: count, design, train, remove ReLUs, price.",
)
for commands in (networks.app, costs.app, search.app, jobs.app, removal.app):
    app.registered_commands += commands.registered_commands
app.add_typer(private.app, name="private")


def main() -> None:
    """Run the command line; bad input ends with one line and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (ValueError, OSError, PrivateError) as error:
        said = str(error)
    except Exception as error:  # a wrong word on the command line: typer has its classes from elsewhere since 0.20
        if not hasattr(error, "format_message"):
            raise
        said = _explained(error)
    if said:  # without any words, help was shown
        err.print(f"[bold red]error:[/] {escape(' '.join(said.split()))}", highlight=False, soft_wrap=True)
    sys.exit(2)


def _explained(error: Any) -> str:
    """What typer has against a word, with the word, or what would have been one."""
    said = error.format_message().rstrip(".")
    removed = getattr(error, "option_name", None)
    if removed in REMOVED:
        return f"{removed} is now part of a word; write {REMOVED[removed]}"
    options = getattr(getattr(error, "param", None), "opts", ())
    given = [word for name, word in pairwise(sys.argv) if name in options]
    if given:
        return f"{said}, not {given[-1]!r}"
    context = getattr(error, "ctx", None)
    known = getattr(context and context.command, "commands", {})
    return f"{said}; there are {', '.join(sorted(known))}" if said and known else said
