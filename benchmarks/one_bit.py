"""What a sign and a ReLU cost between two parties, with and without real shortcuts: declared bytes, which are exact.

    python benchmarks/one_bit.py --out benchmarks/results/one_bit.json

Networks have random weights: bytes follow from shapes and from the bits that sign tests are proven to need. A network
without shortcuts also loses its RPReLUs to thresholds (``models.react.fuse_thresholds``).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from deepreshape.models import architecture, build
from deepreshape.pricing.calibrate import versions
from deepreshape.private.parties.plan import Plan
from deepreshape.private.program.lower import lower
from deepreshape.private.program.ops import Relu, Sign
from deepreshape.private.program.relu_config import ReluConfig

NETWORKS = ("react18-m16", "react18-m16-norelus", "react18-m16-noshortcuts", "resnet18-m16")
PROTOCOLS = ("gc-full", "gc-sign", "gc-sign:window", "ot:window")


def rows_of(name: str) -> list[dict[str, Any]]:
    """One network under each protocol."""
    model = build(architecture(name), seed=0)
    x = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.train()(x)
    program = lower(model.eval(), x.numpy()).program
    kinds = {"sign": [op for op in program.ops if isinstance(op, Sign)]}
    kinds["relu"] = [op for op in program.ops if isinstance(op, Relu)]
    found: list[dict[str, Any]] = []
    for word in PROTOCOLS:
        plan = Plan(program.public(), ReluConfig.parse(word))
        declared, row = plan.declared(), {"network": name, "ring": program.modulus.bits, "protocol": word}
        for kind, ops in kinds.items():
            count = sum(program.values[op.name].size for op in ops)
            if not count:
                continue
            parts = [declared.only(layer=op.name) for op in ops]
            online = sum(part.only(phase="online").bytes for part in parts)
            offline = sum(part.bytes for part in parts) - online
            row[kind] = {
                "count": count,
                "bytes_offline": round(offline / count, 1),
                "bytes_online": round(online / count, 1),
                "bits": sorted({op.high or program.modulus.bits for op in ops}),
            }
        row["megabytes"] = {
            "offline": round((declared.bytes - declared.only(phase="online").bytes) / 1e6, 1),
            "online": round(declared.only(phase="online").bytes / 1e6, 2),
        }
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in NETWORKS for row in rows_of(name)]
    text = json.dumps({"command": "python benchmarks/one_bit.py", "versions": versions(), "rows": rows}, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
