"""What may stand at a ReLU site, and the only code that knows how a mask is stored.

At a site stands ``torch.nn.ReLU`` (kept whole), ``torch.nn.Identity`` (removed), a :class:`Nonlinearity`
(:class:`MaskedReLU`: kept at some positions; :class:`PolynomialReLU`: a polynomial at the others; :class:`HerPN`: a
quadratic everywhere; :class:`Zeroed`: a constant 0 at some positions around any of these; :class:`KnownReLU`: a
constant at the pixels that a :class:`MaskedConv2d` before it leaves out;
:class:`RPReLU`, :class:`RSign` and :class:`SignConv2d`: those of binary networks) or, with the
convolution before it, :class:`ReuseConv`. :func:`swap` puts other modules there for a while: :func:`faulty` a
:class:`StochasticReLU`; a search for a mask has a :class:`GatedReLU`.
"""

from deepreshape.nn.binary import BinaryConv2d, RPReLU, RSign, ShiftedReLU, SignConv2d
from deepreshape.nn.constants import KnownReLU, MaskedConv2d, Zeroed
from deepreshape.nn.finite import require_finite
from deepreshape.nn.gates import GatedReLU
from deepreshape.nn.herpn import Escape, HerPN, escape
from deepreshape.nn.masks import MaskedReLU, masked_relu
from deepreshape.nn.nonlinearity import KINDS, Nonlinearity, rebuild
from deepreshape.nn.polynomial import PolynomialReLU, polynomial_relu
from deepreshape.nn.reuse import ReuseConv, ReuseForm, reuse_widths
from deepreshape.nn.stochastic import Faults, StochasticReLU, faulty
from deepreshape.nn.swap import swap

__all__ = [
    "KINDS",
    "BinaryConv2d",
    "Escape",
    "Faults",
    "GatedReLU",
    "HerPN",
    "KnownReLU",
    "MaskedConv2d",
    "MaskedReLU",
    "Nonlinearity",
    "PolynomialReLU",
    "RPReLU",
    "RSign",
    "ReuseConv",
    "ReuseForm",
    "ShiftedReLU",
    "SignConv2d",
    "StochasticReLU",
    "Zeroed",
    "escape",
    "faulty",
    "masked_relu",
    "polynomial_relu",
    "rebuild",
    "require_finite",
    "reuse_widths",
    "swap",
]
