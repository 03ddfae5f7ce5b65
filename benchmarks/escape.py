"""Networks of squares on the digits with and without the escape penalty, beside their ReLU twin; no times.

``python benchmarks/escape.py`` (two minutes of a core) writes ``results/escape.jsonl``: for each network and seed, test
accuracy, how many of the 360 test images are answered with numbers, and the largest output among those.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deepreshape.data import Dataset
from deepreshape.models import architecture, build
from deepreshape.training import RECIPES, accuracy, train
from deepreshape.training.runs import write_rows

NETWORK, EPOCHS = "resnet18-m8", 6
VARIANTS = (("", 0.0), ("-herpn", 0.0), ("-herpn", 1.0))


def main() -> None:
    torch.set_num_threads(1)
    data, rows = Dataset.load("digits"), list[dict[str, Any]]()
    for suffix, weight in VARIANTS:
        for seed in range(3):
            model = build(architecture(NETWORK + suffix, data.shape, 10), seed=seed)
            row = {"command": "python benchmarks/escape.py", "network": NETWORK + suffix, "escape": weight}
            row |= {"epochs": EPOCHS, "seed": seed}
            try:
                train(model, data, replace(RECIPES["digits"], epochs=EPOCHS, escape=weight), seed=seed)
            except ValueError as error:
                rows.append(row | {"failed": str(error)})
                continue
            with torch.no_grad():
                outputs = model.eval()(data.normalize(data.test.images[:]))
            finite = outputs.isfinite().all(1)
            row |= {
                "top1_test": round(accuracy(model, data, data.test), 2),
                "answered": int(finite.sum()),
                "images": len(outputs),
                "largest": float(f"{float(outputs[finite].abs().max()):.3g}"),
            }
            rows.append(row)
    write_rows(Path(__file__).parent / "results" / "escape.jsonl", rows)


if __name__ == "__main__":
    main()
