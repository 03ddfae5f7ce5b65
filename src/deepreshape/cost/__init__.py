"""What private inference costs: one report type, published profiles, links. Plain data and arithmetic."""

from deepreshape.cost.layers import Layer, LinearLayer, ReluLayer
from deepreshape.cost.link import Link, split
from deepreshape.cost.published import PROFILES, Published, price
from deepreshape.cost.report import Cost, CostReport, Phase

__all__ = [
    "PROFILES",
    "Cost",
    "CostReport",
    "Layer",
    "LinearLayer",
    "Link",
    "Phase",
    "Published",
    "ReluLayer",
    "price",
    "split",
]
