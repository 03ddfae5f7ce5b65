"""A trained real network as a binary one: signs before its inner convolutions, then weights of one bit.

Two steps, each distilled from the real network (Real-to-Binary: Martinez et al., ICLR 2020; ReActNet: Liu et al., ECCV
2020): first signs with real weights, then weights of one bit too, from where the first step ended. The loss is the
divergence from the teacher's outputs, without labels. The first convolution, 1x1 shortcuts and linear layers stay real.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.models import convert
from deepreshape.models.saved import note_step, weights_digest
from deepreshape.nn import BinaryConv2d, Nonlinearity, RPReLU, RSign, SignConv2d
from deepreshape.removal.method import see_classes
from deepreshape.training import Progress, Recipe, accuracy, objective_of, recipe_of, train
from deepreshape.training.runs import claim_folder, measured_as

__all__ = ["Binarization", "Rectifiers", "binarize", "binary_recipe"]

Rectifiers = Literal["prelu", "none"]
"""What stands where the ReLUs stood: RPReLUs, or the ReLUs as they were."""


@dataclass(frozen=True)
class Binarization:
    """The record of what :func:`binarize` did.

    Attributes:
        layers: paths of the convolutions that have one bit now.
        rprelu: what stands where the ReLUs stood.
        relus_before, relus, signs: counts, from traces.
        top1_before, top1_step1, top1_validation: validation top-1 in percent: of the network that came, with signs and
            real weights, and at the end; none where the validation split was trained on.
        recipe: of each step; the second has no weight decay.
        seed: of both.
        measures: the word for the metric, which :meth:`to_dict` has in place of ``top1``.
    """

    layers: tuple[str, ...]
    rprelu: Rectifiers
    relus_before: int
    relus: int
    signs: int
    top1_before: float | None
    top1_step1: float | None
    top1_validation: float | None
    recipe: dict[str, Any]
    seed: int
    measures: str = "top1"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"method": "binarize", **measured_as(asdict(self))}


def binary_recipe(data: str) -> Recipe:
    """How a step is trained by default: AdamW at small steps, and nothing but the teacher's outputs to learn from."""
    return replace(
        recipe_of(data), optimizer="adamw", lr=2e-3, weight_decay=1e-5, smoothing=0.0, distill=1.0, temperature=1.0
    )


def binarize(
    model: nn.Module,
    data: Dataset,
    *,
    layers: Sequence[str] = (),
    rprelu: Rectifiers = "prelu",
    recipe: Recipe | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[str, Progress], None] | None = None,
) -> tuple[nn.Module, Binarization]:
    """Put signs and one-bit weights in a trained network, and train it in two steps.

    Args:
        model: trained, any torch module; it is left as it was, and teaches.
        data: its test split is not touched.
        layers: paths of the convolutions to change; all inner ones wider than 1x1 without.
        rprelu: ``"prelu"`` puts RPReLUs where ReLUs stood, ``"none"`` leaves these.
        recipe: of each step; :func:`binary_recipe` without one.
        seed: of both.
        folder: for checkpoints; a run that was cut there continues, to the same result.
        progress: told the phase ("signs" or "weights") and where it is, after every step.

    Returns:
        The network, in evaluation mode, and the record.

    Raises:
        ValueError: if the network is binary or reduced already, a layer cannot be changed, or the folder holds another
            run.
    """
    if rprelu not in get_args(Rectifiers):
        raise ValueError(f"rprelu is one of {', '.join(get_args(Rectifiers))}, not {rprelu!r}")
    batch = data.normalize(data.train.images[:8].to(next(model.parameters()).device))
    teacher = copy.deepcopy(convert(model, batch)).eval()
    see_classes(teacher, data)
    _see_real(teacher)
    chosen = _chosen(teacher, batch, layers)
    network = copy.deepcopy(teacher)
    for path in chosen:
        network.set_submodule(path, SignConv2d.of(network.get_submodule(path)))  # pyright: ignore[reportArgumentType]
    if rprelu == "prelu":
        _put_rprelus(network, batch)
    recipe = recipe or binary_recipe(data.name)
    if folder:
        settings = {"binarize": chosen, "rprelu": rprelu, "recipe": asdict(recipe), "seed": seed, "data": data.name}
        claim_folder(folder, settings | {"network": weights_digest(teacher)})

    def step(name: str, settings: Recipe) -> float | None:
        def told(at: Progress) -> None:
            if progress:
                progress(name, at)

        place = folder / name if folder else None
        return train(network, data, settings, seed=seed, teacher=teacher, folder=place, progress=told).top1_validation

    before = accuracy(teacher, data, data.validation) if recipe.holdout else None
    first = step("signs", recipe)
    for path in chosen:
        signs = network.get_submodule(path)
        assert isinstance(signs, SignConv2d)  # noqa: S101 - put there above
        network.set_submodule(path, signs.one_bit().to(batch.device))
    last = step("weights", replace(recipe, weight_decay=0.0))
    counts = count(network, data.shape).total
    relus_before = count(teacher, data.shape).total.relus
    record = Binarization(
        chosen,
        rprelu,
        relus_before,
        counts.relus,
        counts.signs,
        before,
        first,
        last,
        asdict(recipe),
        seed,
        objective_of(data).measures,
    )
    note_step(network, data, record.to_dict(), source=teacher)
    return network.eval(), record


