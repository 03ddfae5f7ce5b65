"""The command line: the only place that prints, shows progress, or exits."""

from __future__ import annotations

import os
import sys

import typer
from rich.markup import escape

from deepreshape.cli import costs, jobs, networks, private, removal, search
from deepreshape.cli.console import err
from deepreshape.private import PrivateError

__all__ = ["app", "main"]

# idle threads that spin take the time of those that work; has to be set before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
        app()
    except (ValueError, OSError, PrivateError) as error:
        err.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", highlight=False, soft_wrap=True)
        sys.exit(2)
