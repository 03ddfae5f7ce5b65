"""What Network Adjustment asks of others: training under channel dropout, the validation loss, and what widths cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.design.adjust import Measure, Resource, layer_paths
from deepreshape.design.base_width import multiply_adds
from deepreshape.models import ResNet, build
from deepreshape.nn.channel_dropout import channel_dropout
from deepreshape.pricing.quote import Terms, quote_layers
from deepreshape.training import Hook, Progress, Recipe, TrainingRun, objective_of
from deepreshape.training.runs import claim_folder

__all__ = ["measure_by_training", "resource_of"]

EVAL_BATCH = 1000


class _Growing(Hook):
    """The hook of a training: a dropout rate that grows with the epochs and with the depth of the layer."""

    def __init__(self, paths: tuple[str, ...], rate: float, seed: int) -> None:
        self.most = {path: rate * place / max(1, len(paths) - 1) for place, path in enumerate(paths)}
        self.rates = dict.fromkeys(paths, 0.0)
        self.generator, self.seed = torch.Generator(), seed

    def before(self, step: int, steps: int) -> None:
        """Noise follows from the number of the step, so that a run that was cut sees the same."""
        self.generator.manual_seed((step + 1_000_003 * self.seed + 31) % 2**32)
        self.rates.update((path, most * step / steps) for path, most in self.most.items())

    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        """No noise where the network is judged."""
        self.rates.update(dict.fromkeys(self.rates, 0.0))


def measure_by_training(
    data: Dataset,
    recipe: Recipe,
    *,
    rate: float,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Measure:
    """How :func:`~deepreshape.design.adjust.adjust` measures an architecture: by training it from fresh weights.

    Args:
        data: its test split is not touched.
        recipe: of each training; its validation split is held out.
        rate: of channel dropout in training, at its end and in the last layer; it grows to that with both.
        seed: of weights, training and noise.
        folder: for checkpoints; a training that was cut there goes on.
        progress: called after every step.

    Raises:
        ValueError: if the recipe trains on the validation split, whose loss decides, or the folder holds measurements
            of other data or with other settings.
    """
    if not recipe.holdout or not len(data.validation):
        raise ValueError("widths are chosen by the validation loss: leave holdout on, and data with a validation split")

    if folder:
        claim_folder(folder, {"data": data.name, "recipe": asdict(recipe), "rate": rate, "seed": seed})

    def measure(architecture: ResNet, iteration: int) -> tuple[float, Callable[[Mapping[str, float], int], float]]:
        model = build(architecture, seed=seed)
        growing = _Growing(layer_paths(architecture), rate, seed)
        with channel_dropout(model, growing.rates, growing.generator):
            run = TrainingRun(model, data, recipe, seed=seed, hook=growing)
            run.complete(folder / f"iteration-{iteration}" if folder else None, progress)

        def dropped(rates: Mapping[str, float], repeat: int) -> float:
            generator = torch.Generator().manual_seed(7919 * seed + repeat)
            with channel_dropout(model, rates, generator):
                return validation_loss(model, data)

        return validation_loss(model, data), dropped

    return measure


@torch.no_grad()
def validation_loss(model: nn.Module, data: Dataset) -> float:
    """Mean loss of the data set's objective on the validation split, in evaluation mode and without smoothing."""
    model.eval()
    device = next(model.parameters()).device
    total, objective, plain = 0.0, objective_of(data), Recipe(smoothing=0.0)
    for images, labels in data.validation.batches(EVAL_BATCH):
        outputs = model(data.normalize(images.to(device)))
        total += len(images) * float(objective.loss(outputs, labels.to(device), None, plain))
    return total / len(data.validation)


def resource_of(name: str, terms: Terms) -> Resource:
    """What an architecture has of a resource.

    Args:
        name: macs, params, relus, or, of an inference under ``terms``, seconds or bytes.
        terms: protocol and link.

    Raises:
        ValueError: if it is no resource.
    """
    match name:
        case "macs":
            return lambda network: float(multiply_adds(network))
        case "params":
            return lambda network: float(count(build(network, "meta"), network.input).total.params)
        case "relus":
            return lambda network: float(network.relus)
        case "seconds":
            return lambda network: quote_layers(network.layers(), terms).seconds
        case "bytes":
            return lambda network: float(quote_layers(network.layers(), terms).report.bytes)
        case _:
            raise ValueError(f"unknown resource {name!r}; known are macs, params, relus, seconds and bytes")
