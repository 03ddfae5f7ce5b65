"""The product of weights and windows with columns left out, against the whole product, on this processor.

    python benchmarks/columns.py --out benchmarks/results/columns.json

Three shapes of convolutions of a ResNet-18 for ImageNet, 3x3, one image, one thread, float32: windows are copied
(im2col), multiplied by the weights (GEMM), and what was left out is put in as zeros. Left out are random pixels, the
same for all channels. Whole and partial products alternate, so that both see the same machine; a ratio is that of the
medians.
``gemm_only`` is the ratio of the matrix products alone, ``against_torch`` that of torch's own whole convolution,
which copies no windows, to the product with columns left out. Nothing else should run on the machine.

Beside it, what pixels left out mean between two parties: declared, so exact, bytes of a ResNet-18 with random weights
and random pixels behind its convolutions left out, and the reference profile's seconds for it.
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

from deepreshape.cost import LINKS
from deepreshape.counting import count
from deepreshape.models import architecture, build
from deepreshape.nn import KnownReLU, MaskedConv2d, MaskedReLU
from deepreshape.pricing.calibrate import machine
from deepreshape.pricing.quote import Terms, quote_program
from deepreshape.private.arith.ring import Ring
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.lower import lower
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.removal import masks_of
from deepreshape.removal.sites import behind_convolutions

SHAPES = ((64, 64, 56), (128, 128, 28), (256, 256, 14))
"""Channels in, channels out, and the side of the map."""
NETWORK = "resnet18-m16"
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)

Real = NDArray[np.float32]


class Speedup(NamedTuple):
    """Median seconds of the whole product and of that with columns left out, and how many times faster that is."""

    dense: float
    columns: float
    ratio: float
    gemm_only: float
    against_torch: float


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

    batch = torch.from_numpy(image.transpose(2, 0, 1))[None].contiguous(memory_format=torch.channels_last)
    layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)  # pyright: ignore[reportCallIssue]
    kinds = (dense, partial, lambda: ready[0] @ weight, lambda: ready[1] @ weight, lambda: layer(batch))
    seconds: list[list[float]] = [[] for _ in kinds]
    for at in range(rounds + 1):
        for kind, times in zip(kinds, seconds, strict=True):
            begin = time.perf_counter()
            kind()
            if at:  # the first of each warms up
                times.append(time.perf_counter() - begin)
    wanted = layer(batch)[0].permute(1, 2, 0).reshape(mask.size, -1).numpy()
    if np.abs(partial()[pixels] - wanted[pixels]).max() > 1e-4:
        raise RuntimeError("the product with columns left out is not the convolution's")
    whole, less, gemm, fewer, native = map(statistics.median, seconds)
    return Speedup(whole, less, *(round(ratio, 3) for ratio in (whole / less, gemm / fewer, native / less)))


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


def with_columns(network: nn.Module, input: tuple[int, int, int], sparsity: float) -> nn.Module:
    """``network`` itself, its convolutions with ReLUs directly behind them leaving out random pixels."""
    masks = masks_of(network, input)
    generator = torch.Generator().manual_seed(0)
    for site, path in behind_convolutions(network, input, masks).items():
        mask = masks[site]
        order = torch.randperm(mask[0].numel(), generator=generator).view(mask.shape[1:])
        columns = order >= round(sparsity * order.numel())
        layer = network.get_submodule(path)
        network.set_submodule(path, MaskedConv2d.of(layer, columns))  # pyright: ignore[reportArgumentType]
        network.set_submodule(site, KnownReLU(MaskedReLU(mask & columns), ~columns))
    return network


def private_costs() -> list[dict[str, object]]:
    """A row for each sparsity and protocol."""
    rows: list[dict[str, object]] = []
    shape = architecture(NETWORK)
    images = np.random.default_rng(0).standard_normal((16, *shape.input), dtype=np.float32)
    for sparsity in (0.0, 0.1, 0.3, 0.5):
        network = with_columns(build(shape, seed=0), shape.input, sparsity)
        program = lower(network.eval(), images, modulus=Ring(30)).program
        for protocol in ("gc-sign", "ot"):
            plan = Plan(program.public(), ReluConfig.parse(protocol)).declared()
            row: dict[str, object] = {"network": NETWORK, "sparsity": sparsity, "protocol": protocol}
            row |= {"relus": program.relus, "macs": count(network, shape.input).total.macs}
            row["he_products"] = sum(each.he_products for each in plan.rows)
            row |= {f"{phase}_bytes": plan.only(phase=phase).bytes for phase in ("offline", "online")}
            for link in ("lan", "wan"):
                report = quote_program(program, Terms(protocol, link=LINKS[link])).report
                row[f"{link}_seconds"] = round(report.seconds, 2)
            rows.append(row)
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
        "private": private_costs(),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
