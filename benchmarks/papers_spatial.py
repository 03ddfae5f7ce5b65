"""Claims of semi-structured activation sparsity: pixels that convolutions leave out."""

import json
from statistics import mean

import torch
from papers_claim import RESULTS, Claim, Measured, Verdict, rows_of
from torch import nn
from torch.nn import functional

from deepreshape.data import Dataset
from deepreshape.models import architecture, build
from deepreshape.nn import MaskedConv2d
from deepreshape.removal import Linearization, Spatial, masks_of
from deepreshape.removal.sites import behind_convolutions
from deepreshape.training import accuracy, recipe_of, train

SPARSITY = "semi-structured activation sparsity (ICCVW 2023)"
NETWORK = "resnet18-m4"
SPEEDUPS, ROWS = "columns.json", "cifar100-columns.jsonl"


def dropped_columns() -> Measured:
    """The largest difference between a convolution that leaves pixels out and the product without their windows."""
    largest, cases = 0.0, 200
    for seed in range(cases):
        torch.manual_seed(seed)
        ins, outs, kernel, stride, side = (int(torch.randint(1, top, ())) for top in (9, 9, 6, 3, 17))
        layer = nn.Conv2d(ins, outs, kernel, stride, kernel // 2)
        x = torch.randn(2, ins, side + kernel, side + kernel)
        with torch.no_grad():
            columns = torch.rand(layer(x).shape[2:]) < torch.rand(())
            kept = functional.unfold(x, kernel, 1, kernel // 2, stride)[:, :, columns.flatten()]
            product = layer.weight.flatten(1) @ kept + layer.bias[:, None]  # pyright: ignore[reportOptionalSubscript]
            masked = MaskedConv2d.of(layer, columns).eval()(x).flatten(2)[:, :, columns.flatten()]
        largest = max([largest, *(masked - product).abs().flatten().tolist()])
    return {"cases": cases, "largest_difference": float(f"{largest:.2g}")}


def speedups() -> Measured:
    """By sparsity, how many times faster the product with columns left out was, for each shape."""
    rows = json.loads((RESULTS / SPEEDUPS).read_text())["rows"]
    ratios: dict[str, list[float]] = {}
    for row in rows:
        ratios.setdefault(str(row["sparsity"]), []).append(row["ratio"])
    return {"times_faster": ratios}


def points_lost() -> Measured:
    """By sparsity, the points of test top-1 that the published choice of maps costs (CIFAR-100, ResNet-18, m = 16).

    They are means over seeds, each against its own network with all ReLUs.
    """
    rows = [row for row in rows_of(ROWS) if row["network"] == "resnet18-m16"]
    whole = {row["seed"]: row["top1"] for row in rows if row["method"] == "all"}
    lost: dict[float, list[float]] = {}
    for row in rows:
        if row["choice"] == "best":
            lost.setdefault(row["sparsity"], []).append(whole[row["seed"]] - row["top1"])
    means = {str(sparsity): round(mean(points), 2) for sparsity, points in sorted(lost.items())}
    return {"before": list(whole.values()), "points_lost": means}


def best_and_first() -> Measured:
    """By seed, test top-1 on the digits with the map of the best step and with the first one, 30 % of the pixels."""
    data, recipe = Dataset.load("digits"), recipe_of("digits").with_values({"epochs": 4})
    rows: list[list[float]] = []
    for seed in range(3):
        network = build(architecture(NETWORK, data.shape, len(data.class_names)), seed=seed)
        train(network, data, recipe, seed=seed)
        masks = masks_of(network, data.shape)
        behind = sum(masks[path].numel() for path in behind_convolutions(network, data.shape, masks))
        budget = sum(mask.numel() for mask in masks.values()) - round(0.3 * behind)
        rows.append([])
        for choice in ("best", "first"):
            method = Spatial(budget, choice=choice, columns=True, search_epochs=2)
            small, _ = Linearization(network, method, data, recipe=recipe, seed=seed).run()
            rows[-1].append(round(accuracy(small, data, data.test), 2))
    return {"best_first": rows, "epochs": "4 whole, 2 of search, 4 of tuning"}


def close(measured: Measured) -> Verdict:
    """Judges SEM-1."""
    return "re-made" if measured["largest_difference"] < 1e-4 else "refuted"


def faster(measured: Measured) -> Verdict:
    """Judges SEM-2."""
    ratios = measured["times_faster"]["0.2"]
    return "re-made" if min(ratios) >= 1.15 else "in part" if max(ratios) > 1 else "refuted"


def little_lost(measured: Measured) -> Verdict:
    """Judges SEM-3."""
    lost = measured["points_lost"]
    held = [lost["0.1"] <= 1, lost["0.3"] <= 4]
    return "re-made" if all(held) else "in part" if any(held) else "refuted"


def chosen(measured: Measured) -> Verdict:
    """Judges SEM-4."""
    gains = [best - first for best, first in measured["best_first"]]
    return "re-made" if min(gains) > 0 else "in part" if sum(gains) > 0 else "refuted"


CLAIMS = (
    Claim(
        "SEM-1",
        SPARSITY,
        "A convolution with pixels left out is the product of weights and windows with those columns dropped",
        "the construction (read in its code)",
        "exact",
        dropped_columns,
        close,
        "200 random shapes within 1e-4",
        0.1,
        test="tests/nn/test_constants.py::test_columns_left_out_of_the_product_are_pixels_left_out",
    ),
    Claim(
        "SEM-2",
        SPARSITY,
        "Leaving out a fifth of the pixels makes a network 1.25 times faster",
        "1.11, 1.25 and 1.42 times at 10, 20 and 30 % (read; ResNet-18, ImageNet, Raspberry Pi 4B)",
        "time",
        speedups,
        faster,
        "at 20 %, 1.15 for each of three shapes of single products on one core; in part above 1 for one",
        0.1,
        needs=(SPEEDUPS,),
    ),
    Claim(
        "SEM-3",
        SPARSITY,
        "Accuracy falls little",
        "70.53 % to 70.48, 69.42 and 67.88 at 10, 20 and 30 % (read; ResNet-18, ImageNet)",
        "accuracy",
        points_lost,
        little_lost,
        "at most 1 point at 10 % and 4 at 30 % (CIFAR-100, ResNet-18 with m = 16, one epoch of search, one of tuning, "
        "mean over seeds); in part one of them",
        45.0,
        needs=(ROWS,),
    ),
    Claim(
        "SEM-4",
        SPARSITY,
        "The map of the step with the least loss is worth looking for",
        "the method (read); no figure against a map that nothing chose",
        "accuracy",
        best_and_first,
        chosen,
        f"better than the first map with each of three seeds ({NETWORK}, digits, 30 %); in part on average",
        3.0,
    ),
    Claim(
        "SEM-5",
        SPARSITY,
        "MobileNetV2 keeps 70.43, 69.94 and 67.92 % of 72.19 and becomes 1.04, 1.10 and 1.20 times faster",
        "the figures (read; ImageNet)",
        "accuracy",
        why="ImageNet and a Raspberry Pi; pixels of 1x1 and of depthwise convolutions, of which it consists, are not "
        "left out here",
    ),
)
