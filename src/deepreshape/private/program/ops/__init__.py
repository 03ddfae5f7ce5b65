"""The operations of the integer program, each with all that it means.

An operation is a frozen dataclass. It says the shape and fraction of its result (:meth:`Op.value`), how large it may
get (:meth:`Op.worst`) and what it computes (:meth:`Op.interpret`); if each party can do it on its share alone, it is
:class:`Local` and says how (:meth:`Local.on_share`). Its bytes follow from its fields (``encoding.py``).

*Meaning.* A value stands for integer / 2^fraction, images being (channels, height, width). ``Conv2d`` and ``Linear``
multiply exactly, so the fraction grows by that of the weights; ``Relu`` and ``Truncate`` drop bits of it and round to
the nearest, ``Square`` rounds down. All others are exact. ``SumPool`` sums and does not divide: an average's division
belongs into the weights of the next layer. Nothing is ever reduced: a program is right only while every value fits the
modulus, and :meth:`Program.check` says whether it must.
"""

from __future__ import annotations

from deepreshape.private.program.ops.arithmetic import Add, Raise, Rescale, SumPool
from deepreshape.private.program.ops.base import (
    INPUT,
    LARGEST,
    MOST_ELEMENTS,
    MOST_WEIGHTS,
    Exact,
    Integers,
    Local,
    Op,
    ProgramError,
    Rounding,
    Secret,
    Shape,
    Value,
    Weights,
)
from deepreshape.private.program.ops.linear import Conv2d, Linear, Weighted
from deepreshape.private.program.ops.moves import Concat, Fill, Flatten, Gather
from deepreshape.private.program.ops.nonlinear import Relu, Sign, Square, Truncate

__all__ = [
    "INPUT",
    "LARGEST",
    "MOST_ELEMENTS",
    "MOST_WEIGHTS",
    "OPS",
    "Add",
    "Concat",
    "Conv2d",
    "Exact",
    "Fill",
    "Flatten",
    "Gather",
    "Integers",
    "Linear",
    "Local",
    "Op",
    "ProgramError",
    "Raise",
    "Relu",
    "Rescale",
    "Rounding",
    "Secret",
    "Shape",
    "Sign",
    "Square",
    "SumPool",
    "Truncate",
    "Value",
    "Weighted",
    "Weights",
]

OPS: tuple[type[Op], ...] = (
    Conv2d, Linear, Add, SumPool, Relu, Square, Sign, Truncate, Raise, Rescale, Flatten, Concat, Gather, Fill,
)  # fmt: skip
"""All there are."""
