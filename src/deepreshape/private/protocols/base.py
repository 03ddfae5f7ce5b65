"""A layer of shared ReLUs, whatever the protocol: the one interface through which the parties prepare and run it.

Model: semi-honest. Before: x = x_client + x_server, x_client known offline. After: shares of max(x, 0) / 2^shift,
rounded, of which the client's is r, what it chose offline as its mask of the next linear layer; so that layer's
homomorphic part does not wait for this one.

``relu_full.py`` has the whole ReLU in a garbled circuit, ``relu_sign.py`` only its sign; ``garbling.py`` what they
share. A layer's :attr:`~deepreshape.private.protocols.label_transfer.ReluLayer.sign` says which.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from deepreshape.private.arith.ring import Randomness, Words
from deepreshape.private.crypto.ot.iknp import IKNP
from deepreshape.private.program.relu_config import Role
from deepreshape.private.protocols import relu_gc as relu_full
from deepreshape.private.protocols import relu_sign
from deepreshape.private.protocols.label_transfer import (
    Arrays,
    Evaluator,
    Garbler,
    Party,
    Prepared,
    ReluLayer,
    Step,
    Turn,
    evaluator_of,
    garbler_of,
    wipe,
)
from deepreshape.private.transport.channel import Channel
from deepreshape.private.transport.ledger import Phase

__all__ = [
    "Party",
    "Prepared",
    "ReluLayer",
    "client_offline",
    "client_online",
    "declared",
    "ots",
    "server_offline",
    "server_online",
    "setup_bytes",
    "start",
    "stored",
    "together",
    "turns",
]

_END = object()


def start(
    channel: Channel, role: Role, layers: Iterable[ReluLayer], session: bytes, rng: Randomness | None = None
) -> Party:
    """What ``role`` needs to prepare ``layers``, at least one and all of one garbler; the peer does the same.

    ``session`` never repeats; both parties have compared it. ``rng`` is for tests.
    """
    found = list(layers)
    kind = Garbler if found[0].garbler == role else Evaluator
    return kind.start(channel, session, rng, products=_products(found))


def setup_bytes(layers: Iterable[ReluLayer]) -> tuple[int, int]:
    """Bytes of :func:`start`, (garbler to evaluator, evaluator to garbler)."""
    there, back = IKNP.setup_bytes
    return (back + there, there + back) if _products(layers) else (back, there)


def client_offline(channel: Channel, layer: ReluLayer, party: Party, share: Words, mask: Words) -> Step:
    """The client's offline step; see ``garbling.py`` for what it gives.

    Args:
        channel: to the server.
        layer: what to prepare.
        party: what :func:`start` gave.
        share: the client's share of the input, uint64 (count,).
        mask: what shall be the client's share of the output, uniform, uint64 (count,).
    """
    _check_shares(layer, share=share, mask=mask)
    if layer.garbler == "client":
        yield from _protocol(layer).client_garbles(channel, layer, garbler_of(party, layer), share, mask)
    else:
        yield from _protocol(layer).client_evaluates(channel, layer, evaluator_of(party, layer), share, mask)


def server_offline(channel: Channel, layer: ReluLayer, party: Party) -> Step:
    """The server's offline step, the counterpart of :func:`client_offline`."""
    if layer.garbler == "server":
        yield from _protocol(layer).server_garbles(channel, layer, garbler_of(party, layer))
    else:
        yield from _protocol(layer).server_evaluates(channel, layer, evaluator_of(party, layer))


def together(channel: Channel, steps: Mapping[str, Step]) -> Iterator[tuple[str, Prepared]]:
    """The offline steps of several layers, side by side: all of them up to where they wait, then on from there.

    Both parties name the layers in the same order. What each step gives comes with its layer's name.
    """
    going = dict(steps)
    while going:
        for name, step in list(going.items()):
            with channel.ledger.at(name, "offline"):
                prepared = next(step, _END)
            while isinstance(prepared, Prepared):
                yield name, prepared
                with channel.ledger.at(name, "offline"):
                    prepared = next(step, _END)
            if prepared is _END:
                del going[name]


def client_online(channel: Channel, layer: ReluLayer, session: bytes, prepared: Iterable[Prepared]) -> None:
    """The client's online step. Its share of the output is the mask it gave to :func:`client_offline`.

    Raises:
        ProtocolError: if what the server garbled or sent gives no list of shares.
        RuntimeError: if ``prepared`` was used before.
    """
    with _opened(prepared) as (head, batches):
        _protocol(layer).client_online(channel, layer, session, head, batches)


def server_online(
    channel: Channel, layer: ReluLayer, session: bytes, prepared: Iterable[Prepared], share: Words
) -> Words:
    """The server's online step.

    Args:
        channel: to the client.
        layer: what was prepared.
        session: that of the offline phase.
        prepared: what :func:`server_offline` gave; used up.
        share: the server's share of the input, uint64 (count,).

    Returns:
        The server's share of the output, uint64 (count,).

    Raises:
        ProtocolError: if the client's answer, or what it garbled, gives no list of shares.
        RuntimeError: if ``prepared`` was used before.
    """
    _check_shares(layer, share=share)
    with _opened(prepared) as (head, batches):
        return _protocol(layer).server_online(channel, layer, session, head, batches, share)


def turns(layer: ReluLayer) -> list[Turn]:
    """Who sends how many bytes offline, turn by turn: what comes between two waits of :func:`together`."""
    return _protocol(layer).turns(layer)


def declared(layer: ReluLayer) -> dict[Phase, tuple[int, int]]:
    """Bytes of a layer in each phase, (client to server, server to client); :func:`setup_bytes` come once a session.

    Online is one round: what the server says first depends on nothing that it waits for.
    """
    up, down = (sum(nbytes for sender, nbytes in turns(layer) if sender == end) for end in "CS")
    return {"offline": (up, down), "online": _protocol(layer).online_bytes(layer)}


def stored(layer: ReluLayer) -> tuple[int, int]:
    """Bytes of arrays that (client, server) keep between the phases."""
    return _protocol(layer).stored(layer)


def ots(layer: ReluLayer) -> int:
    """Oblivious transfers a ReLU, all of them offline."""
    return layer.chosen + (layer.sign is not None)


def _protocol(layer: ReluLayer):
    return relu_full if layer.sign is None else relu_sign


def _products(layers: Iterable[ReluLayer]) -> bool:
    return any(layer.sign is not None for layer in layers)


@contextmanager
def _opened(prepared: Iterable[Prepared]) -> Generator[tuple[Arrays, Iterator[Prepared]]]:
    """The layer's own part, overwritten afterwards, and the batches still to come."""
    batches = iter(prepared)
    first = next(batches, None)
    if first is None:
        raise ValueError("no offline material was given; run the offline step of this layer first")
    head = first.take()
    try:
        yield head, batches
    finally:
        wipe(head.values())


def _check_shares(layer: ReluLayer, **arrays: Words) -> None:
    for name, array in arrays.items():
        if array.shape != (layer.count,) or array.dtype != np.uint64:
            raise ValueError(
                f"the {name} of layer {layer.name!r} is {array.dtype} of shape {array.shape}; "
                f"it must be uint64 of shape ({layer.count},)"
            )
        # a share past the modulus would get past the circuit's single conditional subtraction
        if int(array.max()) >= layer.modulus.order:
            raise ValueError(f"the {name} of layer {layer.name!r} holds a value that is not in {layer.modulus}")
