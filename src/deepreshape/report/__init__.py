"""From rows of results to what a person looks at."""

from deepreshape.report.html import picture, render, verdict
from deepreshape.report.masks import picture_of_masks
from deepreshape.report.pareto import Advantage, Summary, advantages, pareto_front, seconds_basis, summarize

__all__ = [
    "Advantage",
    "Summary",
    "advantages",
    "pareto_front",
    "picture",
    "picture_of_masks",
    "render",
    "seconds_basis",
    "summarize",
    "verdict",
]
