"""Twelve convolutions on the digits with ReLUs, with HerPNs, and with plain squares behind batch norms; no times.

    python benchmarks/depth.py

Four convolutions of 16, 32 and 64 channels each, on half the side where channels double, every one with a batch norm;
the digits' recipe, as many epochs for all. A row of ``results/depth.jsonl`` is one activation and seed: test accuracy
in percent, of how many of the 360 test images the outputs are numbers, and the largest of these. A plain square is x^2
of a normalised x: AESPA says that it fails, as it is not normalised itself, which the bases of a HerPN are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepreshape.data import Dataset
from deepreshape.nn import HerPN
from deepreshape.training import accuracy, recipe_of, train
from deepreshape.training.runs import write_rows

ROWS = Path(__file__).parent / "results" / "depth.jsonl"
EPOCHS, SEEDS = 20, (0, 1, 2)


class PlainSquare(nn.Module):
    """x^2."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda channels: nn.ReLU(),
    "herpn": HerPN,
    "square": lambda channels: PlainSquare(),
}


def network(activation: str, seed: int) -> nn.Module:
    """Twelve convolutions and a linear layer for 8 x 8 images of ten classes."""
    torch.manual_seed(seed)
    layers, before = list[nn.Module](), 1
    for channels in (16, 32, 64):
        for at in range(4):
            stride = 2 if at == 0 and channels > 16 else 1
            layers += [nn.Conv2d(before, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)]
            layers.append(ACTIVATIONS[activation](channels))
            before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def row(activation: str, seed: int, data: Dataset) -> dict[str, Any]:
    """One network trained and tested."""
    model = network(activation, seed)
    about = {"command": "python benchmarks/depth.py", "activation": activation, "seed": seed, "epochs": EPOCHS}
    try:
        train(model, data, replace(recipe_of("digits"), epochs=EPOCHS), seed=seed)
    except ValueError as error:  # the loss is no number any more
        return about | {"top1_test": None, "answered": 0, "failed": str(error)}
    with torch.no_grad():
        outputs = model.eval()(data.normalize(torch.as_tensor(data.test.images)))
    finite = outputs.isfinite().all(1)
    largest = float(outputs[finite].abs().max()) if finite.any() else None
    top1 = round(accuracy(model, data, data.test), 2)
    return about | {"top1_test": top1, "answered": int(finite.sum()), "largest": largest and float(f"{largest:.3g}")}


def main() -> None:
    """Nine networks, in two minutes of a core."""
    torch.set_num_threads(1)
    data = Dataset.load("digits")
    rows = [row(activation, seed, data) for activation in ACTIVATIONS for seed in SEEDS]
    write_rows(ROWS, rows)
    for each in rows:
        print(json.dumps(each))


if __name__ == "__main__":
    main()
