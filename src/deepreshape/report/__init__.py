"""From rows of results to what a person looks at."""

from deepreshape.report.html import picture, render, scope, verdict
from deepreshape.report.masks import picture_of_masks
from deepreshape.report.pareto import (
    Advantage,
    Summary,
    advantages,
    pareto_front,
    profiles_of,
    seconds_basis,
    summarize,
)

__all__ = [
    "Advantage",
    "Summary",
    "advantages",
    "pareto_front",
    "picture",
    "picture_of_masks",
    "profiles_of",
    "render",
    "scope",
    "seconds_basis",
    "summarize",
    "verdict",
]
