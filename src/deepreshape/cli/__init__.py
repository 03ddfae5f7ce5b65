"""The command line: the only place that prints, shows progress, or exits."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C while modules are imported, or before a command's work begins, is one line."""
    try:
        from deepreshape.cli.commands import run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)
