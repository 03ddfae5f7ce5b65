"""Removing ReLUs: one method, one file, one frozen config; ``linearize`` is the way in, ``plan`` the coarse part of
it.
"""

from deepreshape.design.coarse_steps import Cull, Reuse, Scale, Thin
from deepreshape.design.plan import CoarsePlan, Record, apply, coarse_plans, plan, plan_of
from deepreshape.removal.autorep import AutoReP
from deepreshape.removal.binarize import Binarization, binarize
from deepreshape.removal.coarse import Coarse
from deepreshape.removal.dead import remove_dead
from deepreshape.removal.descent import Descent
from deepreshape.removal.herpn import Herpn
from deepreshape.removal.method import Linearization, Method, Removal, linearize, relu_prices, tuning_recipe
from deepreshape.removal.senet import SENet
from deepreshape.removal.sites import export_masks, masks_of
from deepreshape.removal.snl import SNL
from deepreshape.removal.spatial import Spatial
from deepreshape.removal.substitute import Substitution, substitute
from deepreshape.removal.taylor import Taylor

__all__ = [
    "METHODS",
    "SNL",
    "AutoReP",
    "Binarization",
    "Coarse",
    "CoarsePlan",
    "Cull",
    "Descent",
    "Herpn",
    "Linearization",
    "Method",
    "Record",
    "Removal",
    "Reuse",
    "SENet",
    "Scale",
    "Spatial",
    "Substitution",
    "Taylor",
    "Thin",
    "apply",
    "binarize",
    "coarse_plans",
    "export_masks",
    "linearize",
    "masks_of",
    "plan",
    "plan_of",
    "relu_prices",
    "remove_dead",
    "substitute",
    "tuning_recipe",
]

METHODS: dict[str, type[Method]] = {
    method.__name__.lower(): method for method in (SNL, SENet, Taylor, AutoReP, Descent, Spatial, Coarse, Herpn)
}
"""Every method by its name on the command line."""
