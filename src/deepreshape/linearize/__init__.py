"""Removing ReLUs: one method, one file, one frozen config; ``linearize`` and ``plan`` are the way in."""

from deepreshape.linearize.deepreduce import Cull, Scale, Thin
from deepreshape.linearize.fold import Folded, fold
from deepreshape.linearize.plan import Plan, Record, apply, candidates, plan, plan_of
from deepreshape.linearize.reuse import Reuse

__all__ = [
    "Cull",
    "Folded",
    "Plan",
    "Record",
    "Reuse",
    "Scale",
    "Thin",
    "apply",
    "candidates",
    "fold",
    "plan",
    "plan_of",
]
