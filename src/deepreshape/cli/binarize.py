"""The command that makes a binary network of a trained one: binarize."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from deepreshape.cli.console import into, out, print_json, progress_bar, stoppable, thousands
from deepreshape.cli.options import (
    DataDir,
    Json,
    NewModel,
    SavedDataName,
    Seed,
    Settings,
    Threads,
    TrainedArgument,
    new_model,
    read_pairs,
)

if TYPE_CHECKING:
    from deepreshape.training import Progress

app = typer.Typer()


@app.command()
def binarize(
    model: TrainedArgument,
    to: NewModel,
    layers: Annotated[
        str | None,
        typer.Option(help="Paths of the convolutions, with commas; all inner ones without.", show_default=False),
    ] = None,
    rprelu: Annotated[str, typer.Option(help="What stands where ReLUs stood: prelu (RPReLU), or none: ReLUs stay.")] = (
        "prelu"
    ),
    data: SavedDataName = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Put signs and one-bit weights in a trained network, in two distilled steps."""
    from deepreshape.cli.models import trained_network
    from deepreshape.models.saved import save
    from deepreshape.removal.binarize import binarize as make_binary
    from deepreshape.removal.binarize import binary_recipe
    from deepreshape.training import METRICS

    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError("binarize trains in one process; start it without torchrun")
    new_model(to)
    network, dataset = trained_network(model, data, data_dir, threads)
    recipe = binary_recipe(dataset.name).with_values(read_pairs(settings, "--set"))
    with progress_bar() as bar:
        task = bar.add_task("", total=None)

        def show(step: str, progress: Progress) -> None:
            bar.update(task, description=f"binarize: {step}")
            into(bar, task)(progress)

        binary, record = stoppable(
            lambda: make_binary(
                network.module,
                dataset,
                layers=layers.split(",") if layers else (),
                rprelu=rprelu,  # pyright: ignore[reportArgumentType] - checked there
                recipe=recipe,
                seed=seed,
                folder=to / "run",
                progress=show,
            )
        )
    save(binary, to)
    shutil.rmtree(to / "run")
    if as_json:
        row = record.to_dict()
        tops = {name: value for name, value in row.items() if name.startswith(record.measures)}
        print_json({"signs": record.signs, "relus": record.relus, **tops, "record": row})
        return
    out.print(
        f"{thousands(record.signs)} signs in {len(record.layers)} layers, {thousands(record.relus)} ReLUs left of "
        f"{thousands(record.relus_before)}"
    )
    if record.top1_before is not None:
        out.print(
            f"validation {METRICS[record.measures]} {record.top1_before:.2f} % before, {record.top1_step1:.2f} % with "
            f"signs, {record.top1_validation:.2f} % with one-bit weights too"
        )
    out.print(f"saved in {to}", highlight=False)
