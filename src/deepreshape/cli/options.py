"""What commands take: options that they share, their headings in help, and reading of values."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from deepreshape.cli.console import reader_left

if TYPE_CHECKING:
    from deepreshape.data import Dataset
    from deepreshape.training import Recipe


MODEL = "A network's name, a saved model's folder, zoo:NAME, package.module:callable or file.py:callable."
ModelArgument = Annotated[str, typer.Argument(help=MODEL)]
TrainedArgument = Annotated[
    str, typer.Argument(help="A saved model's folder, zoo:NAME, package.module:callable or file.py:callable.")
]
NewModel = Annotated[Path, typer.Option("--out", help="Folder for the model; a run that was cut there goes on.")]
Classes = Annotated[int, typer.Option(min=1, help="Number of classes, where the name does not fix it.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DataName = Annotated[
    str,
    typer.Option(
        "--data",
        help="digits, digit-sums (pairs of them, the class is their sum), cifar10, cifar100, cifar100-coarse "
        "(20 superclasses), tinyimagenet; with a class for each pixel shapes (drawn from a seed), camvid, "
        "camvid-120x96 (windows of its frames); folder:PATH (a folder of images for each class, or images and maps of "
        "the same names; folder:PATH:64 crops them to 64x64), or file.py:callable that gives a deepreshape.Dataset.",
    ),
]
SavedDataName = Annotated[
    str | None,
    typer.Option("--data", help="Data set, as for `train`; the one it was trained on without.", show_default=False),
]
InputData = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Data set whose images are taken: a name, folder:PATH, folder:PATH:SIDE or file.py:callable; else a saved "
        "model's own.",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with the data sets; else DEEPRESHAPE_DATA, else ./data.", show_default=False)
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of everything random.")]
Threads = Annotated[
    int,
    typer.Option(min=0, help="Threads; 0 is torch's choice, and 1 for the digits, whose maps are too small to share."),
]
ProfileFile = Annotated[
    Path | None,
    typer.Option(help="What `calibrate` wrote; the profile that comes with the package without.", show_default=False),
]
ObjectiveWord = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="What auto chooses for: seconds (without), bytes, or online, the seconds of a query that is prepared.",
        show_default=False,
    ),
]


def setting(help: str) -> Any:
    """The option ``--set``, which is given once for each setting; its parameter is ``list[str] | None``."""
    return typer.Option("--set", help=help, show_default=False)


Settings = Annotated[list[str] | None, setting("A setting of the recipe, such as lr=0.1; may be repeated.")]
MacsLevels = Annotated[
    str | None,
    typer.Option(
        "--macs",
        help="Multiply-adds, such as 35e6,66e6: each named network stands at the base widths that have so many, within "
        "15 %.",
        show_default=False,
    ),
]
PictureOption = Annotated[
    Path | None,
    typer.Option(
        help="Where every pixel has a class: a PNG to write, whose palette has the colours of the classes; of several "
        "images one each, with their numbers in the names.",
        show_default=False,
    ),
]
ExitPoint = Annotated[
    int | None,
    typer.Option(
        "--exit",
        help="Of a network with exits: up to the one after this stage; the whole without.",
        show_default=False,
    ),
]
ExitWord = Annotated[
    str | None,
    typer.Option(
        "--exit",
        help="Of a network with exits: a stage, whose exit answers all; or dynamic, dynamic:0.8 (the confidence that "
        "ends) or dynamic:0.8:1.2 (and the exits asked): the client asks on where it is not sure.",
        show_default=False,
    ),
]

MANY = 8
"""A command with more options than these shows them in groups."""

PANELS = {
    "Network": "activation at base baseline block bounds classes exit fix heads init input layers max_pool model norm "
    "networks order phi rprelu stages strides teacher",
    "Data": "data data_dir facts images row samples subsample target test_share",
    "Training": "distill epochs gates keep lam reduced_epochs seed seeds settings threads tol trunk views",
    "Removal": "budget budgets granularity method methods price",
    "Search": "by evidence iterations like loss macs max_bytes max_macs max_minutes max_relus max_seconds resource "
    "train trials",
    "Protocol": "cot garbler max_loss objective protocol relu slots workers",
    "Link and machines": "arrivals link profile storage",
    "Parties": "circuit count forget host keys name pin port program secret store",
    "Service": "days gigabytes pending sessions status_port until",
    "Quotas of each client": "batch_days batches_each gigabytes_each queries_day_each queries_hour_each sessions_each",
    "Output": "as_json page picture plot private to",
}
"""By heading, the parameters under it, in the order in which help shows the headings."""


class QuietGroup(TyperGroup):
    """A group of commands whose help may be cut off by its reader."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _cut_off():
            super().format_help(ctx, formatter)


@contextmanager
def _cut_off() -> Generator[None]:
    """Help is written to a console of typer's, which ends with exit code 1 where its reader has enough."""
    try:
        yield
    except SystemExit:
        reader_left()


