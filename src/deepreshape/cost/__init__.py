"""What private inference costs: one report type, published profiles, links. Plain data and arithmetic."""

from deepreshape.cost.arrivals import QueryService, Served, simulate, sustainable
from deepreshape.cost.layers import Layer, LinearLayer, ReluLayer, SignLayer, SquareLayer, UnpricedLayer
from deepreshape.cost.link import LINKS, Link, read_link, split
from deepreshape.cost.profile import Profile, Work, reference
from deepreshape.cost.published import PROFILES, Published, price_published, published_seconds
from deepreshape.cost.quote import Assigned, LayerChoice, Quote
from deepreshape.cost.report import Cost, CostReport, Phase
from deepreshape.cost.schedule import Party, Segment, compute_schedule

__all__ = [
    "LINKS",
    "PROFILES",
    "Assigned",
    "Cost",
    "CostReport",
    "Layer",
    "LayerChoice",
    "LinearLayer",
    "Link",
    "Party",
    "Phase",
    "Profile",
    "Published",
    "QueryService",
    "Quote",
    "ReluLayer",
    "Segment",
    "Served",
    "SignLayer",
    "SquareLayer",
    "UnpricedLayer",
    "Work",
    "compute_schedule",
    "price_published",
    "published_seconds",
    "read_link",
    "reference",
    "simulate",
    "split",
    "sustainable",
]
