"""The waist of the package: every activation it knows, and the only code that knows how a mask is stored.

A network has *ReLU sites*. What sits at a site is one of ``torch.nn.ReLU`` (kept whole), ``torch.nn.Identity``
(removed), :class:`MaskedReLU` (kept at some positions), :class:`PolynomialReLU` (kept at some, a polynomial elsewhere)
or, with the convolution before it, :class:`ReuseConv`. For a while, :func:`faulty` puts a :class:`StochasticReLU`
there, and a search for a mask a :class:`GatedReLU`.
"""

from deepreshape.nn.gates import GatedReLU
from deepreshape.nn.masks import MaskedReLU, masked_relu
from deepreshape.nn.polynomial import PolynomialReLU
from deepreshape.nn.reuse import ReuseConv, ReuseForm, reuse_widths
from deepreshape.nn.stochastic import Faults, StochasticReLU, faulty

__all__ = [
    "MASKED",
    "Faults",
    "GatedReLU",
    "MaskedReLU",
    "PolynomialReLU",
    "ReuseConv",
    "ReuseForm",
    "StochasticReLU",
    "faulty",
    "masked_relu",
    "reuse_widths",
]

MASKED = (MaskedReLU, PolynomialReLU)
"""What holds a mask where a search is over."""