class PanelCommand(TyperCommand):
    """A command whose help groups its options, if they are more than :data:`MANY`, and may be cut off."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _cut_off():
            super().format_help(ctx, formatter)

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        options = [param for param in self.params if isinstance(param, TyperOption)]
        if len(options) > MANY:
            headings = {name: heading for heading, names in PANELS.items() for name in names.split()}
            for option in options:
                option.rich_help_panel = option.rich_help_panel or headings.get(option.name or "")
            places = list(PANELS)
            self.params.sort(key=lambda param: places.index(heading) if (heading := _heading(param)) in places else -1)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Typer's numbers may be NaN or infinite, and its words empty; no option means one of these."""
        for before, word in pairwise(["", *args]):
            if not word or (word.startswith("--") and word.endswith("=")):
                option = word[:-1] or (before if before.startswith("-") else "")
                raise ValueError(f"{option} has an empty value" if option else "an empty word is no argument")
        rest = super().parse_args(ctx, args)
        for param in self.params:
            value = ctx.params.get(param.name)
            if isinstance(value, float) and not isfinite(value):
                raise ValueError(f"{param.opts[0]} takes a finite number, not {value}")
        return rest


def _heading(param: Any) -> str:
    return getattr(param, "rich_help_panel", None) or ""


def read_data(word: str, data_dir: Path | None) -> Dataset:
    """The data set meant by a name, ``folder:PATH``, ``folder:PATH:SIDE``, ``file.py:callable`` or ``module:callable``.

    Raises:
        ValueError: if there is none.
    """
    from deepreshape.data import Dataset

    if ":" not in word or word.startswith("folder:"):
        return Dataset.load(word, data_dir)
    from deepreshape.cli.models import made_by

    data = made_by(word, "a data set")
    if not isinstance(data, Dataset):
        raise ValueError(
            f"{word!r} gives a {type(data).__name__}, not a deepreshape.Dataset; Dataset.from_loader makes one"
        )
    return replace(data, name=word)


def scaled_names(names: tuple[str, ...], levels: str, data: Dataset) -> tuple[str, ...]:
    """The names of the networks at the base widths that have so many multiply-adds, level by level.

    Args:
        names: of networks that are trained here.
        levels: numbers with commas between.
        data: whose images they take.

    Raises:
        ValueError: if one is no network's name, or no number, or no base width fits.
    """
    from deepreshape.design.base_width import scaled_to_macs
    from deepreshape.models import architecture_for

    try:
        macs = [float(level) for level in levels.split(",")]
    except ValueError:
        raise ValueError(f"--macs takes numbers with commas between, such as 35e6,66e6, not {levels!r}") from None
    whole = [architecture_for(name, data) for name in names]
    return tuple(dict.fromkeys(scaled_to_macs(each, level).name for level in macs for each in whole))


def read_recipe(data: str, settings: list[str] | None) -> Recipe:
    """The recipe of a data set with the settings given as name=value."""
    from deepreshape.training import recipe_of

    return recipe_of(data).with_values(read_pairs(settings, "--set"))


def set_threads(threads: int, data: str | None) -> None:
    """Use as many threads; without a number, torch decides, but one for the digits."""
    import torch

    if threads or data in ("digits", "digit-sums", "shapes"):
        torch.set_num_threads(threads or 1)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take options that belong together as one parameter, a dataclass: typer sees its fields instead."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)}
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            grouped = inspect.signature(groups[name]).parameters
            shown += [grouped[part].replace(annotation=types[part], kind=parameter.KEYWORD_ONLY) for part in grouped]
        else:
            shown.append(parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY))

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{part.name: given.pop(part.name) for part in fields(group)})
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    run.__signature__ = inspect.Signature(shown)  # pyright: ignore[reportFunctionMemberAccess] - what typer looks at
    return run


def new_file(path: Path, ending: str = "") -> None:
    """See that a file can be written there, before the work and not after it.

    Args:
        path: of the file.
        ending: that its name is to have, for the kind of file that is written; any without.

    Raises:
        ValueError: if it is a folder, or in none that exists, or has the name of another kind of file.
    """
    if ending and path.suffix.lower() != ending:
        raise ValueError(f"{path} cannot be written: it is to be of the kind {ending}, so give a name that ends so")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'its folder is missing'}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"{path} cannot be written: you may not write {'it' if path.exists() else 'to its folder'}")


def new_model(folder: Path) -> None:
    """See that no finished model would be written over, nor what others keep where checkpoints are to lie.

    Raises:
        ValueError: if there is one, or no folder can be there.
    """
    from deepreshape.models.saved import MANIFEST
    from deepreshape.training.runs import RUN

    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is a file; a model is written to a folder")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{folder} cannot be written: you may not write to {nearest}")
    if (folder / MANIFEST).is_file() and not (folder / "run").is_dir():
        raise ValueError(f"{folder} holds a finished model; choose another folder for what comes out")
    run = folder / "run"
    if run.is_dir() and any(run.iterdir()) and not any(run.rglob(RUN)):
        raise ValueError(
            f"{run} is no run of this package and would be removed; choose another folder for what comes out"
        )


def read_pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """Splits each ``name=value``; no name may come twice."""
    pairs: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"{option} takes name=value, not {text!r}")
        if name in pairs:
            raise ValueError(f"{option} has two values for {name}: {pairs[name]} and {value}")
        pairs[name] = value
    return pairs


def read_integers(text: str, option: str, length: int | None = None) -> tuple[int, ...]:
    """Integers from 0 up with commas between, ``length`` of them if given."""
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        kind = "an integer" if length == 1 else "integers with commas between"
        raise ValueError(f"{option} takes {kind}, not {text!r}")
    values = tuple(int(part) for part in text.split(","))
    if length is not None and len(values) != length:
        raise ValueError(f"{option} takes {length} integers, not {text!r}")
    return values


def read_shape(text: str) -> tuple[int, int, int]:
    """Reads channels x height x width."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"--input takes channels x height x width, such as 3x32x32, not {text!r}")
    channels, height, width = map(int, parts)
    return channels, height, width
