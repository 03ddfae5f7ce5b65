"""Times of the CKKS library and the model fitted to them, which ``cost --protocol fhe`` uses.

``python benchmarks/ckks.py`` times the operations (half a minute of one core) and writes the package's constants and
``results/ckks-operations.jsonl``; ``python benchmarks/ckks.py digits`` runs all 360 test images of the digits through
``zoo:digits-herpn`` under encryption (three minutes) and writes ``results/ckks-digits.json``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    (RESULTS / "ckks-operations.jsonl").write_text("".join(json.dumps(command | row) + "\n" for row in rows))


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


if __name__ == "__main__":
    digits() if sys.argv[1:] == ["digits"] else operations()
