"""What may stand at a site in place of a whole ReLU, and the registry that rebuilds it from a saved model.

A new one is one file: a subclass of :class:`Nonlinearity` with a ``kind`` and one ``custom_op`` of torch, so that
a trace (a count, a lowering) sees one operator.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

from torch import Tensor, nn

__all__ = ["KINDS", "Nonlinearity", "rebuild"]

KINDS: dict[str, type[Nonlinearity]] = {}
"""By the word in a manifest."""


class Nonlinearity(nn.Module):
    """What stands at a site; all that it needs lies in its parameters and buffers.

    Attributes:
        kind: the word for it in a manifest; a subclass that sets one is registered.
        mask: bool, shape of one output, true where a ReLU is computed; None where none is.
    """

    kind: ClassVar[str] = ""
    mask: Tensor | None

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The module of these saved parameters and buffers, by their names in it.

        Raises:
            KeyError: if one is missing.
        """


def rebuild(kind: str, tensors: Mapping[str, Tensor]) -> Nonlinearity:
    """The module of a ``kind`` with these tensors.

    Raises:
        ValueError: if the kind is unknown or a tensor is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of nonlinearity {kind!r}; this version knows {', '.join(KINDS)}")
    try:
        return KINDS[kind].from_tensors(tensors)
    except KeyError as error:
        saved = ", ".join(tensors) or "nothing"
        raise ValueError(f"a {kind} needs the tensor {error}, and {saved} was saved") from None
