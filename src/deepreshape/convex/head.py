"""The last layer of a trained network, refitted as a gated ReLU network on the features before it."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from deepreshape.convex.estimator import LARGEST_TABLE, ConvexGatedReLU
from deepreshape.data.dataset import Dataset

__all__ = ["GatedHead", "Refit", "fix_ntk_head"]


class GatedHead(nn.Module):
    """sum_j 1[g_j'z >= 0] z'u_j over standardised features z with a constant 1 behind them.

    It runs in the clear only: between two parties each gate would be a comparison of a private value, and its product
    with the features one of two private values.

    Args:
        fitted: to features (N, features) and at least two classes.
    """

    mean: Tensor
    scale: Tensor
    directions: Tensor
    weights: Tensor

    def __init__(self, fitted: ConvexGatedReLU) -> None:
        super().__init__()
        gates, weights = fitted.gates_, fitted.weights_
        if weights.shape[2] == 1:
            weights = np.concatenate([-weights, weights], 2)
        arrays = {"mean": gates.mean, "scale": gates.scale, "directions": gates.directions, "weights": weights}
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array).float())

    def forward(self, features: Tensor) -> Tensor:
        """(N, features) -> (N, classes)."""
        standard = (features - self.mean) / self.scale
        standard = torch.cat([standard, standard.new_ones(len(standard), 1)], 1)
        opened = (standard @ self.directions.T >= 0).to(standard)
        return torch.einsum("nj,jio,ni->no", opened, self.weights, standard)


@dataclass(frozen=True)
class Refit:
    """What a refit came to: see :class:`ConvexGatedReLU`."""

    layer: str
    features: int
    rows: int
    objective: float
    ntk_objective: float
    gap: float
    active_gates: int


def fix_ntk_head(
    model: nn.Module,
    data: Dataset,
    *,
    n_gates: int = 200,
    lam: float = 1.0,
    tol: float = 1e-2,
    subsample: int = LARGEST_TABLE,
    seed: int = 0,
) -> tuple[nn.Module, Refit]:
    """A copy of a trained network whose last linear layer is a gated ReLU network fitted to the training split.

    Args:
        model: ends in a ``torch.nn.Linear``; it is left as it was.
        data: its training split is used, and no other.
        n_gates: gates to draw.
        lam: weight decay.
        tol: relative gap at which the fit ends.
        subsample: training images at most, drawn at random.
        seed: of gates and images.

    Returns:
        The copy in evaluation mode, and the record.

    Raises:
        ValueError: if the network has no linear layer, or a class is missing from the rows drawn.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("the network has no torch.nn.Linear; its last one is what is refitted")
    copied, last = copy.deepcopy(model).eval(), layers[-1]
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:subsample].sort().values
    features = _features(copied, last, data, chosen)
    labels = data.train.labels[chosen].numpy()
    if len(np.unique(labels)) != len(data.class_names):
        raise ValueError(
            f"{len(chosen)} rows have {len(np.unique(labels))} of {len(data.class_names)} classes; use more"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the gap is in the record
        fitted = ConvexGatedReLU(n_gates, lam, tol, 300, None, seed).fit(features, labels)
    copied.set_submodule(last, GatedHead(fitted).to(next(model.parameters()).device))
    record = Refit(
        last,
        features.shape[1],
        len(features),
        fitted.objective_,
        fitted.ntk_objective_,
        fitted.gap_,
        fitted.active_gates_,
    )
    return copied, record


@torch.no_grad()
def _features(model: nn.Module, layer: str, data: Dataset, places: Tensor) -> np.ndarray:
    """What the layer reads for these training images, (N, features)."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, given: seen.append(given[0].cpu()))
    device = next(model.parameters()).device
    try:
        for part in places.split(256):
            model(data.normalize(data.train.images[part].to(device)))
    finally:
        handle.remove()
    return torch.cat(seen).double().numpy()
