"""Semi-structured activation sparsity (Grimaldi et al., ICCV Workshops 2023): the same positions for all channels.

One map of random scores at the input's size is pooled to the size of every site, where the positions of lowest score
lose the ReLUs of all their channels: as many at every site, a share that grows over the search. At every step another
map is drawn; the one under which a batch's loss was least is kept, its masks are put at the budget, and the network
trains on with them. As published, that is a choice by the loss of single batches, which is mostly noise; ``choice``
can take the best of some maps on the validation split in its place, or the first one, which nothing chose: whether the
others beat it is the question to ask of them.

A position that is removed passes its values on, as everywhere here. With ``columns`` it is the published one in its
place: the convolution before leaves the pixel out for all channels, before its batch norm, and what comes to the ReLU
is a constant. That takes ReLUs directly behind convolutions only; those behind adds stay. Under homomorphic encryption
pixels cost nothing: a pixel left out saves its ReLUs and the server's product in the clear, and no encrypted product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from deepreshape.nn import KnownReLU, MaskedConv2d, MaskedReLU
from deepreshape.removal.mask_search import ChosenMasks, SearchMethod, weighed
from deepreshape.removal.method import Reduced, Task
from deepreshape.removal.sites import Granularity, Masks, behind_convolutions, keep_best, site_of
from deepreshape.training import check_ranges
from deepreshape.training.parallel import add_up

__all__ = ["Spatial"]

JUDGED = 1000
"""The most images of the validation split that a map is judged on."""


@dataclass(frozen=True)
class Spatial(SearchMethod):
    """Settings of spatial masks.

    Attributes:
        choice: of the map: ``"best"`` by the loss of a training batch, of ``maps`` by the ``"validation"`` loss, or
            the ``"first"``.
        begin, end: shares of the search between which ReLUs are removed and maps are drawn.
        maps: how many are judged on the validation split.
        columns: whether the convolutions before leave the positions out, so that only ReLUs behind these may go.
    """

    granularity: Granularity = "position"
    choice: Literal["best", "validation", "first"] = "best"
    begin: float = 0.1
    end: float = 0.5
    maps: int = 16
    columns: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, begin=(0, 1), end=(0, 1), maps=(1, 10_000))
        if self.granularity != "position":
            raise ValueError(f"spatial masks are by position, not by {self.granularity}; leave granularity out")
        if self.begin >= self.end:
            raise ValueError(f"begin={self.begin} has to be before end={self.end}")

    def see_fits(self, network: nn.Module, input: Sequence[int], masks: Masks, teacher: nn.Module) -> None:
        if self.columns:
            _removable(self, network, input, masks)

    def reduce(self, network: nn.Module, task: Task) -> Reduced:
        return self.find((_Columns if self.columns else _Search)(self, network, task), task)


class _Search(ChosenMasks):
    """Which map was best, and its loss, are buffers."""

    best: Tensor
    least: Tensor

    def __init__(self, method: Spatial, network: nn.Module, task: Task) -> None:
        super().__init__(network, task, task.masks)
        self.method, self.task = method, task
        self.total = sum(int(mask.sum()) for mask in task.masks.values())
        self.whole = {path: mask.clone() for path, mask in task.masks.items()}
        self.register_buffer("best", torch.tensor(0))
        self.register_buffer("least", torch.tensor(float("inf"), dtype=torch.float64))

    def before(self, step: int, steps: int) -> None:
        begin, end = self._ends(steps)
        if begin <= step < end:
            left = 1 - (step + 1 - begin) / (end - begin)
            budget = self.method.budget + round((self.total - self.method.budget) * left**2)
            number = 0 if self.method.choice == "first" else step - begin
            self.choose(self._drawn(number, budget))

    @torch.no_grad()
    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        begin, end = self._ends(steps)
        if self.method.choice == "best" and begin <= step < end:
            loss = add_up(len(labels) * self._loss(batch, labels).double())
            if loss < self.least:
                self.least.copy_(loss)
                self.best.fill_(step - begin)
        if step == end - 1:
            if self.method.choice == "validation":
                self._judge()
            self.choose(self._drawn(int(self.best), self.method.budget))

    def _ends(self, steps: int) -> tuple[int, int]:
        begin = min(steps - 1, round(self.method.begin * steps))
        return begin, max(begin + 1, round(self.method.end * steps))

    def _drawn(self, number: int, budget: int) -> Masks:
        """The masks that a map leaves, exactly ``budget`` ReLUs: the same share of the positions at each site."""
        generator = torch.Generator().manual_seed((number + 1_000_003 * self.seed) % 2**32)
        drawn = torch.rand((1, 1, *self.task.data.shape[1:]), generator=generator)
        scores = {path: self._scored(drawn, path) for path in self.whole}
        return keep_best(weighed(scores, self.prices), self.whole, budget, self.seed)

    def _scored(self, drawn: Tensor, path: str) -> Tensor:
        return _ranked(drawn, self.whole[path])

    def _judge(self) -> None:
        split, data, device = self.task.data.validation, self.task.data, next(self.network.parameters()).device
        images = data.normalize(split.images[:JUDGED].to(device))
        labels = split.labels[:JUDGED].to(device)
        losses = []
        for number in range(self.method.maps):
            self.choose(self._drawn(number, self.method.budget))
            losses.append(float(self._loss(images, labels)))
        self.best.fill_(losses.index(min(losses)))

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        self.network.eval()
        plain = replace(self.task.recipe, smoothing=0.0)
        loss = self.task.objective.loss(self.network(images), labels, None, plain)
        self.network.train()
        return loss


class _Columns(_Search):
    """The search in which convolutions leave out what the sites behind them lose."""

    def __init__(self, method: Spatial, network: nn.Module, task: Task) -> None:
        self.behind = _removable(method, network, task.data.shape, task.masks)
        self.site = {path: site_of(network, path) for path in self.behind}
        super().__init__(method, network, task)
        for path, conv in self.behind.items():
            _put_column_mask(self.network, path, conv)
        self.before_search = {path: self._pair(path)[0].columns.clone() for path in self.behind}

    def _pair(self, path: str) -> tuple[MaskedConv2d, KnownReLU]:
        """The convolution before a site, and what stands around the site's ReLUs."""
        conv, site = self.network.get_submodule(self.behind[path]), self.network.get_submodule(self.site[path])
        assert isinstance(conv, MaskedConv2d)  # noqa: S101 - put there by the search
        assert isinstance(site, KnownReLU)  # noqa: S101 - likewise
        return conv, site

    def layer(self, path: str) -> MaskedReLU:
        return super().layer(f"{self.site[path]}.relu" if path in self.behind else path)

    def choose(self, masks: Masks) -> None:
        super().choose(masks)
        for path in self.behind:
            gone = self.whole[path].any(0) & ~masks[path].any(0)
            conv, site = self._pair(path)
            conv.columns.copy_(self.before_search[path].to(conv.columns.device) & ~gone.to(conv.columns.device))
            site.known.copy_(~conv.columns)

    def finished(self, masks: Masks) -> nn.Module:
        return self.network

    def _scored(self, drawn: Tensor, path: str) -> Tensor:
        """Sites behind adds, and one position of each other one, come before all else."""
        mask = self.whole[path]
        if path not in self.behind:
            return torch.full((1, *mask.shape[1:]), torch.inf)
        ranks = _ranked(drawn, mask)
        return torch.where(ranks == 1, torch.inf, ranks)


