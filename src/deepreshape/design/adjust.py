"""Network Adjustment (Chen et al., CVPR 2020): channels move from layers that use a resource badly to those that use it
well, by measurement.

The utilisation of a layer is how much a trained network's validation loss rises when channels of that layer alone are
dropped at random, at a rate p_l at which every layer would lose the same amount of the resource: with n_l channels, of
which one costs dR/dn_l, F_l = n_l dR/dn_l and p_l = p_0 mean(F) / F_l. In an iteration the K layers of largest
utilisation gain channels and the K of smallest lose as many; then all widths are scaled by one factor until the
network costs what it cost at first, and it is trained anew. The resource is any number that an architecture has:
multiply-adds, parameters, ReLUs, or what an inference takes on the user's link. What bytes and seconds cost rises in
steps, as ciphertexts are either sent or not: a layer in which more channels cost nothing is flat, and said to be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deepreshape.models import ResNet
from deepreshape.nn.channel_dropout import MOST
from deepreshape.training import check_ranges
from deepreshape.training.runs import claim_folder, read_rows, write_rows

__all__ = ["AdjustedStep", "Adjustment", "adjust", "drop_rates", "layer_paths", "layer_widths"]

STEPS = "steps.jsonl"

Resource = Callable[[ResNet], float]
"""What an architecture costs."""

Measure = Callable[[ResNet, int], tuple[float, Callable[[Mapping[str, float], int], float]]]
"""Trains an architecture in an iteration; gives its validation loss, and that loss under channel dropout at these rates
by layer, for a repeat's number."""


@dataclass(frozen=True)
class Adjustment:
    """Settings; the defaults are the published ones.

    Attributes:
        iterations: how often widths are changed.
        gain: of its first width, what the layer of largest utilisation gains in the first iteration; the next ones
            gain ``gain_step`` less each.
        gain_step: see ``gain``.
        moves, moves_step: K is ``moves`` less ``moves_step`` for each iteration done, rounded, at least 1.
        rate: p_0.
        repeats: how often a layer's loss is measured.
        floor: the fewest channels of a layer, or its first width where that is less.
        tolerance: by how much of it the network may cost less than at first.
    """

    iterations: int = 5
    gain: float = 0.15
    gain_step: float = 0.01
    moves: float = 6.0
    moves_step: float = 0.5
    rate: float = 0.05
    repeats: int = 5
    floor: int = 4
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        check_ranges(
            self,
            iterations=(0, 1000),
            gain=(0, 10),
            gain_step=(0, 1),
            moves=(1, 1000),
            moves_step=(0, 100),
            rate=(1e-6, MOST),
            repeats=(1, 1000),
            floor=(1, 10_000),
            tolerance=(1e-6, 1),
        )


@dataclass(frozen=True)
class AdjustedStep:
    """A network on the way.

    Attributes:
        iteration: 0 is the one that it began with.
        network: its name.
        resource: what it costs.
        loss: on the validation split, after training.
        utilisation: by layer, how much the loss rises when the layer loses channels; empty in the last step.
        flat: layers in which a channel costs nothing, which neither gain nor lose.
    """

    iteration: int
    network: str
    resource: float
    loss: float
    utilisation: Mapping[str, float]
    flat: tuple[str, ...] = ()


def layer_paths(architecture: ResNet) -> tuple[str, ...]:
    """The modules whose widths can be set, in the order of ``layer_widths``: convolution and batch norm each."""
    blocks = [
        f"{block.path}.conv{place}" for block in architecture.blocks() for place in range(1, len(block.chain) + 1)
    ]
    return ("stem.conv", *blocks)


def layer_widths(architecture: ResNet) -> tuple[int, ...]:
    """Output channels of every convolution, shortcuts aside."""
    return architecture.layer_widths or (
        architecture.stem_width,
        *(wide for block in architecture.blocks() for _, wide, *_ in block.chain),
    )


