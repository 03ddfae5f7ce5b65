"""What one private inference of a network costs, in one call: our runtime's price, or a published system's by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from deepreshape.cost import Profile, Quote, read_link
from deepreshape.counting import count
from deepreshape.pricing.assign import read_objective
from deepreshape.pricing.quote import Terms, quote_layers, quote_program
from deepreshape.private.program.program import Program

__all__ = ["price"]


def price(
    network: nn.Module | Any,
    shape: tuple[int, int, int] | None = None,
    *,
    protocol: str = "gc-full",
    link: str | None = None,
    workers: int | None = None,
    profile: Path | str | None = None,
    objective: str = "seconds",
) -> Quote:
    """Price a network by its layers, at once; or what ``lower`` gave, whose bytes are those that will travel.

    Args:
        network: a torch module, what ``lower`` gives, or a program.
        shape: of a module's input, (C, H, W).
        protocol: of our runtime, such as ``gc-sign`` or ``auto``, or a published system such as ``server-garbler``.
        link: ``"lan"``, ``"wan"``, ``"wireless"``, or up/down/round trip such as ``"20mbit/100mbit/40ms"``; loopback,
            or for a published system its own, without.
        workers: the most processes for homomorphic work; as many as pay without.
        profile: file that `deepreshape calibrate` wrote; the package's own without.
        objective: what ``auto`` chooses for: ``"seconds"``, ``"bytes"`` or ``"online"`` (seconds); the quote's
            ``assigned.word`` is what ``run_private``, ``Server`` and ``Client`` then take as ``relu``.

    Raises:
        ValueError: if a word or the shape does not fit, there is nothing to price, or an operator has no price.
    """
    measured = Profile.read(Path(profile)) if profile else None
    terms = Terms(
        protocol,
        link=read_link(link) if link else None,
        workers=workers,
        profile=measured,
        objective=read_objective(objective),
    )
    if isinstance(network, nn.Module):
        if shape is None:
            raise ValueError("a module is priced for a shape of input, such as (3, 32, 32)")
        counted = count(network, shape).complete()
        return quote_layers(counted.priced_layers, terms)
    return quote_program(network if isinstance(network, Program) else network.program, terms)
