"""Search of the two cells that halve the map (Sphynx, Cho et al., 2021), by Gumbel softmax (Jang et al., ICLR 2017).

Every pair of places i < j <= 2 L / 3 among L cells is a network of its own, with weights of its own: channels grow at a
reduction, so that no cell fits two pairs. Each step draws one pair, by the numbers z and noise, trains its weights on
one half of the training split and z on the other, through the soft weight of the pair that was drawn (straight
through). The temperature falls from 10 to 0.1. All pairs have the same ReLUs; their multiply-adds differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from deepreshape.data import Dataset, Split
from deepreshape.design.alpha_steps import AlphaConfig, AlphaSteps, Searched, train_with_alpha
from deepreshape.models import CellNet, build
from deepreshape.training import Progress, Recipe

__all__ = ["reduction_pairs", "search_reductions"]

HOT, COLD = 10.0, 0.1
"""Temperature at the first step and at the last, as published; it falls geometrically."""


def reduction_pairs(cells: int) -> list[tuple[int, int]]:
    """The places searched, (first, second), of so many cells."""
    last = min(2 * cells // 3, cells - 1)
    return [(first, second) for second in range(1, last + 1) for first in range(second)]


def search_reductions(
    network: CellNet,
    data: Dataset,
    config: AlphaConfig,
    recipe: Recipe,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> CellNet:
    """The network with the reductions that weigh most in the end.

    Args:
        network: of cells; its width, cells and genotype stay.
        data: its training split is searched on.
        config: of the steps of z.
        recipe: of the weights; it takes its batch from ``config``.
        seed: same seed, same places.
        folder: for checkpoints; a run that was cut there continues to the same places.
        progress: called after every step.

    Raises:
        ValueError: if the network or a setting does not fit, or the folder holds another run.
    """
    if config.order != 1:
        raise ValueError(f"order={config.order}: reductions are searched with first order")
    if network.relus != network.unreduced.relus:
        raise ValueError(f"{network.name} has lost ReLUs already; search with all of them")
    shape = replace(network, input=data.shape, classes=len(data.class_names))
    placed = [_with_reductions(shape, *pair) for pair in reduction_pairs(sum(network.phi))]
    searched = _Placed([build(each, seed=seed) for each in placed])

    def steps(halves: tuple[Split, Split], recipe: Recipe) -> AlphaSteps:
        return AlphaSteps(searched, config, recipe, data, halves, seed)

    train_with_alpha(steps, data, config, recipe, seed=seed, folder=folder, progress=progress)
    chosen = reduction_pairs(sum(network.phi))[int(searched.places.argmax())]
    return _with_reductions(network, *chosen)


def _with_reductions(network: CellNet, first: int, second: int) -> CellNet:
    return replace(network, phi=(first, second - first, sum(network.phi) - second))


class _Placed(Searched):
    """A network for every pair, and z, float32 (pairs,); one of them answers at a time."""

    alphas = ("places",)

    places: Tensor

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.register_buffer("places", torch.zeros(len(networks)))
        self.noise, self.temperature = torch.zeros(len(networks)), HOT

    def forward(self, x: Tensor, alpha: tuple[Tensor] | None = None) -> Tensor:
        (places,) = alpha or (self.places,)
        soft = ((places + self.noise.to(places.device)) / self.temperature).softmax(0)
        drawn = int(soft.argmax())
        # one, with the gradient of the soft weight
        return self.networks[drawn](x) * (1 + soft[drawn] - soft[drawn].detach())

    def begin(self, step: int, steps: int, seed: int) -> None:
        """Draw the step's noise from its number, and cool down."""
        generator = torch.Generator().manual_seed((step + 1_000_003 * seed + 53) % 2**32)
        uniform = torch.rand(len(self.networks), generator=generator).clamp(1e-10, 1 - 1e-7)
        self.noise = -(-uniform.log()).log()
        self.temperature = HOT * (COLD / HOT) ** (step / max(1, steps - 1))