def drop_rates(architecture: ResNet, resource: Resource, rate: float) -> tuple[dict[str, float], tuple[str, ...]]:
    """The rates at which all layers lose equally much, and the layers in which a channel costs nothing.

    A layer's price for a channel is a difference over a sixteenth of its width, at least one channel.

    Raises:
        ValueError: if no layer costs anything.
    """
    widths, paths = layer_widths(architecture), layer_paths(architecture)
    now = resource(architecture)
    spent: dict[str, float] = {}
    for place, (path, width) in enumerate(zip(paths, widths, strict=True)):
        more = max(1, width // 16)
        wider = replace(architecture, layer_widths=(*widths[:place], width + more, *widths[place + 1 :]))
        spent[path] = width * (resource(wider) - now) / more
    costly = {path: amount for path, amount in spent.items() if amount > 0}
    if not costly:
        raise ValueError(f"no layer of {architecture.name} costs any of the resource, so none can be exchanged")
    mean = sum(costly.values()) / len(costly)
    rates = {path: min(MOST, rate * mean / amount) for path, amount in costly.items()}
    return rates, tuple(path for path in paths if path not in costly)


def adjust(
    architecture: ResNet,
    measure: Measure,
    resource: Resource,
    config: Adjustment,
    *,
    folder: Path | None = None,
    max_seconds: float = float("inf"),
    report: Callable[[AdjustedStep], None] | None = None,
) -> tuple[AdjustedStep, ...]:
    """Move channels between the layers of a network, at the same cost.

    Args:
        architecture: to begin with.
        measure: trains networks; see :data:`Measure`.
        resource: that is kept.
        config: settings.
        folder: for a row an iteration; an adjustment that was cut there goes on.
        max_seconds: no iteration begins later than this.
        report: told each step when it is done.

    Raises:
        ValueError: if no layer costs any of the resource, or the folder holds another adjustment.
    """
    began = time.monotonic()
    paths, first = layer_paths(architecture), layer_widths(architecture)
    limit = resource(architecture)
    steps: list[AdjustedStep] = []
    rows = folder / STEPS if folder else None
    if folder and rows:
        claim_folder(folder, {"network": architecture.name, "resource": limit, **asdict(config)})
        steps = [_step(row) for row in read_rows(rows)] if rows.is_file() else []
    widths = first
    for iteration in range(config.iterations + 1):
        current = architecture if iteration == 0 else replace(architecture, layer_widths=widths)
        if iteration == len(steps):
            if iteration and time.monotonic() - began > max_seconds:
                break
            last = iteration == config.iterations
            step = _measured(current, measure, resource, config, iteration, last=last)
            steps.append(step)
            if rows:
                write_rows(rows, [asdict(each) for each in steps])
            if report:
                report(step)
        if iteration < config.iterations:
            moved = _moved(dict(zip(paths, widths, strict=True)), first, steps[iteration], config)
            widths = scaled_to(
                replace(architecture, layer_widths=tuple(moved.values())), resource, limit, first, config
            )
    return tuple(steps)


def _measured(
    current: ResNet, measure: Measure, resource: Resource, config: Adjustment, iteration: int, *, last: bool
) -> AdjustedStep:
    rates, flat = drop_rates(current, resource, config.rate)
    loss, dropped = measure(current, iteration)
    utilisation = {}
    if not last:
        for path, rate in rates.items():
            losses = [dropped({path: rate}, repeat) for repeat in range(config.repeats)]
            utilisation[path] = sum(losses) / len(losses) - loss
    return AdjustedStep(iteration, current.name, resource(current), loss, utilisation, flat)


def _moved(now: dict[str, int], first: tuple[int, ...], step: AdjustedStep, config: Adjustment) -> dict[str, int]:
    """Widths after the layers of largest utilisation have gained, and those of smallest have lost."""
    start = dict(zip(now, first, strict=True))
    ranked = sorted(step.utilisation, key=lambda path: -step.utilisation[path])
    moves = max(1, round(config.moves - config.moves_step * step.iteration))
    moves = min(moves, len(ranked) // 2)
    moved = dict(now)
    for place in range(moves):
        share = max(0.0, config.gain - config.gain_step * place)
        for path, sign in ((ranked[place], 1), (ranked[-1 - place], -1)):
            least = min(config.floor, start[path])
            moved[path] = max(least, moved[path] + sign * max(1, round(share * start[path])))
    return moved


def scaled_to(
    wanted: ResNet, resource: Resource, limit: float, first: tuple[int, ...], config: Adjustment
) -> tuple[int, ...]:
    """The widths of a network times one factor, such that it costs at most ``limit`` and little less.

    Where rounding leaves a gap larger than the tolerance, single channels are added while they fit, widest layer first.
    """
    widths = wanted.layer_widths

    def at(factor: float) -> tuple[int, ...]:
        return tuple(
            max(min(config.floor, start), round(factor * width)) for width, start in zip(widths, first, strict=True)
        )

    low, high = 0.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if resource(replace(wanted, layer_widths=at(middle))) <= limit else (low, middle)
    chosen = at(low)
    for place in sorted(range(len(chosen)), key=lambda place: -chosen[place]):
        if resource(replace(wanted, layer_widths=chosen)) >= limit * (1 - config.tolerance):
            break
        wider = (*chosen[:place], chosen[place] + 1, *chosen[place + 1 :])
        if resource(replace(wanted, layer_widths=wider)) <= limit:
            chosen = wider
    return chosen


def _step(row: Mapping[str, object]) -> AdjustedStep:
    values = {**row, "flat": tuple(row["flat"])}  # pyright: ignore[reportArgumentType]
    return AdjustedStep(**values)  # pyright: ignore[reportArgumentType]
