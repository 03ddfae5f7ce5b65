"""What a cell computes (Sphynx, Cho et al., 2021): four nodes, each the sum of two linear operators on earlier values.

A genotype is written as its normal cell, a point, its reduction cell: for each node two operators, each a letter and
the number of its input. Inputs 0 and 1 are the outputs of the two cells before, 2 and up the nodes of the cell. Letters
are in :data:`OPERATORS`; none of them has a ReLU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

__all__ = ["NODES", "OPERATORS", "SPHYNX", "CellEdge", "Genotype"]

OPERATORS = {
    "s": "skip",
    "v": "van3",
    "V": "van5",
    "d": "dil3",
    "D": "dil5",
    "a": "avg3",
}
"""Identity (at stride 2 two 1x1 convolutions), pairs of 3x3 and 5x5 convolutions, dilated ones, an average pool."""

NODES = 4


@dataclass(frozen=True)
class CellEdge:
    """An operator's letter and the number of its input."""

    operator: str
    source: int


@dataclass(frozen=True)
class Genotype:
    """The edges of a normal and of a reduction cell, two into each node.

    Raises:
        ValueError: if an operator is unknown, or an edge comes from a node that is not computed yet.
    """

    normal: tuple[CellEdge, ...]
    reduction: tuple[CellEdge, ...]

    def __post_init__(self) -> None:
        for edges in (self.normal, self.reduction):
            if len(edges) != 2 * NODES:
                raise ValueError(f"a cell has {2 * NODES} edges, not {len(edges)}")
            for number, edge in enumerate(edges):
                if edge.operator not in OPERATORS:
                    known = ", ".join(f"{letter} ({name})" for letter, name in OPERATORS.items())
                    raise ValueError(f"unknown operator {edge.operator!r}; known are {known}")
                if not 0 <= edge.source < 2 + number // 2:
                    raise ValueError(
                        f"edge {edge.operator}{edge.source} of node {number // 2 + 2} comes from a later value; "
                        f"0 to {number // 2 + 1} work"
                    )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The genotype of its text.

        Raises:
            ValueError: if it is none; the message says which part.
        """
        cells = text.split(".")
        if len(cells) != 2 or not all(re.fullmatch(r"(?:[A-Za-z]\d)*", cell) for cell in cells):
            raise ValueError(f"{text!r} is not a genotype; the published one is {SPHYNX}")
        normal, reduction = (
            tuple(CellEdge(letter, int(source)) for letter, source in re.findall(r"([A-Za-z])(\d)", cell))
            for cell in cells
        )
        return cls(normal, reduction)

    def __str__(self) -> str:
        cells = ("".join(f"{edge.operator}{edge.source}" for edge in edges) for edges in (self.normal, self.reduction))
        return ".".join(cells)


SPHYNX = "s0s1s2D0V2d0v1s2.v0v1s0v2d0s2V0s4"
"""The published genotype, one for all networks."""
