"""Where a network has ReLUs, and which of them to keep: the part of fine-grained removal that all methods share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepreshape.cost import ReluLayer
from deepreshape.counting import count
from deepreshape.nn import MaskedConv2d, MaskedReLU, Nonlinearity, RPReLU

__all__ = [
    "Granularity",
    "Masks",
    "behind_convolutions",
    "export_masks",
    "keep_best",
    "masks_of",
    "put_masks",
    "site_of",
    "unit_shape",
]

Granularity = Literal["pixel", "position", "channel", "layer"]
"""What is kept or removed as one: a ReLU, those of all channels at a position, a channel's, or a layer's."""

Masks = dict[str, Tensor]
"""By the path of a site: bool, shape of one output, (C, H, W) or (C,), true where a ReLU stays; on the processor, as
``masks_of`` gives it."""


def masks_of(model: nn.Module, input: Sequence[int]) -> Masks:
    """Where ``model`` has a ReLU now, by the path of the module that computes it, in the order they run.

    Args:
        model: any module whose ReLUs are ``torch.nn.ReLU`` modules or hold masks, which
            :func:`~deepreshape.models.convert` sees to; it is left as it was.
        input: shape of one input, (channels, height, width).

    Raises:
        ValueError: if a ReLU is computed in another way, so that no mask can be put there.
    """
    masks: Masks = {}

    def look(path: str, module: nn.Module, output: Tensor) -> None:
        if path in masks:
            raise ValueError(f"the ReLU {path} runs twice in one pass; models.convert gives each call its own module")
        mask = module.mask if isinstance(module, Nonlinearity) else None
        masks[path] = torch.ones(output.shape[1:], dtype=torch.bool) if mask is None else mask.cpu().clone()

    handles = [
        module.register_forward_hook(lambda *got, at=path: look(at, got[0], got[2]))
        for path, module in model.named_modules()
        if isinstance(module, nn.ReLU) or (isinstance(module, Nonlinearity) and module.mask is not None)
    ]
    try:
        counted = count(model, input)
    finally:
        for handle in handles:
            handle.remove()
    seen, total = sum(int(mask.sum()) for mask in masks.values()), counted.total.relus
    if seen != total:
        places = [layer.name for layer in counted.layers if isinstance(layer, ReluLayer) and layer.relus]
        others = {path: model.get_submodule(path) for path in places if path not in masks}
        named = [f"{path or 'the network'} ({type(module).__name__})" for path, module in others.items()]
        instead = "`deepreshape substitute --activation relu` puts ReLUs there first"
        if any([*module.children()] for module in others.values()):
            instead = "models.convert makes modules of function calls"
        why = f"{', '.join(named[:3])}{f' and {len(named) - 3} more' * (len(named) > 3)}; {instead}"
        if any(isinstance(module, RPReLU) for module in model.modules()):
            why = (
                "RPReLUs have learned slopes, and masks are for ReLUs: a binary network has these by -relus in its "
                "name, or by `binarize --rprelu none`"
            )
        raise ValueError(
            f"{total - seen:,} of the model's {total:,} ReLUs are no torch.nn.ReLU and cannot be removed one by one: "
            f"{why}"
        )
    return masks


def site_of(model: nn.Module, path: str) -> str:
    """The site of what computes ReLUs, which may be a part of what stands there."""
    around = path.rpartition(".")[0]
    return around if around and isinstance(model.get_submodule(around), Nonlinearity) else path


def export_masks(model: nn.Module, input: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Where a network has ReLUs, and which pixels its convolutions compute, for ``numpy.savez``.

    Args:
        model: as :func:`masks_of` takes it.
        input: shape of one input, (channels, height, width).

    Returns:
        ``relus/PATH`` for each site: bool, shape of one output, true where a ReLU is computed; ``columns/PATH`` for
        each convolution that leaves pixels out: bool, (H, W), true where it computes.

    Raises:
        ValueError: as :func:`masks_of`.
    """
    modules = dict(model.named_modules())
    masks = {f"columns/{path}": at.columns for path, at in modules.items() if isinstance(at, MaskedConv2d)}
    masks |= {f"relus/{site_of(model, path)}": mask for path, mask in masks_of(model, input).items()}
    return {name: mask.cpu().numpy() for name, mask in masks.items()}


