"""Other activations, pools and norms in place of what does not run privately, and a fine-tuning that mends the cost.

GELU, SiLU and their like become ReLUs, which a method of this room can then remove, or stay near what they are as hard
swishes and their like, which gates need; max pools become average pools of the same windows; norms by groups, which
divide by what depends on the input, become batch norms with statistics of the training images. The network that came
teaches the one with the substitutes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepreshape.data import Dataset
from deepreshape.models import Foreign, convert
from deepreshape.models.foreign import traced
from deepreshape.models.saved import note_step, weights_digest
from deepreshape.nn import require_finite
from deepreshape.removal.method import see_classes, tuning_recipe
from deepreshape.training import Progress, Recipe, TrainingRun, accuracy, objective_of
from deepreshape.training.runs import claim_folder, measured_as

__all__ = ["ACTIVATIONS", "HARD", "NORMS", "POOLS", "SMOOTH", "Substitution", "substitute"]

SMOOTH: tuple[str, ...] = ("ELU", "GELU", "Mish", "SiLU", "Sigmoid", "Softplus", "Tanh")
"""Activations that do not run privately."""
ACTIVATIONS: tuple[str, ...] = tuple(
    sorted((*SMOOTH, "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "PReLU", "ReLU6"))
)
HARD: Mapping[str, str] = {"SiLU": "Hardswish", "Sigmoid": "Hardsigmoid", "Tanh": "Hardtanh"}
"""What of straight pieces, or squares, is near these activations (Howard et al., MobileNetV3, ICCV 2019)."""
POOLS: tuple[str, ...] = ("MaxPool2d", "AdaptiveMaxPool2d")
NORMS: tuple[str, ...] = ("GroupNorm", "InstanceNorm1d", "InstanceNorm2d")
MEASURED = 2048
"""How many training images the first statistics of a batch norm are of."""


@dataclass(frozen=True)
class Substitution:
    """The record of what :func:`substitute` did.

    Attributes:
        replaced: by the path of a layer, its class and the class that took its place.
        top1_before, top1_substituted, top1_after: validation top-1 in percent: of the network that came, with the
            substitutes, and after fine-tuning; none where the validation split was trained on.
        recipe: of the fine-tuning.
        seed: of it.
        measures: the word for the metric, which :meth:`to_dict` has in place of ``top1``.
    """

    replaced: dict[str, tuple[str, str]]
    top1_before: float | None
    top1_substituted: float | None
    top1_after: float | None
    recipe: dict[str, Any]
    seed: int
    measures: str = "top1"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"method": "substitute", **measured_as(asdict(self))}


def substitute(
    model: nn.Module,
    layers: Mapping[str, str],
    data: Dataset,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[nn.Module, Substitution]:
    """Put other layers in a trained network, and train it.

    Args:
        model: any torch module; it is left as it was.
        layers: by the class of a layer (:data:`ACTIVATIONS`, :data:`POOLS`, :data:`NORMS`), what takes its place:
            ``"ReLU"`` for an activation, or the one that :data:`HARD` has for it; ``"avg"`` for a pool; ``"batch"`` for
            a norm.
        data: its test split is not touched.
        recipe: of the fine-tuning; :func:`~deepreshape.removal.method.tuning_recipe` without one.
        seed: of the fine-tuning.
        folder: for checkpoints; a run that was cut there goes on.
        progress: called after every step of the fine-tuning.

    Returns:
        The network, in evaluation mode, and the record.

    Raises:
        ValueError: if a layer cannot be replaced so, the network has none of them, or the folder holds another run.
    """
    require_finite(model)
    device = next(model.parameters()).device
    batch = data.normalize(data.train.images[:8].to(device))
    whole = convert(model, batch)
    see_classes(whole, data)
    architecture = whole.architecture
    if not isinstance(architecture, Foreign):
        raise ValueError("a network of this package has ReLUs already, and average pools by its name: resnet9-avg")
    _see_pairs(layers)
    places = {path: module for path, module in whole.named_modules() if type(module).__name__ in layers}
    changed, replaced = copy.deepcopy(whole).eval(), {}
    axes = _axes(changed, places, batch)
    for path, module in places.items():
        other = _instead(path, module, layers[type(module).__name__], axes[path])
        changed.set_submodule(path, other.to(device))
        replaced[path] = type(module).__name__, type(other).__name__
    if not replaced:
        held = sorted({type(module).__name__ for module in whole.modules() if not [*module.children()]})
        raise ValueError(f"the network has no {' or '.join(layers)} to replace; its layers are {', '.join(held)}")
    norms = [path for path, module in places.items() if type(module).__name__ in NORMS]
    _measure([changed.get_submodule(path) for path in norms], changed, data, device)
    network = traced(changed, batch, architecture.label)
    recipe = recipe or tuning_recipe(whole, data)
    run = TrainingRun(network, data, recipe, seed=seed, teacher=copy.deepcopy(whole).eval())
    if folder:
        settings = {"substitute": dict(layers), "recipe": asdict(recipe), "seed": seed, "data": data.name}
        claim_folder(folder, settings | {"network": weights_digest(whole)})

    def top1(of: nn.Module) -> float | None:
        return accuracy(of, data, data.validation) if recipe.holdout else None

    before, substituted = top1(whole), top1(network)
    trained = run.complete(folder, progress)
    measures = objective_of(data).measures
    record = Substitution(replaced, before, substituted, trained.top1_validation, asdict(recipe), seed, measures)
    note_step(network, data, record.to_dict(), source=whole)
    return network, record


def _see_pairs(layers: Mapping[str, str]) -> None:
    allowed = {kind: {"ReLU", HARD.get(kind)} for kind in ACTIVATIONS}
    allowed |= {kind: {"avg"} for kind in POOLS} | {kind: {"batch"} for kind in NORMS}
    for kind, other in layers.items():
        if other not in allowed.get(kind, ()):
            pairs = ", ".join(f"{near} that of {smooth}" for smooth, near in HARD.items())
            raise ValueError(
                f"cannot put {other!r} in place of {kind!r}; ReLU takes the place of {', '.join(ACTIVATIONS)}, "
                f"{pairs}, avg that of {', '.join(POOLS)}, and batch that of {', '.join(NORMS)}"
            )


def _axes(network: nn.Module, places: Iterable[str], batch: Tensor) -> dict[str, int]:
    """How many axes the input of each layer has; 0 of one that does not run."""
    axes = dict.fromkeys(places, 0)

    def note(path: str) -> Callable[..., None]:
        return lambda _, inputs: axes.update({path: inputs[0].dim()})

    handles = [network.get_submodule(path).register_forward_pre_hook(note(path)) for path in axes]
    with torch.no_grad():
        network(batch)
    for handle in handles:
        handle.remove()
    return axes


def _measure(norms: Sequence[Any], network: nn.Module, data: Dataset, device: torch.device) -> None:
    """Give batch norms of a network the statistics of some training images, the mean over all batches."""
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None
    with torch.no_grad():
        for first in range(0, min(len(data.train), MEASURED) if norms else 0, 256):
            network(data.normalize(data.train.images[first : min(first + 256, MEASURED)].to(device)))
    for norm in norms:
        norm.eval().momentum = 0.1


def _instead(path: str, module: nn.Module, other: str, axes: int) -> nn.Module:
    """The layer that takes the place of one, whose input has so many axes."""
    if isinstance(module, nn.GroupNorm | nn.InstanceNorm1d | nn.InstanceNorm2d):
        channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
        norm = (nn.BatchNorm2d if axes == 4 else nn.BatchNorm1d)(channels, module.eps, affine=module.affine)
        norm.load_state_dict(module.state_dict(), strict=False)
        return norm
    if isinstance(module, nn.AdaptiveMaxPool2d):
        return nn.AdaptiveAvgPool2d(module.output_size)  # pyright: ignore[reportArgumentType]
    if not isinstance(module, nn.MaxPool2d):
        return getattr(nn, other)()
    if module.dilation not in (1, (1, 1)):
        raise ValueError(f"{path} is a dilated max pool, and no average pool has its windows; take a stride instead")
    return nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
