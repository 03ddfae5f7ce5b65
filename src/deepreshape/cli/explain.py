"""The command that looks into a trained network: ReLUs that do nothing, and what a unit looks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepreshape.cli.console import NOTHING_KEPT, count_bar, new_table, out, print_json, stoppable, thousands
from deepreshape.cli.options import DataDir, Json, ModelArgument, Threads, new_file, set_threads, with_groups

if TYPE_CHECKING:
    from deepreshape.cli.models import Network

app = typer.Typer()


@dataclass(frozen=True)
class Ascent:
    """Options of activation maximization."""

    maximize: Annotated[
        str | None,
        typer.Option(
            help="Look for inputs that maximize a unit instead: LAYER:UNIT, such as stage2.pair.act1:3.",
            show_default=False,
            rich_help_panel="Activation maximization",
        ),
    ] = None
    mode: Annotated[
        str,
        typer.Option(
            help="split (slope in the backward pass), proxy (in both) or redirected (straight through for 16 steps); "
            "the plain gradient is shown beside it.",
            rich_help_panel="Activation maximization",
        ),
    ] = "split"
    slope: Annotated[float, typer.Option(help="Where ReLUs are off.", rich_help_panel="Activation maximization")] = 0.1
    starts: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Random images to start from.", rich_help_panel="Activation maximization"),
    ] = 8
    seed: Annotated[int, typer.Option(min=0, help="Of the starts.", rich_help_panel="Activation maximization")] = 0
    page: Annotated[
        Path | None,
        typer.Option(
            "--out", help="HTML page with the images.", show_default=False, rich_help_panel="Activation maximization"
        ),
    ] = None


@app.command()
@with_groups
def inspect(
    model: ModelArgument,
    ascent: Ascent,
    data_dir: DataDir = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Find ReLUs that never fire on the training split, or always do; or what a unit looks for (--maximize)."""
    from deepreshape.cli.models import find_network
    from deepreshape.data import Dataset
    from deepreshape.explain.dead import firing

    network = find_network(model)
    if network.manifest is None or not network.manifest.dataset:
        raise ValueError(
            f"{model} is not a saved model of a data set; what fires depends on the images it was made for"
        )
    if ascent.maximize is not None:
        set_threads(threads, network.manifest.dataset)
        _maximize(model, network, ascent, as_json=as_json)
        return
    if ascent.page:
        raise ValueError(f"--out {ascent.page} is for --maximize LAYER:UNIT; the table goes to standard output")
    data = Dataset.load(network.manifest.dataset, data_dir)
    set_threads(threads, data.name)
    with count_bar("images") as show:
        firings = stoppable(lambda: firing(network.module, data, show), NOTHING_KEPT)
    rows = [
        {"name": path, "kept": int(site.kept.sum()), "never": int(site.never.sum()), "always": int(site.always.sum())}
        for path, site in firings.items()
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
    if free:
        out.print(f"remove them first: deepreshape linearize {model} --method dead --out FOLDER", highlight=False)


def _maximize(model: str, network: Network, ascent: Ascent, *, as_json: bool) -> None:
    import torch

    from deepreshape.explain.maximize import MODES, maximize
    from deepreshape.report.maxima import page_of_maxima

    layer, colon, unit = (ascent.maximize or "").rpartition(":")
    if not colon or not unit.isdecimal():
        raise ValueError(f"--maximize takes LAYER:UNIT, such as stage2.pair.act1:3, not {ascent.maximize!r}")
    if ascent.mode not in MODES:
        raise ValueError(f"--mode is one of {', '.join(MODES)}, not {ascent.mode!r}")
    if ascent.page:
        new_file(ascent.page)
    manifest = network.manifest
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (manifest.mean, manifest.std))  # pyright: ignore
    generator = torch.Generator().manual_seed(ascent.seed)
    starts = (torch.rand(ascent.starts, *network.shape, generator=generator) - mean) / std
    box = -mean / std, (1 - mean) / std
    maxima = stoppable(
        lambda: {
            mode: maximize(network.module, layer, int(unit), starts, box, mode=mode, slope=ascent.slope)  # pyright: ignore
            for mode in dict.fromkeys(("plain", ascent.mode))
        },
        NOTHING_KEPT,
    )
    if ascent.page:
        pixels = {
            mode: ((images.inputs * std + mean) * 255).round().clamp(0, 255).byte() for mode, images in maxima.items()
        }
        command = f"deepreshape inspect {model} --maximize {layer}:{unit} --mode {ascent.mode} --slope {ascent.slope:g}"
        command += f" --starts {ascent.starts} --seed {ascent.seed} --out {ascent.page.name}"
        ascent.page.write_text(page_of_maxima(f"{model}: unit {unit} of {layer}", maxima, pixels, command))
    rows = [
        {"mode": mode, "moved": images.moved, "mean": float(images.values.mean()), "best": float(images.values.max())}
        for mode, images in maxima.items()
    ]
    if as_json:
        print_json({"layer": layer, "unit": int(unit), "slope": ascent.slope, "starts": ascent.starts, "modes": rows})
        return
    table = new_table("gradient", "starts with one", "mean value", "best value")
    for row in rows:
        table.add_row(row["mode"], f"{row['moved']} of {ascent.starts}", f"{row['mean']:.4g}", f"{row['best']:.4g}")
    out.print(table)
    if ascent.page:
        out.print(f"the images are in {ascent.page}", highlight=False)
