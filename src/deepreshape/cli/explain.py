"""The command that looks for ReLUs that do nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from deepreshape.cli.console import (
    MODEL,
    NOTHING_KEPT,
    DataDir,
    Json,
    Threads,
    bytes_bar,
    new_table,
    out,
    print_json,
    set_threads,
    stoppable,
    thousands,
)

app = typer.Typer()


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data_dir: DataDir = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Find ReLUs that never fire on the training split, or always do: they could go without a change there."""
    from deepreshape.cli.models import find_network
    from deepreshape.data import Dataset
    from deepreshape.explain.dead import firing

    network = find_network(model)
    if network.manifest is None or not network.manifest.dataset:
        raise ValueError(
            f"{model} is not a saved model of a data set; what fires depends on the images it was made for"
        )
    data = Dataset.load(network.manifest.dataset, data_dir)
    set_threads(threads, data.name)
    with bytes_bar("images") as show:
        found = stoppable(lambda: firing(network.module, data, show), NOTHING_KEPT)
    rows = [
        {"name": path, "kept": int(site.kept.sum()), "never": int(site.never.sum()), "always": int(site.always.sum())}
        for path, site in found.items()
    ]
    free = sum(row["never"] + row["always"] for row in rows)
    if as_json:
        print_json({"images": len(data.train), "sites": rows, "free": free})
        return
    table = new_table("site", "ReLUs", "never", "always")
    for row in rows:
        table.add_row(row["name"], *(thousands(row[name]) for name in ("kept", "never", "always")))
    out.print(table)
    total = sum(row["kept"] for row in rows)
    out.print(
        f"{free:,} of {total:,} ReLUs never or always fire on {len(data.train):,} training images: a 0 or the identity "
        "in their place changes nothing there",
        highlight=False,
    )
