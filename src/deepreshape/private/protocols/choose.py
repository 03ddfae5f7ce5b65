"""Which protocol computes what: the one place that reads it from operations and from a :class:`ReluConfig`.

An operation that needs the other party stands here with a function that makes its steps (:data:`STEPS`), out of the
public program: which elements it reads, which it computes, by which protocol. Plans, both parties, prices and the plain
interpreter take these steps and know no operation by name. Linear operations are laid out together (``parties/plan``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from deepreshape.private.program.ops import Local, Op, Relu, Sign, Square, Truncate, Weighted
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import GC_FULL, Assignment, ReluConfig
from deepreshape.private.protocols.base import Flight, ReluProtocol, Step
from deepreshape.private.protocols.garbled.relu_gc import ReluGc
from deepreshape.private.protocols.garbled.relu_sign import ReluSign
from deepreshape.private.protocols.garbled.sign_garbled import GarbledSign
from deepreshape.private.protocols.square import Squares
from deepreshape.private.protocols.transfers.relu_ot import ReluOt
from deepreshape.private.protocols.truncate import Truncation

PROTOCOLS = {"gc-full": ReluGc, "gc-sign": ReluSign, "gc-stochastic": ReluSign, "ot": ReluOt}
"""By the names of ``relu_config.SETTINGS``."""


def relu_protocol(config: ReluConfig) -> ReluProtocol[Any, Any]:
    """The protocol that a config names."""
    return PROTOCOLS[config.protocol](config)


def sign_protocol(config: ReluConfig) -> ReluOt | GarbledSign:
    """What computes signs beside such ReLUs: transfers where they do, else garbled circuits."""
    return ReluOt(config) if config.protocol == "ot" else GarbledSign(config)


@dataclass(frozen=True)
class Protocols:
    """The protocols of a run; ReLUs are computed as ``relu`` says."""

    relu: ReluConfig | Assignment = GC_FULL

    def config(self, op: Op, program: Program) -> ReluConfig:
        """That of an operation with ReLUs or signs."""
        if isinstance(self.relu, ReluConfig):
            return self.relu
        return self.relu.at(program.nonlinear.index(op.name))

    def steps(self, op: Op, program: Program) -> Flight:
        """The steps of an operation; none of one that is local or linear.

        Raises:
            ProgramError: naming the operation, if its protocol cannot take it, or there is none.
        """
        if isinstance(op, Local | Weighted):
            return ()
        op.require(type(op) in STEPS, f"there is no two-party protocol for operations of kind {op.kind}")
        return tuple(STEPS[type(op)](op, program, self))

    def __str__(self) -> str:
        return str(self.relu)


def _rectified(op: Relu, program: Program, chosen: Protocols) -> Iterator[Step]:
    """Truncation where a mask leaves no ReLU, and ReLUs where it does."""
    yield from Truncation.steps(op, program)
    places, _ = op.positions(program.values[op.name])
    if places.size:
        protocol = relu_protocol(chosen.config(op, program))
        yield Step(op.name, protocol, protocol.layer(program.modulus, op, places.size), places, places)


def _signed(op: Sign, program: Program, chosen: Protocols) -> Iterator[Step]:
    protocol = sign_protocol(chosen.config(op, program))
    yield Step(op.name, protocol, protocol.layer(program.modulus, op, program.values[op.name].size))


def _squared(op: Square, program: Program, chosen: Protocols) -> Iterator[Step]:
    """Squares, and ReLUs where its mask is true."""
    yield from Squares.steps(op, program, chosen.relu.squares)
    if op.relus is not None:
        relus = _rectified(op.relus, program, chosen)
        yield from (step for step in relus if isinstance(step.protocol, ReluProtocol))


STEPS: dict[type[Op], Callable[[Any, Program, Protocols], Iterator[Step]]] = {
    Relu: _rectified,
    Sign: _signed,
    Square: _squared,
    Truncate: lambda op, program, chosen: Truncation.steps(op, program),
}
"""What makes the steps of an operation that is neither local nor linear."""
