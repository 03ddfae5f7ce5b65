"""The README's picture, from the rows of the comparisons at equal ReLU count.

python benchmarks/picture.py docs/cifar100.svg
"""

import sys
from pathlib import Path

from deepreshape.report import picture
from deepreshape.training.runs import Result, read_rows

RESULTS = Path(__file__).parent / "results"
NETWORKS = "resnet18-m16", "resnet18-m22", "hrn-5x5x3x-m4"
"""ResNet-18, ResNet-18 with the multiply-adds of the HybReNet, and the HybReNet."""


def drawn() -> str:
    """The picture as SVG, of one row a point: the first where a training was repeated."""
    rows = [row for row in read_rows(RESULTS / "cifar100.jsonl") if row["id"].startswith("iso_")]
    rows += read_rows(RESULTS / "shapes.jsonl")
    points = {(row["network"], row["plan"], row["seed"]): row for row in reversed(rows) if row["network"] in NETWORKS}
    return picture([Result.of(row) for row in reversed(points.values())])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawn())
