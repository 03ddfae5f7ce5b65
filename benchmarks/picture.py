"""The README's picture, from the rows of the comparison at equal ReLU count.

python benchmarks/picture.py docs/cifar100.svg
"""

import json
import sys
from pathlib import Path

from deepreshape.report import picture
from deepreshape.training.runs import Result

ROWS = Path(__file__).parent / "results" / "cifar100.jsonl"
NETWORKS = "resnet18-m16", "resnet18-m22", "hrn-5x5x3x-m4"
"""ResNet-18, ResNet-18 with the multiply-adds of the HybReNet, and the HybReNet."""


def drawn() -> str:
    """The picture as SVG."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    return picture([Result.of(row) for row in rows if row["id"].startswith("iso_") and row["network"] in NETWORKS])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawn())
