"""SENet, "Learning to Linearize" (Kundu et al., ICLR 2023): budgets by layer, then masks by difference to the teacher.

Three steps. (1) A layer's ReLUs matter the more, the less its weights do: sensitivity is 1 - eta, where eta is the
share of its weights that a global pruning to a proxy density leaves; the budget is divided over the layers in that
proportion. (2) From random masks, the network trains; in each round the ReLUs stay where teacher and network differed
most. (3) The fine-tuning compares activation maps (PRAM). The paper finds eta by sparse learning; here one pass of
gradients ranks the weights by |w dL/dw|, which does not depend on how batch norm scales them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deepreshape.removal.mask_search import ChosenMasks, SearchMethod, rounds_done, weighed
from deepreshape.removal.method import Reduced, Task
from deepreshape.removal.sites import Masks, keep_best, masks_of, unit_shape
from deepreshape.training import CachedTeacher, activations, check_ranges
from deepreshape.training.convolution import MatrixConvolutions
from deepreshape.training.parallel import add_up

__all__ = ["SENet", "layer_budgets", "sensitivities"]

IMAGES = 1000
"""Training images that the sensitivity is measured on."""


@dataclass(frozen=True)
class SENet(SearchMethod):
    """Settings of SENet.

    Attributes:
        density: share of all weights that the proxy pruning leaves.
        rounds: how often the masks are chosen anew.
    """

    mismatch: float | None = 10.0
    density: float = 0.1
    rounds: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, density=(0, 1), rounds=(1, 100_000))

    def see_fits(self, network: nn.Module, input: Sequence[int], masks: Masks, teacher: nn.Module) -> None:
        theirs = {} if isinstance(teacher, CachedTeacher) else masks_of(teacher, input)
        for path, mask in masks.items():
            if path not in theirs or theirs[path].shape != mask.shape:
                raise ValueError(
                    f"SENet compares every ReLU with the teacher's, which has none of shape {tuple(mask.shape)} at "
                    f"{path}; let the network teach itself"
                )

    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        matter = weighed(sensitivities(network, task, self.density), task.prices)
        budgets = layer_budgets(matter, task.masks, self.budget)
        with activations(task.teacher, task.masks) as theirs:
            search = _Search(self, network, task, budgets, theirs)
            with activations(search.network, task.masks) as ours:
                search.ours = ours
                return self.find(search, task)


class _Search(ChosenMasks):
    def __init__(
        self, method: SENet, network: nn.Module, task: Task, budgets: Mapping[str, int], theirs: Mapping[str, Tensor]
    ) -> None:
        self.method, self.budgets = method, budgets
        self.theirs, self.ours = theirs, theirs
        equal = {path: torch.zeros(unit_shape(mask, method.granularity)) for path, mask in task.masks.items()}
        super().__init__(network, task, _by_layer(equal, task.masks, budgets, task.seed))
        for path in self.where:
            self.statistic(path, "difference")

    @torch.no_grad()
    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        for path in self.where:
            apart = (self.theirs[path] - self.ours[path]).abs().sum(0, dtype=torch.float32)
            # summed here and not at the end of a round: a checkpoint holds what the first process knows
            self.layer(path).get_buffer("difference").add_(add_up(apart))
        now, last = (rounds_done(at, steps, self.method.rounds) for at in (step + 1, step))
        # the last round is left to train with the masks it has
        if now > last and step + 1 < steps:
            differences = {path: self.layer(path).get_buffer("difference") for path in self.where}
            scores = {
                path: total.sum_to_size(unit_shape(total, self.method.granularity))
                for path, total in differences.items()
            }
            self.choose(_by_layer(scores, self.where, self.budgets, self.seed))
            for total in differences.values():
                total.zero_()


def sensitivities(network: nn.Module, task: Task, density: float) -> dict[str, float]:
    """By site, 1 - eta: how little of the weights before it survives pruning to ``density``."""
    probe = copy.deepcopy(network).train().requires_grad_()  # frozen weights matter too
    before: dict[str, list[nn.Module]] = {}
    since: list[nn.Module] = []

    def ran(path: str | None, module: nn.Module) -> None:
        if path is None:
            since.append(module)
        else:
            before[path] = since.copy()
            since.clear()

    for path, module in probe.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda layer, *_: ran(None, layer))
        elif path in task.masks:
            module.register_forward_hook(lambda layer, *_, path=path: ran(path, layer))
    order = torch.randperm(len(task.data.train), generator=torch.Generator().manual_seed(task.seed))[:IMAGES]
    order = order[: len(order) - (len(order) % task.recipe.batch == 1)]  # a batch norm may refuse a batch of one
    device = next(probe.parameters()).device
    images = task.data.normalize(task.data.train.images[order].to(device))
    labels = task.data.train.labels[order].to(device)
    plain = replace(task.recipe, smoothing=0.0)
    for batch, known in zip(images.split(task.recipe.batch), labels.split(task.recipe.batch), strict=True):
        since.clear()  # of what ran after the last ReLU of the batch before
        with MatrixConvolutions():
            task.objective.loss(probe(batch), known, None, plain).backward()
    saliency = {path: _saliency(layers) for path, layers in before.items()}
    everything = torch.cat([*saliency.values()])
    floor = everything.sort(descending=True).values[max(0, round(density * len(everything)) - 1)]
    return {
        path: 1 - float((values >= floor).float().mean()) if len(values) else 1.0 for path, values in saliency.items()
    }


def _saliency(layers: list[nn.Module]) -> Tensor:
    """|w dL/dw| of the weights of these layers, without their biases."""
    weights = [weight for layer in layers for weight in layer.parameters() if weight.dim() > 1]
    products = [(weight * weight.grad).abs().flatten() for weight in weights if weight.grad is not None]
    return torch.cat([torch.zeros(0), *(part.cpu().detach() for part in products)])


def layer_budgets(matter: Mapping[str, float], masks: Masks, budget: int) -> dict[str, int]:
    """The budget divided over the layers in proportion to how much each matters, none above what it has.

    What a full layer cannot take goes to the others in the same proportion; the sum is exact.
    """
    room = {path: int(mask.sum()) for path, mask in masks.items()}
    shares: dict[str, float] = {}
    left, free = float(budget), dict(room)
    while free:
        weight = sum(matter[path] for path in free) or 1.0
        full = [path for path, size in free.items() if left * matter[path] / weight >= size]
        if not full:
            shares |= {path: left * (matter[path] / weight) for path in free}
            break
        for path in full:
            shares[path] = size = float(free.pop(path))
            left -= size
    budgets = {path: min(room[path], int(shares[path])) for path in room}
    by_fraction = sorted(room, key=lambda path: budgets[path] - shares[path])
    while (short := budget - sum(budgets.values())) > 0:
        for path in by_fraction[:]:
            if short and budgets[path] < room[path]:
                budgets[path] += 1
                short -= 1
    return budgets


def _by_layer(scores: Mapping[str, Tensor], masks: Masks, budgets: Mapping[str, int], seed: int) -> Masks:
    chosen: Masks = {}
    for place, path in enumerate(masks):
        chosen |= keep_best({path: scores[path]}, {path: masks[path]}, budgets[path], seed + place)
    return chosen
