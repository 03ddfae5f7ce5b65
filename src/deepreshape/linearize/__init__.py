"""Removing ReLUs: one method, one file, one frozen config; ``linearize`` is the way in, ``plan`` the coarse part of
it.
"""

from deepreshape.linearize.autorep import AutoReP
from deepreshape.linearize.coarse import Coarse
from deepreshape.linearize.deepreduce import Cull, Scale, Thin
from deepreshape.linearize.descent import Descent
from deepreshape.linearize.fold import Folded, fold
from deepreshape.linearize.method import Method, Removal, linearize, relu_prices
from deepreshape.linearize.plan import Plan, Record, apply, candidates, plan, plan_of
from deepreshape.linearize.reuse import Reuse
from deepreshape.linearize.senet import SENet
from deepreshape.linearize.sites import masks_of
from deepreshape.linearize.snl import SNL
from deepreshape.linearize.taylor import Taylor

__all__ = [
    "METHODS",
    "SNL",
    "AutoReP",
    "Coarse",
    "Cull",
    "Descent",
    "Folded",
    "Method",
    "Plan",
    "Record",
    "Removal",
    "Reuse",
    "SENet",
    "Scale",
    "Taylor",
    "Thin",
    "apply",
    "candidates",
    "fold",
    "linearize",
    "masks_of",
    "plan",
    "plan_of",
    "relu_prices",
]

METHODS: dict[str, type[Method]] = {
    method.__name__.lower(): method for method in (SNL, SENet, Taylor, AutoReP, Descent, Coarse)
}
"""Every method by its name on the command line."""
