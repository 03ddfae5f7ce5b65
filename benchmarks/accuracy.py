"""What a trained network loses on the way: float against integers, integers against two processes.

    python benchmarks/accuracy.py MODEL... --images 200 --out benchmarks/results/accuracy.json

A MODEL is a saved model's folder; formats are calibrated on its first 256 training images. On the whole test split, the
integer program against the float network: ``plain`` rounds to the nearest, ``rounded`` does as two parties do where no
ReLU follows, by shares drawn at random, which is what a user gets. ``overflows`` counts images on which a value leaves
the range of the ring: they count as errors.

``private``: the first ``--images`` test images through two processes on this machine, each with offline material of its
own. ``agree`` is equality with the plain program on all outputs of all images, bit for bit, rounding as the shares say;
``same_class`` counts the classes that are also those of the program that rounds to the nearest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepreshape.data import Dataset
from deepreshape.models.saved import load, manifest_of
from deepreshape.pricing.calibrate import machine
from deepreshape.private.arith.ring import Words
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.encoding import from_bytes, to_bytes
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import Program, to_fixed
from deepreshape.private.protocols.choose import Protocols
from deepreshape.private.service.local_run import run_local

CALIBRATION = 256
BATCH = 50
NONE = -1
"""In place of the class of an image that overflows."""
PROGRAM: list[Program] = []
"""In a worker: what it runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=200, help="how many go through two processes")
    parser.add_argument("--most", type=int, help="how many go through the plain program; all by default")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # of the workers and parties: one core each
    names = " ".join(path.name for path in options.models)
    result: dict[str, Any] = {
        "command": f"python benchmarks/accuracy.py {names} --images {options.images}",
        "machine": machine(),
        "versions": {name: version(name) for name in ("deepreshape", "numpy", "cryptography", "tenseal", "torch")},
        "rows": [],
    }
    for path in options.models:
        result["rows"].append(measure(path, options.images, options.most, options.workers))
        text = json.dumps(result, indent=1) + "\n"
        if options.out:
            options.out.write_text(text)
    print(text)


def measure(path: Path, images: int, most: int | None, workers: int) -> dict[str, Any]:
    model = load(path)
    manifest = manifest_of(model)
    data = Dataset.load(manifest.dataset, None)
    lowered = lower(model, data.normalize(data.train.images[:CALIBRATION]).contiguous().numpy())
    program = lowered.program
    test = data.normalize(data.test.images[:most]).contiguous()
    labels = data.test.labels[:most].numpy()
    inputs = to_fixed(test.numpy(), program.input_fraction)
    expected = classes_of_floats(model, test)
    down, rounded = classes_of_integers(program, inputs, workers)
    return {
        "model": path.name,
        "dataset": data.name,
        "relus": program.relus,
        "formats": str(lowered),
        "n": len(labels),
        "top1_float": top1(expected, labels),
        "plain": against(down, expected, labels),
        "rounded": against(rounded, expected, labels),
        "private": private(program, inputs[:images], down[:images], labels[:images]),
    }


def against(classes: NDArray[np.int64], expected: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "top1": top1(classes, labels),
        "difference": round(top1(classes, labels) - top1(expected, labels), 3),
        "same_class": round(100 * float(np.mean(classes == expected)), 3),
        "overflows": int((classes == NONE).sum()),
    }


def top1(classes: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """In percent."""
    return round(100 * float(np.mean(classes == labels)), 3)


def classes_of_floats(model: torch.nn.Module, images: torch.Tensor) -> NDArray[np.int64]:
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(batch).argmax(1) for batch in images.split(BATCH)]).numpy()


def classes_of_integers(program: Program, inputs: NDArray[np.int64], workers: int) -> NDArray[np.int64]:
    """(2, N): rounding to the nearest, and as two parties round."""
    batches = np.array_split(inputs, -(-len(inputs) // BATCH))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=begin, initargs=(to_bytes(program),)) as pool:
        return np.concatenate(list(pool.map(both, batches)), 1)


def begin(program: bytes) -> None:
    PROGRAM.append(from_bytes(program))


def both(inputs: NDArray[np.int64]) -> NDArray[np.int64]:
    program = PROGRAM[0]
    sources = Plan(program.public()).by_shares
    rng = np.random.default_rng(int(np.abs(inputs).sum()))  # another for every batch, the same in every run
    modulus = program.modulus
    shares = {
        name: rng.integers(0, modulus.order, (len(inputs), *program.values[name].shape), np.uint64) for name in sources
    }
    return np.stack([classify(program, inputs, {}), classify(program, inputs, shares)])


def classify(program: Program, inputs: NDArray[np.int64], shares: Mapping[str, Words]) -> NDArray[np.int64]:
    try:
        outputs = plain.run(program, inputs, client=shares, protocols=Protocols())
    except OverflowError:
        if len(inputs) == 1:
            return np.array([NONE])
        each = [{name: share[at : at + 1] for name, share in shares.items()} for at in range(len(inputs))]
        return np.concatenate(
            [classify(program, x[None], client_shares) for x, client_shares in zip(inputs, each, strict=True)]
        )
    return outputs.reshape(len(inputs), -1).argmax(1)


def private(
    program: Program, inputs: NDArray[np.int64], expected: NDArray[np.int64], labels: NDArray[np.int64]
) -> dict[str, Any]:
    start = time.perf_counter()
    report = run_local(program, inputs)
    classes = np.array(report["outputs"]).reshape(len(inputs), -1).argmax(1)
    return {
        "n": len(inputs),
        "agree": report["agree"],
        "same_class": int((classes == expected).sum()),
        "top1": top1(classes, labels),
        "max_lsb_difference": report["max_lsb_difference"],
        "declared_bytes_match": report["declared_bytes_match"],
        "seconds": {phase: round(mean, 3) for phase, mean in report["seconds"].items()},
        "wall_seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    main()
