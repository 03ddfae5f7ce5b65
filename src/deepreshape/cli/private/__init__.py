"""Commands that run a network between two parties: local, lower, keygen, serve, prepare, query; and fhe."""

from __future__ import annotations

import typer

from deepreshape.cli.private import fhe, local, lower, parties

__all__ = ["app", "fhe"]

app = typer.Typer(no_args_is_help=True, help="Run a network privately between a client and a server.")
for commands in (local.app, lower.app, parties.app):
    app.registered_commands += commands.registered_commands
app.add_typer(fhe.app, name="fhe")