def behind_convolutions(model: nn.Module, input: Sequence[int], sites: Iterable[str]) -> dict[str, str]:
    """Of ``sites``, those whose input is a convolution's result and nothing else, and the convolution, by path.

    Between the two there may be a batch norm; nobody else reads what the convolution gives. Convolutions of 1x1 windows
    and those in groups are left aside, as are those that pad with other values than zeros.

    Args:
        model: any module; it is left as it was.
        input: shape of one input, (channels, height, width).
        sites: paths of modules that compute ReLUs.
    """
    producers: dict[Any, str] = {}
    read: dict[str, Any] = {}
    modules = dict(model.named_modules())
    linear = {path: at for path, at in modules.items() if isinstance(at, nn.Conv2d | nn.BatchNorm2d)}

    def note(path: str, inputs: tuple[Tensor, ...]) -> None:
        read[path] = inputs[0].grad_fn

    def note_output(path: str, output: Tensor) -> None:
        producers[output.grad_fn] = path

    watched = {path: modules[path] for path in (*linear, *sites)}
    handles = [
        *(at.register_forward_pre_hook(lambda *got, path=path: note(path, got[1])) for path, at in watched.items()),
        *(at.register_forward_hook(lambda *got, path=path: note_output(path, got[2])) for path, at in linear.items()),
    ]
    training = {module: module.training for module in modules.values()}
    try:
        with torch.enable_grad():
            x = torch.zeros(1, *input, device=next(model.parameters()).device, requires_grad=True)
            uses = _uses(model.eval()(x).grad_fn)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode

    def before(path: str) -> str:
        """What alone made the input of a module, for nobody else."""
        return producers.get(read[path], "") if uses[read[path]] == 1 else ""

    chains = {path: before(path) for path in sites}
    chains |= {path: before(at) for path, at in chains.items() if isinstance(linear.get(at), nn.BatchNorm2d)}
    return {path: at for path, at in chains.items() if _leaves_out(linear.get(at))}


def _leaves_out(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution that can leave pixels out."""
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return False
    return layer.groups == 1 and max(layer.kernel_size) > 1


def _uses(end: Any) -> Counter[Any]:
    """How often each value is read, by the node of autograd's graph that gave it."""
    uses, seen, left = Counter[Any]([end]), {end}, [end]
    while left:
        for node, _ in left.pop().next_functions:
            uses[node] += 1
            if node is not None and node not in seen:
                seen.add(node)
                left.append(node)
    return uses


def put_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """``model`` itself, with these masks at their sites."""
    device = next(model.parameters()).device
    for path, mask in masks.items():
        model.set_submodule(path, MaskedReLU(mask).to(device))
    return model


def unit_shape(mask: Tensor, granularity: Granularity) -> tuple[int, ...]:
    """The shape of one value for each unit of a map: 1 where a dimension shares its choice."""
    channels, *plane = mask.shape
    flat = (1,) * len(plane)
    return {
        "pixel": (channels, *plane),
        "position": (1, *plane),
        "channel": (channels, *flat),
        "layer": (1, *flat),
    }[granularity]


def keep_best(
    scores: Mapping[str, Tensor], masks: Masks, budget: int, seed: int, *, whole_units: bool = False
) -> Masks:
    """The units of highest score that make up exactly ``budget`` ReLUs.

    Units are taken whole, best first; the one that would go over the budget keeps as many as are left.

    Args:
        scores: by site, a value for each unit (:func:`unit_shape`).
        masks: where there are ReLUs to choose from; at least ``budget`` in all.
        budget: how many to keep.
        seed: decides between units of equal score.
        whole_units: keep the last unit whole, and so a few more than ``budget``: for masks that are not the last ones.
    """
    values = torch.cat([score.detach().flatten().cpu() for score in scores.values()])
    sizes = torch.cat([masks[path].sum_to_size(score.shape).flatten().cpu() for path, score in scores.items()])
    shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
    filled = sizes[order].cumsum(0)
    whole = torch.zeros(len(values), dtype=torch.bool)
    whole[order] = filled <= budget
    left = budget - int(sizes[whole].sum())
    cut = torch.zeros_like(whole)
    if left:
        (whole if whole_units else cut)[order[int((filled <= budget).sum())]] = True
    kept: Masks = {}
    lengths = [prod(score.shape) for score in scores.values()]
    for (path, score), chosen, part in zip(scores.items(), whole.split(lengths), cut.split(lengths), strict=True):
        mask = masks[path].cpu()
        kept[path] = chosen.view(score.shape) & mask
        if part.any():
            candidates = (part.view(score.shape) & mask).flatten()
            kept[path] |= (candidates & (candidates.cumsum(0) <= left)).view_as(mask)
    return {path: mask.to(masks[path].device) for path, mask in kept.items()}
