"""ReLUs that never fire, or always do, on a training split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any

import torch
from torch import Tensor, nn

from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.nn import MaskedReLU, Nonlinearity, PolynomialReLU, RPReLU

__all__ = ["Firing", "firing", "see_modules"]

BATCH = 256


@dataclass(frozen=True, eq=False)
class Firing:
    """How the ReLUs of one site behave on a split; bool tensors of the shape of its map.

    Attributes:
        kept: where the site has a ReLU.
        never: ReLUs whose input was never above 0, so that a constant 0 would do.
        always: others whose input was never below 0, so that the identity would do.
    """

    kept: Tensor
    never: Tensor
    always: Tensor


@torch.no_grad()
def firing(model: nn.Module, data: Dataset, progress: Callable[[int, int], object] | None = None) -> dict[str, Firing]:
    """By the path of each site, which of its ReLUs never or always fired on the training images, not augmented.

    To put the identity or 0 there changes no output on these images; on others it may.

    Args:
        model: looked at in evaluation mode and left as it was.
        data: its training split.
        progress: is told how many of how many images were seen.

    Raises:
        ValueError: if a ReLU is computed outside of modules, so that it cannot be seen.
    """
    see_modules(model, data.shape, nn.ReLU | MaskedReLU | PolynomialReLU)
    before = {module: module.training for module in model.modules()}
    model.eval()
    sites = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ReLU) or (isinstance(module, Nonlinearity) and module.mask is not None)
    }
    above: dict[str, Tensor] = {}
    below: dict[str, Tensor] = {}

    def look(path: str, x: Tensor) -> None:
        if path not in above:
            above[path] = below[path] = torch.zeros(x.shape[1:], dtype=torch.bool, device=x.device)
        above[path] = above[path] | (x > 0).any(0)
        below[path] = below[path] | (x < 0).any(0)

    def hook(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, given: look(path, given[0])

    handles = [module.register_forward_pre_hook(hook(path)) for path, module in sites.items()]
    device = next(model.parameters()).device
    try:
        seen = 0
        for images, _ in data.train.batches(BATCH):
            model(data.normalize(images.to(device)))
            seen += len(images)
            if progress:
                progress(seen, len(data.train))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in before.items():
            module.training = mode
    firings: dict[str, Firing] = {}
    for path, fired in above.items():
        mask = getattr(sites[path], "mask", None)
        kept = torch.ones_like(fired) if mask is None else mask.to(fired.device)
        firings[path] = Firing(kept.cpu(), (kept & ~fired).cpu(), (kept & fired & ~below[path]).cpu())
    return firings


def see_modules(model: nn.Module, input: Sequence[int], kinds: type[nn.Module] | UnionType) -> None:
    """See that every ReLU of a network is computed by a module of these kinds.

    Args:
        model: left as it was.
        input: shape of one input.
        kinds: classes of modules.

    Raises:
        ValueError: with how many are not.
    """
    counts = count(model, input).by_module
    total = sum(each.relus for each in counts.values())
    reached = sum(each.relus for path, each in counts.items() if isinstance(model.get_submodule(path), kinds))
    learned = sum(isinstance(module, RPReLU) for module in model.modules())
    if reached != total and learned:
        raise ValueError(
            f"{learned} of the network's rectifiers are RPReLUs, whose slopes are learned, and only ReLUs can be "
            "inspected; a binary network has them by -relus in its name, or by `binarize --rprelu none`"
        )
    if reached != total:
        raise ValueError(
            f"{total - reached:,} of the network's {total:,} ReLUs are not computed by a torch.nn.ReLU module and "
            "cannot be inspected; use modules"
        )
