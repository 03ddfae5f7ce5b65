"""The product of weights and windows with columns left out, against the whole product, on this processor.

    python benchmarks/columns.py --out benchmarks/results/columns.json

Three shapes of convolutions of a ResNet-18 for ImageNet, 3x3, one image, one thread, float32: windows are copied (im2col),
multiplied by the weights (GEMM), and what was left out is put in as zeros. Left out are random pixels, the same for all
channels. Whole and partial products alternate, so that both see the same machine; a ratio is that of the medians.
``gemm_only`` is the ratio of the matrix products alone. Nothing else should run on the machine.
"""

import argparse
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deepreshape.pricing.calibrate import machine

SHAPES = ((64, 64, 56), (128, 128, 28), (256, 256, 14))
"""Channels in, channels out, and the side of the map."""
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)

Real = NDArray[np.float32]


class Speedup(NamedTuple):
    """Median seconds of the whole product, of that with columns left out, and how many times faster each part is."""

    dense: float
    columns: float
    ratio: float
    gemm_only: float


def windows(x: Real, kernel: int, pixels: NDArray[np.intp] | None = None) -> Real:
    """The window under each pixel, or under chosen ones: (pixels, kernel * kernel * C) for a padded x (H, W, C)."""
    views = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (0, 1))
    height, width, channels = views.shape[:3]
    rows, columns = np.divmod(np.arange(height * width) if pixels is None else pixels, width)
    taken = np.empty((len(rows), kernel, kernel, channels), np.float32)
    for down in range(kernel):
        for right in range(kernel):
            taken[:, down, right] = x[rows + down, columns + right]
    return taken.reshape(len(rows), -1)


def benchmark_columns(layer: nn.Conv2d, mask: NDArray[np.bool_], rounds: int = 15) -> Speedup:
    """The two products for one image.

    Args:
        layer: square and undilated, of stride 1, without groups; its bias is left aside.
        mask: bool, shape of the result's map; true where it is computed.
        rounds: of each, alternating.
    """
    kernel, edge = layer.weight.shape[2], layer.weight.shape[2] // 2
    weight = np.ascontiguousarray(layer.weight.detach().numpy().transpose(2, 3, 1, 0)).reshape(-1, layer.out_channels)
    generator = np.random.default_rng(0)
    image = generator.standard_normal((*mask.shape, layer.in_channels), dtype=np.float32)
    x = np.pad(image, ((edge, edge), (edge, edge), (0, 0)))
    pixels = np.flatnonzero(mask)
    ready = windows(x, kernel), windows(x, kernel, pixels)

    def dense() -> Real:
        return windows(x, kernel) @ weight

    def partial() -> Real:
        whole = np.zeros((mask.size, layer.out_channels), np.float32)
        whole[pixels] = windows(x, kernel, pixels) @ weight
        return whole

    kinds = (dense, partial, lambda: ready[0] @ weight, lambda: ready[1] @ weight)
    seconds: list[list[float]] = [[] for _ in kinds]
    for at in range(rounds + 1):
        for kind, times in zip(kinds, seconds, strict=True):
            begin = time.perf_counter()
            kind()
            if at:  # the first of each warms up
                times.append(time.perf_counter() - begin)
    with torch.no_grad():
        wanted = layer(torch.from_numpy(image.transpose(2, 0, 1))[None])[0].permute(1, 2, 0).reshape(mask.size, -1)
    if np.abs(partial()[pixels] - wanted.numpy()[pixels]).max() > 1e-4:
        raise RuntimeError("the product with columns left out is not the convolution's")
    whole, less, gemm, fewer = map(statistics.median, seconds)
    return Speedup(whole, less, round(whole / less, 3), round(gemm / fewer, 3))


def measure(rounds: int) -> list[dict[str, object]]:
    """A row for each shape and sparsity."""
    rows: list[dict[str, object]] = []
    for ins, outs, side in SHAPES:
        torch.manual_seed(0)
        layer = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
        order = np.random.default_rng(1).permutation(side**2)
        for sparsity in SPARSITIES:
            mask = (order >= round(sparsity * side**2)).reshape(side, side)
            fast = benchmark_columns(layer, mask, rounds)
            rows.append({"channels": [ins, outs], "side": side, "sparsity": sparsity, **fast._asdict()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/columns.py --rounds {options.rounds}",
        "machine": machine(),
        "versions": {name: version(name) for name in ("deepreshape", "numpy", "torch")},
        "rows": measure(options.rounds),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
