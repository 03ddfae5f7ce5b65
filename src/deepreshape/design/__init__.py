"""From a network to its HybReNets: which stage widths make the ReLU counts follow their importance."""

from deepreshape.design.criticality import Criticality, measure_criticality, only_stage
from deepreshape.design.equalize import GREEK, PUBLISHED_ORDER, Design, coefficients, equalize

__all__ = [
    "GREEK",
    "PUBLISHED_ORDER",
    "Criticality",
    "Design",
    "coefficients",
    "equalize",
    "measure_criticality",
    "only_stage",
]