def _removable(method: Spatial, network: nn.Module, input: Sequence[int], masks: Masks) -> dict[str, str]:
    """The sites that columns may take, with the convolution before each.

    Raises:
        ValueError: if there are none, or fewer ReLUs than the budget wants gone.
    """
    behind = behind_convolutions(network, input, masks)
    total = sum(int(mask.sum()) for mask in masks.values())
    there = sum(int(masks[path].sum()) for path in behind)
    if not behind:
        raise ValueError(
            f"none of the network's {total:,} ReLUs stands directly behind a convolution wider than 1x1, where "
            "columns are left out; leave columns out"
        )
    least = total - there + sum(len(masks[path]) for path in behind)
    if method.budget < least:
        raise ValueError(
            f"a budget of {method.budget:,} ReLUs is too small for columns: {total - there:,} of the network's "
            f"{total:,} stand behind adds or the like, where a convolution that leaves pixels out removes none, and "
            f"each other site keeps a position; {least:,} is the least, or leave columns out"
        )
    return behind


def _put_column_mask(network: nn.Module, path: str, conv: str) -> None:
    """Put a convolution that can leave pixels out before a site of ``network`` itself, and constants behind it."""
    device = next(network.parameters()).device
    layer, relu = network.get_submodule(conv), network.get_submodule(path)
    if isinstance(layer, MaskedConv2d):
        return
    assert isinstance(layer, nn.Conv2d)  # noqa: S101 - that is what was looked for
    assert isinstance(relu, MaskedReLU)  # noqa: S101 - put there by the search
    columns = torch.ones(relu.mask.shape[1:], dtype=torch.bool, device=device)
    network.set_submodule(conv, MaskedConv2d.of(layer, columns))
    network.set_submodule(path, KnownReLU(relu, ~columns))


def _ranked(drawn: Tensor, mask: Tensor) -> Tensor:
    """By position, its place among those of the site, from 0 to 1: float32, (1, H, W), (1, L) or (1,)."""
    if mask.dim() == 1:
        return torch.ones(1)
    # pooled by adaptive windows, so that sizes need not divide the input's
    height, width = (1, *mask.shape[1:])[-2:]
    pooled = adaptive_avg_pool2d(drawn, (height, width)).flatten()
    places = pooled.argsort(stable=True).argsort(stable=True)
    return ((places + 1) / len(places)).view(1, *mask.shape[1:])
