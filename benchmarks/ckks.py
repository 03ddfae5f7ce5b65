"""Times of the CKKS library and the model fitted to them, which ``cost --protocol fhe`` uses.

``python benchmarks/ckks.py`` times the operations (half a minute of one core) and writes the package's constants and
``results/ckks-operations.jsonl``; ``python benchmarks/ckks.py digits`` runs all 360 test images of the digits through
``zoo:digits-herpn`` under encryption (three minutes) and writes ``results/ckks-digits.json``.
``python benchmarks/ckks.py coarse FIRST COUNT`` runs that many test images of CIFAR-100, one by one, through
``zoo:cifar100-coarse-herpn`` under encryption (half a minute of processor time and 5 GB each) and adds a row to
``results/ckks-coarse.jsonl``.
``python benchmarks/ckks.py errors`` compares the largest error of random networks with the fit
``CkksParameters.expected_error`` and writes ``results/ckks-errors.jsonl``: how far they are apart is the margin by
which parameters are chosen.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from deepreshape.training.runs import append_row, write_rows

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
REFERENCE = ROOT / "src" / "deepreshape" / "engines" / "ckks" / "reference.json"


def machine() -> dict[str, Any]:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in lines if line.startswith("model name")), ": ").split(":")[1].strip()
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def operations() -> None:
    from deepreshape.engines.ckks.price import measure_operations

    constants, rows = measure_operations(lambda what: print(what, file=sys.stderr))
    REFERENCE.write_text(
        json.dumps({"machine": machine(), "unit": "ns for each N log2 N", "operations": constants}, indent=1) + "\n"
    )
    command = {"command": "python benchmarks/ckks.py", **machine()}
    write_rows(RESULTS / "ckks-operations.jsonl", (command | row for row in rows))


def digits() -> None:
    from deepreshape.engines.ckks.circuit import compiled
    from deepreshape.engines.ckks.price import price_circuit
    from deepreshape.models.saved import load
    from deepreshape.models.zoo import folder_of
    from deepreshape.private.program.lower import real_layers

    words = ["private", "fhe", "local", "--model", "zoo:digits-herpn", "--images", "360", "--keep", "--json"]
    done = subprocess.run([sys.executable, "-m", "deepreshape", *words], capture_output=True, check=True)
    report = json.loads(done.stdout)
    price = price_circuit(compiled(real_layers(load(folder_of("zoo:digits-herpn")), (1, 8, 8)), (1, 8, 8), 8))
    count = -(-report["inputs"] // report["images_a_ciphertext"])
    result = {
        "command": "python benchmarks/ckks.py digits",
        "runs": " ".join(["deepreshape", *words]),
        **machine(),
        "cpu_seconds_a_ciphertext": report["seconds"]["evaluate"] / count,
        "modelled_seconds_kept": price.seconds_kept,
        "modelled_seconds_first": price.seconds,
        "error_of_largest_output": report["max_error"] / report["largest_output"],
        **report,
    }
    (RESULTS / "ckks-digits.json").write_text(json.dumps(result, indent=1) + "\n")


def coarse() -> None:
    import numpy as np
    import torch

    from deepreshape.data import Dataset
    from deepreshape.engines.ckks.circuit import compiled
    from deepreshape.engines.ckks.local import run_encrypted
    from deepreshape.models.saved import load, weights_digest
    from deepreshape.models.zoo import folder_of
    from deepreshape.private.program.lower import real_layers

    first, count = map(int, sys.argv[2:])
    torch.set_num_threads(1)
    model, data = load(folder_of("zoo:cifar100-coarse-herpn")), Dataset.load("cifar100-coarse")
    images = data.normalize(torch.as_tensor(data.test.images[first : first + count]))
    with torch.no_grad():  # in float64: the errors are smaller than those of float32
        outputs = model.double()(images.double()).numpy()
    answer = run_encrypted(compiled(real_layers(model, data.shape), data.shape), images.double().numpy())
    decrypted = answer.outputs.reshape(outputs.shape)
    row = {
        "command": f"python benchmarks/ckks.py coarse {first} {count}",
        **machine(),
        "load_1min": os.getloadavg()[0],
        "weights": weights_digest(model),
        "images": count,
        "same_class": int((decrypted.argmax(1) == outputs.argmax(1)).sum()),
        "right": int((decrypted.argmax(1) == data.test.labels[first : first + count].numpy()).sum()),
        "max_error": float(f"{np.abs(decrypted - outputs).max():.3g}"),
        "largest_output": round(float(np.abs(outputs).max()), 3),
        "cpu_seconds_an_image": round(answer.cpu_seconds["evaluate"] / count, 2),
        "seconds": {name: round(seconds, 2) for name, seconds in answer.cpu_seconds.items()},
        "bytes": answer.bytes,
        "peak_rss_mib": round(answer.peak_rss_mib),
    }
    append_row(RESULTS / "ckks-coarse.jsonl", row)
    print(json.dumps(row))


def errors() -> None:
    """Networks of one to five squares: convolutions of 3 channels on 8 x 8, HerPNs of random scales, a linear layer."""
    import numpy as np
    import torch
    from torch import nn

    from deepreshape.engines.ckks.circuit import compiled
    from deepreshape.engines.ckks.local import run_encrypted
    from deepreshape.nn import HerPN
    from deepreshape.private.program.lower import real_layers

    rows: list[dict[str, Any]] = []
    for squares in range(1, 6):
        for seed in range(8 if squares < 3 else 4):
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Conv2d(3, 3, 3, padding=1)]
            for _ in range(squares):
                site = HerPN(3)
                nn.init.uniform_(site.scale, 0.5, 2.0)
                layers += [site, nn.Conv2d(3, 3, 3, padding=1)]
            model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10)).double().train()
            with torch.no_grad():
                for _ in range(60):
                    model(torch.randn(64, 3, 8, 8, dtype=torch.float64))
                x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
                outputs = model.eval()(x).numpy()
            circuit = compiled(real_layers(model, (3, 8, 8)), (3, 8, 8), 4)
            error = float(np.abs(run_encrypted(circuit, x.numpy()).outputs - outputs).max())
            expected = circuit.parameters.expected_error
            about = {
                "squares": squares,
                "seed": seed,
                "degree": circuit.parameters.degree,
                "bits": circuit.parameters.bits,
            }
            largest = float(np.abs(outputs).max())
            # what is expected is a share of the largest output
            sizes = {"largest_output": largest, "error": error, "expected": expected}
            sizes = {name: float(f"{value:.3g}") for name, value in sizes.items()}
            rows.append(about | sizes | {"log2_ratio": round(float(np.log2(error / largest / expected)), 2)})
            print(rows[-1], file=sys.stderr)
    command = {"command": "python benchmarks/ckks.py errors"}
    write_rows(RESULTS / "ckks-errors.jsonl", (command | row for row in rows))


if __name__ == "__main__":
    {"digits": digits, "coarse": coarse, "errors": errors}.get("".join(sys.argv[1:2]), operations)()
