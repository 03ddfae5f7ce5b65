"""Operators that only move elements: what they do with the places of the elements says what they do with them.

The operator itself runs on an array that holds, for each element, its place plus one. What it gives says where each
element of the result comes from, and zeros, which paddings leave, are zeros. So there is no rule for any single one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from deepreshape.private.program.graph import Flat, Join, Part, Pick, Stack
from deepreshape.private.program.lowering.arithmetic import expanded, reshaped
from deepreshape.private.program.lowering.trace import NO_BATCH, Handler, Trace, UnsupportedOperatorError

__all__ = ["MOVES"]


def _places(trace: Trace, source: str, start: int = 1) -> Tensor:
    """The places of a value's elements from ``start`` on, with an axis for the batch; float64 holds them exactly."""
    shape = trace.shapes[source]
    return torch.arange(start, start + prod(shape), dtype=torch.float64).reshape(1, *shape)


def _moved(node: fx.Node, places: dict[fx.Node, Tensor], trace: Trace) -> Any:
    """What the operator of ``node`` makes of places."""

    def argument(source: fx.Node) -> Any:
        if source in places:
            return places[source]
        if trace.is_value(source):
            raise UnsupportedOperatorError("chooses elements by the values of others", "choose them by constants")
        return trace.constant(source, as_is=True)

    args, kwargs = fx.map_arg((node.args, node.kwargs), argument)
    kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "device", "layout", "pin_memory")}
    return cast(Callable[..., Any], node.target)(*args, **kwargs)


def _choose(trace: Trace, path: str, source: str, places: Tensor) -> str:
    """The elements at ``places``, a result with an axis for the batch."""
    if places.dim() == 0 or len(places) != 1:
        raise UnsupportedOperatorError(
            f"gives a value of shape {tuple(places.shape)} {NO_BATCH}", "keep the first axis for the batch"
        )
    index = (places[0] - 1).to(torch.int32).numpy().copy()
    shape = trace.shapes[source]
    if index.ndim == 0:
        raise UnsupportedOperatorError("gives one number for each input", "keep an axis")
    if index.ndim == 1 and len(shape) > 1 and len(index) == prod(shape) and (index == np.arange(len(index))).all():
        return trace.append(Flat(path, (source,)), index.shape)
    return trace.append(Pick(path, (source,), index), index.shape)


def _move(trace: Trace, node: fx.Node, path: str) -> None:
    argument = cast(fx.Node, node.args[0])
    source = trace.source(argument)
    places = _moved(node, {argument: _places(trace, source)}, trace)
    if isinstance(places, Tensor):
        if places.shape[1:] == trace.shapes[source] and bool((places == _places(trace, source)).all()):
            trace.bind(node, source)
        else:
            trace.bind(node, _choose(trace, path, source, places))
        return
    trace.bind(node, *(_part(trace, f"{path}.{number}", source, one) for number, one in enumerate(places)))


def _part(trace: Trace, name: str, source: str, places: Tensor) -> str:
    """One of several results; a range of channels is known as one, which ``split_join.py`` looks for."""
    shape, unique = trace.shapes[source], trace.unique(name)
    if len(shape) == 3 and len(places) == 1 and places.shape[2:] == shape[1:] and places.numel():
        start = int(places.flatten()[0] - 1) // prod(shape[1:])
        stop = start + places.shape[1]
        if bool((places == _places(trace, source)[:, start:stop]).all()):
            return trace.append(Part(unique, (source,), start, stop), (stop - start, *shape[1:]))
    return _choose(trace, unique, source, places)


def _pad(trace: Trace, node: fx.Node, path: str) -> None:
    arguments = dict(zip(("input", "pad", "mode", "value"), trace.arguments(node), strict=False))
    constant = arguments["mode"] if isinstance(arguments["mode"], str) else "constant"
    value = arguments["value"] if isinstance(arguments["mode"], str) else arguments["mode"]
    if constant == "constant" and value:
        raise UnsupportedOperatorError(f"pads with {value}", "pad with zeros")
    _move(trace, node, path)


def _same(trace: Trace, node: fx.Node, path: str) -> None:
    if not cast(Tensor, node.meta["val"]).is_floating_point():
        raise UnsupportedOperatorError(f"makes {node.meta['val'].dtype} of a value", "keep floating point")
    trace.bind(node, trace.source(node.args[0]))


def _nothing(trace: Trace, node: fx.Node, path: str) -> None:
    """An assertion gives no value; what it demands of an input is for the client to see to."""


def _join(trace: Trace, node: fx.Node, path: str) -> None:
    """``cat`` and ``stack``; a constant that is zero is padding."""
    pieces = cast(Sequence[fx.Node], node.args[0])
    values = [piece for piece in pieces if trace.is_value(piece)]
    if any(trace.constant(piece).any() for piece in pieces if piece not in values):
        raise UnsupportedOperatorError("puts constants beside values", "add them instead")
    sources = [trace.source(piece) for piece in values]
    shape = trace.shape(node)
    axis = trace.arguments(node)[1] % (len(shape) + 1)
    if "stack" not in str(node.target) and len(pieces) == 1:
        trace.bind(node, sources[0])
        return
    if "stack" not in str(node.target) and axis == 1 and len(values) == len(pieces) and len(shape) == 3:
        trace.bind(node, trace.append(Join(path, tuple(sources)), shape))
        return
    places, start = dict[fx.Node, Tensor](), 1
    flat: list[str] = []
    for piece, source in zip(values, sources, strict=True):
        if piece not in places:
            places[piece] = _places(trace, source, start)
            start += prod(trace.shapes[source])
            flat.append(reshaped(trace, f"{path}.flat", source, (prod(trace.shapes[source]),)))
    zeros = {piece: torch.zeros_like(trace.constant(piece)) for piece in pieces if piece not in values}
    moved = cast(Tensor, _moved(node, places | zeros, trace))
    one = flat[0] if len(flat) == 1 else trace.append(Stack(trace.unique(f"{path}.stack"), tuple(flat)), (start - 1,))
    trace.bind(node, _choose(trace, path, one, moved))


def _expand_as(trace: Trace, node: fx.Node, path: str) -> None:
    trace.bind(node, expanded(trace, path, trace.source(node.args[0]), trace.shape(node)))


MOVES: dict[str, Handler] = {
    **dict.fromkeys(
        """
        _unsafe_view as_strided channel_shuffle chunk expand flatten flip im2col index index_select movedim narrow
        permute pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d repeat replication_pad1d
        replication_pad2d reshape roll rot90 select slice split split_with_sizes squeeze swapaxes t tensor_split tile
        transpose unbind unflatten unfold unsqueeze unsafe_chunk unsafe_split upsample_nearest1d upsample_nearest2d
        _upsample_nearest_exact1d _upsample_nearest_exact2d view
        """.split(),  # noqa: SIM905 - as in counting.py
        _move,
    ),
    **dict.fromkeys(("_assert_tensor_metadata", "_assert_async"), _nothing),
    **dict.fromkeys(
        ("_to_copy", "alias", "clone", "contiguous", "detach", "dropout", "lift_fresh", "to", "type_as"), _same
    ),
    "cat": _join,
    "concat": _join,
    "constant_pad_nd": _pad,
    "expand_as": _expand_as,
    "pad": _pad,
    "stack": _join,
}
"""By the operator's name in ATen."""
