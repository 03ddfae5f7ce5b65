"""Free removals: ReLUs that never fire on the training split become 0, those that always do the identity.

No output changes on those images, bit for bit, so that nothing is trained; on others outputs may change. Other methods
go on from what comes out.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

from torch import nn

from deepreshape.cost import ReluLayer
from deepreshape.counting import count
from deepreshape.data import Dataset
from deepreshape.explain.dead import Firing, firing
from deepreshape.models import convert
from deepreshape.models.saved import note_step
from deepreshape.nn import MaskedReLU, PolynomialReLU, Zeroed
from deepreshape.removal.method import Removal
from deepreshape.training import accuracy, objective_of

__all__ = ["remove_dead"]


def remove_dead(
    model: nn.Module, data: Dataset, progress: Callable[[int, int], object] | None = None
) -> tuple[nn.Module, Removal]:
    """Remove the ReLUs of a trained network that never or always fire on the training images, not augmented.

    Args:
        model: any torch module; it is left as it was.
        data: its test split is not touched; its validation split says what the removal costs on other images.
        progress: is told how many of how many images were seen.

    Returns:
        The network, in evaluation mode, and the record; its ``budget`` is what was left.

    Raises:
        ValueError: if nothing is free, a ReLU cannot be seen, or polynomials stand in place of ReLUs.
    """
    started = time.process_time()
    device = next(model.parameters()).device
    whole = convert(model, data.normalize(data.train.images[:8].to(device)))
    network = copy.deepcopy(whole).eval()
    for path, module in network.named_modules():
        if isinstance(module, PolynomialReLU):
            raise ValueError(f"the network has polynomials in place of ReLUs (at {path}), which are never off")
    before, top1 = count(network, data.shape), accuracy(network, data, data.validation)
    for path, site in firing(network, data, progress).items():
        _remove(network, path, site)
    after = count(network, data.shape)
    if after.total.relus == before.total.relus:
        raise ValueError(
            f"each of the network's {before.total.relus:,} ReLUs fires on some of the {len(data.train):,} training "
            "images and not on others, so that none is free; other methods remove those that matter least"
        )
    top1_after = accuracy(network, data, data.validation)
    record = Removal(
        method="dead",
        settings={},
        budget=after.total.relus,
        relus_before=before.total.relus,
        relus=after.total.relus,
        granularity="pixel",
        kept={layer.name: layer.relus for layer in after.layers if isinstance(layer, ReluLayer)},
        price_before=None,
        price=None,
        top1_before=top1,
        top1_searched=top1_after,
        top1_validation=top1_after,
        warning="",
        epochs=0,
        minutes=round((time.process_time() - started) / 60, 2),
        recipe={},
        seed=0,
        measures=objective_of(data).measures,
    )
    note_step(network, data, record.to_dict(), source=whole)
    return network, record


def _remove(network: nn.Module, path: str, site: Firing) -> None:
    """Put a mask at a site of ``network`` itself, and zeros around it where ReLUs never fire."""
    device = next(network.parameters()).device
    never, free = site.never.to(device), (site.never | site.always).to(device)
    if not free.any():
        return
    masked = MaskedReLU(site.kept.to(device) & ~free)
    around = network.get_submodule(path.rpartition(".")[0])
    if isinstance(around, Zeroed):
        around.keep &= ~never
        around.relu = masked
    else:
        network.set_submodule(path, Zeroed(masked, ~never) if never.any() else masked)
