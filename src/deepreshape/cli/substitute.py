"""The command that puts other layers in place of those that do not run privately: substitute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepreshape.cli.console import (
    TRAINED,
    DataDir,
    Json,
    SavedDataName,
    Settings,
    Threads,
    new_model,
    out,
    print_json,
    read_pairs,
    stoppable,
)

app = typer.Typer()


@app.command()
def substitute(
    model: Annotated[str, typer.Argument(help=TRAINED)],
    to: Annotated[Path, typer.Option("--out", help="Folder for the model.")],
    activation: Annotated[
        str | None, typer.Option(help="What takes the place of every other activation: relu.", show_default=False)
    ] = None,
    max_pool: Annotated[
        str | None, typer.Option(help="What takes the place of max pools: avg.", show_default=False)
    ] = None,
    data: SavedDataName = None,
    data_dir: DataDir = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the fine-tuning.")] = 0,
    settings: Settings = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Put ReLUs and average pools in place of what does not run privately, and fine-tune the network."""
    from deepreshape.cli.models import trained_network
    from deepreshape.models import convert
    from deepreshape.models.saved import save
    from deepreshape.removal import substitute as substitute_layers
    from deepreshape.removal import tuning_recipe
    from deepreshape.removal.substitute import ACTIVATIONS, POOLS

    new_model(to)
    if activation not in (None, "relu") or max_pool not in (None, "avg") or not (activation or max_pool):
        raise ValueError(
            f"--activation {activation} --max-pool {max_pool}: give --activation relu, --max-pool avg, or both"
        )
    network, dataset = trained_network(model, data, data_dir, threads)
    whole = convert(network.module.eval(), dataset.shape)
    recipe = tuning_recipe(whole, dataset).with_values(dict(read_pairs(settings, "--set")))
    layers: dict[str, str] = {**dict.fromkeys(ACTIVATIONS, "ReLU")} if activation else {}
    layers |= {**dict.fromkeys(POOLS, "avg")} if max_pool else {}
    changed, record = stoppable(lambda: substitute_layers(whole, layers, dataset, recipe=recipe, seed=seed))
    save(changed, to)
    if as_json:
        print_json(record.to_dict())
        return
    for path, (before, after) in record.replaced.items():
        out.print(f"{path}: {after} in place of {before}", highlight=False)
    if record.top1_before is not None:
        steps = (record.top1_before, record.top1_substituted, record.top1_after)
        out.print("validation top-1 {:.2f} % before, {:.2f} % substituted, {:.2f} % fine-tuned".format(*steps))
    out.print(f"saved in {to}")
