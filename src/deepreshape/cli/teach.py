"""The command that stores a teacher's answers: teach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepreshape.cli.console import (
    DataDir,
    Json,
    SavedDataName,
    Threads,
    out,
    print_json,
    progress_bar,
    read_data,
    set_threads,
    stoppable,
)

app = typer.Typer()


@app.command()
def teach(
    model: Annotated[str, typer.Argument(help="A saved model's folder, or zoo:NAME: the teacher.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for its answers; one that was cut goes on.")],
    views: Annotated[int, typer.Option(min=1, max=1000, help="Windows of every image that it answers.")] = 4,
    keep: Annotated[int, typer.Option(min=1, help="Largest logits of an answer that are stored.")] = 16,
    data: SavedDataName = None,
    data_dir: DataDir = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Store a network's answers to every training image once; `--teacher` of train and linearize takes the folder."""
    from deepreshape.experiments.points import load_fitting
    from deepreshape.models.saved import manifest, weights_digest
    from deepreshape.models.zoo import called, folder_of
    from deepreshape.training import recipe_of
    from deepreshape.training import teach as store

    folder = folder_of(model)
    name = data or manifest(folder).dataset
    set_threads(threads, name)
    dataset = read_data(name, data_dir)
    network = load_fitting(folder, dataset)
    crop, whose = recipe_of(name).crop, f"{called(folder)} {weights_digest(network)}"
    with progress_bar() as bar:
        task = bar.add_task(f"{views} views", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        stoppable(lambda: store(network, dataset, to, views=views, crop=crop, keep=keep, teacher=whose, progress=show))
    kept = min(keep, len(dataset.class_names))
    size = sum(path.stat().st_size for path in to.iterdir())
    values = {"out": str(to), "views": views, "images": len(dataset.whole), "keep": kept, "bytes": size}
    if as_json:
        print_json(values)
    else:
        out.print(f"{views} answers to each of {len(dataset.whole):,} images in {to}, {size / 1e6:.1f} MB")