def _see_real(model: nn.Module) -> None:
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if isinstance(module, SignConv2d | RSign | BinaryConv2d):
            raise ValueError(f"the network is binary already (at {path}); start from the real network it was made of")
    for path, module in modules.items():
        if isinstance(module, Nonlinearity):
            raise ValueError(
                f"the network has a {module.kind} at {path}, and only whole ReLUs can be followed by signs; start from "
                "the network it was made of"
            )


@torch.no_grad()
def _chosen(model: nn.Module, batch: Tensor, layers: Sequence[str]) -> tuple[str, ...]:
    """The convolutions to change, in the order they run."""
    order: list[str] = []
    linear = {path: at for path, at in model.named_modules() if isinstance(at, nn.Conv2d | nn.Linear)}
    handles = [module.register_forward_hook(lambda *_, at=path: order.append(at)) for path, module in linear.items()]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    inner = order[1:-1]
    for path in layers:
        if path not in linear:
            raise ValueError(f"the network has no convolution {path!r}; its inner ones are {', '.join(inner)}")
        if path not in inner:
            raise ValueError(f"{path} is the first or last layer, which stays real; inner ones are {', '.join(inner)}")
    chosen = tuple(path for path in inner if (path in layers if layers else _fits(linear[path]) == ""))
    for path in chosen:
        if reason := _fits(linear[path]):
            raise ValueError(f"{path} {reason}, and stays real")
    if not chosen:
        raise ValueError("the network has no inner convolution wider than 1x1; give some as layers")
    return chosen


def _fits(layer: nn.Module) -> str:
    """Why a layer cannot have signs before it by itself; empty if it can."""
    if not isinstance(layer, nn.Conv2d):
        return "is not a convolution"
    square = len(set(layer.kernel_size)) == len(set(layer.stride)) == 1 and layer.dilation == (1, 1)
    if not square or layer.groups > 1 or layer.bias is not None or isinstance(layer.padding, str):
        return "has groups, a bias, a dilation, named padding or unequal sides"
    if len(set(layer.padding)) > 1 or layer.padding_mode != "zeros":
        return "has unequal padding, or none of zeros"
    return "is a 1x1 convolution" if layer.kernel_size == (1, 1) else ""


@torch.no_grad()
def _put_rprelus(model: nn.Module, batch: Tensor) -> None:
    """Put an RPReLU at every ReLU of maps, in ``model`` itself; those of vectors stay."""
    channels: dict[str, int] = {}

    def look(path: str, output: Tensor) -> None:
        if output.dim() == 4:
            channels[path] = output.shape[1]

    handles = [
        module.register_forward_hook(lambda *given, at=path: look(at, given[2]))
        for path, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    for path, width in channels.items():
        model.set_submodule(path, RPReLU(width).to(batch.device))
