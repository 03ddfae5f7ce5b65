"""How the layers of a traced network are folded together before they become integers.

Everything here is exact in real arithmetic:

* A batch norm is folded into the convolution before it; one that follows an add (pre-activation networks) into the
  layer behind it, its shift only where that layer does not pad. Where neither is exact, it becomes a depthwise 1x1
  convolution, or, if its numbers are in the network's code, a product with public constants.
* A pool's division is folded likewise; ``Pool`` does not divide.
* Splits that are joined again become one convolution where they can (``split_join.py``).
* Chosen elements that are chosen from again are chosen at once; what scales or rectifies them does so before, where
  that takes no more ReLUs.
* What behind a convolution that leaves pixels out works by channel or by element does so before the constants are put
  in their places, and on these at once.
* Two convolutions with nothing between them become one if that is exact and has fewer MACs: any before a 1x1; a 1x1
  before any that does not pad, or if the first has no bias. Two linear layers too. Not fused: two larger kernels,
  grouped convolutions, a convolution or pool into a linear layer behind it, and anything across an add.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.program.folding.split_join import resolve_joins
from deepreshape.private.program.graph import (
    Affine,
    Conv,
    Dense,
    Filled,
    Flat,
    Graph,
    Layer,
    Pick,
    Pool,
    PublicAffine,
    Rectify,
    Sum,
    Traced,
    Zero,
)
from deepreshape.private.program.ops import INPUT

__all__ = ["simplify"]


def simplify(graph: Graph) -> None:
    """Fold and fuse the layers of a graph, and leave out those that no output needs; ``Layer`` are all that is left."""
    graph.remove_unread()
    _fill_late(graph)
    _merge_picks(graph)
    _fold_back(graph)
    resolve_joins(graph)
    _fold_forward(graph)
    _merge_picks(graph)
    _fuse(graph)
    graph.remove_unread()


def _fill_late(graph: Graph) -> None:
    """Put constants where pixels were left out behind what works on both alike."""
    place = 0
    while place < len(graph.layers):
        fill = graph.layers[place]
        readers = graph.readers(fill.name)
        pair = None
        if isinstance(fill, Filled) and graph.uses()[fill.name] == len(readers) == 1:
            pair = _before_fill(graph.layers[readers[0]], fill)
        if pair is None:
            place += 1
            continue
        behind, (earlier, later) = graph.layers[readers[0]], pair
        graph.redirect(behind.name, fill.name)
        if earlier is None:
            graph.layers[place] = later
            del graph.layers[readers[0]]
        else:
            graph.shapes[behind.name] = graph.shapes[fill.inputs[0]]
            graph.layers[place], graph.layers[readers[0]] = earlier, later


def _before_fill(layer: Traced, fill: Filled) -> tuple[Traced | None, Filled] | None:
    """What a layer behind constants is before them, if it is anything, and the constants behind it.

    None where that is not the same: where only some of a channel's constants are changed.
    """
    constants, kept = fill.constants, fill.columns
    if isinstance(layer, Affine):
        changed = constants * layer.scale + layer.shift
        earlier: Traced | None = replace(layer, inputs=fill.inputs)
    elif isinstance(layer, Rectify | Zero):
        # of the constants of a channel all are changed, or none
        mask = layer.keep if isinstance(layer, Zero) else layer.mask
        mask = np.ones((len(constants), *kept.shape), np.bool_) if mask is None else mask
        others = mask[:, ~kept]
        each = others[:, :1].any(1)
        if (others != each.reshape(-1, 1)).any():
            return None
        if isinstance(layer, Zero):
            changed = np.where(each, constants, 0.0)
            earlier = replace(layer, inputs=fill.inputs, keep=mask[:, kept])
        else:
            changed = np.where(each, np.maximum(constants, 0.0), constants)
            inner = mask[:, kept]
            earlier = replace(layer, inputs=fill.inputs, mask=None if inner.all() else inner) if inner.any() else None
    else:
        return None
    return earlier, replace(fill, inputs=(earlier.name,) if earlier else fill.inputs, constants=changed)


def _merge_picks(graph: Graph) -> None:
    """Choose elements once where they are chosen twice, and do by channel and by element what can be done before."""
    place = 0
    while place < len(graph.layers):
        layer = graph.layers[place]
        before = graph.named(layer.inputs[0]) if isinstance(layer, Pick | Flat | Affine | Rectify) else None
        if isinstance(layer, Pick) and _is_whole(layer, graph):
            graph.drop(layer)
        elif isinstance(layer, Pick) and isinstance(before, Pick | Flat):
            index = layer.index
            if isinstance(before, Pick):
                index = np.where(index < 0, -1, before.index.reshape(-1)[index]).astype(np.int32)
            graph.layers[place] = Pick(layer.name, before.inputs, index)
        elif isinstance(layer, Flat) and isinstance(before, Pick):
            graph.layers[place] = Pick(layer.name, before.inputs, before.index.reshape(-1))
        elif isinstance(before, Pick) and graph.uses()[before.name] == 1:
            earlier = _earlier(layer, before, graph)
            place += 1
            if earlier:
                _swap(graph, before, earlier)
                place = max(place - 3, 0)
        else:
            place += 1


def _is_whole(pick: Pick, graph: Graph) -> bool:
    """Whether it chooses everything as it is."""
    source = graph.shapes[pick.inputs[0]]
    return pick.index.shape == source and bool((pick.index.reshape(-1) == np.arange(pick.index.size)).all())


def _earlier(layer: Traced, pick: Pick, graph: Graph) -> Affine | Rectify | None:
    """The layer that does before ``pick`` what ``layer`` does behind it; None if it would do more or something else."""
    source = graph.shapes[pick.inputs[0]]
    if isinstance(layer, Rectify):
        places, once = np.unique(pick.index[pick.index >= 0], return_counts=True)
        if prod(source) > np.count_nonzero(pick.index >= 0) or (layer.mask is not None and once.max() > 1):
            return None
        if layer.mask is None:
            return replace(layer, inputs=pick.inputs)
        mask = np.zeros(prod(source), np.bool_)
        mask[places] = layer.mask[pick.index >= 0][np.argsort(pick.index[pick.index >= 0], kind="stable")]
        return replace(layer, inputs=pick.inputs, mask=mask.reshape(source))
    if not isinstance(layer, Affine):
        return None
    rows = pick.rows(source)
    if (rows < 0).any() and layer.shift.any():
        return None
    if layer.public:
        scale, shift = (np.full(source[0], float(each[0])) for each in (layer.scale, layer.shift))
        return replace(layer, inputs=pick.inputs, scale=scale, shift=shift)
    pairs = np.unique(np.stack([rows.reshape(-1), np.repeat(np.arange(len(rows)), rows.shape[1])]), axis=1)
    pairs = pairs[:, pairs[0] >= 0]
    known, first = np.unique(pairs[0], return_index=True)
    if len(known) < len(pairs[0]):  # some row is read by several, which scale it differently
        return None
    scale, shift = np.ones(source[0]), np.zeros(source[0])
    scale[known], shift[known] = layer.scale[pairs[1][first]], layer.shift[pairs[1][first]]
    return replace(layer, inputs=pick.inputs, scale=scale, shift=shift)


def _swap(graph: Graph, pick: Pick, earlier: Affine | Rectify) -> None:
    """Put ``earlier``, which stood behind ``pick``, before it."""
    graph.layers[graph.place(pick.name)] = earlier
    del graph.layers[graph.readers(pick.name)[0]]
    at = next(place for place, layer in enumerate(graph.layers) if layer is earlier)
    graph.redirect(earlier.name, pick.name)
    graph.layers.insert(at + 1, replace(pick, inputs=(earlier.name,)))
    graph.shapes[pick.name] = graph.shapes[earlier.name]
    graph.shapes[earlier.name] = graph.shapes[earlier.inputs[0]]


def _fold_back(graph: Graph) -> None:
    """Fold each affine map into the convolution or linear layer before it, or before the pool or sum before it."""
    index = 0
    while index < len(graph.layers):
        affine, uses = graph.layers[index], graph.uses()
        index += 1
        if not isinstance(affine, Affine) or uses[affine.inputs[0]] != 1 or affine.inputs[0] == INPUT:
            continue
        scale, shift = affine.scale, affine.shift
        before = target = graph.named(affine.inputs[0])
        if isinstance(before, Pool) and before.inputs[0] != INPUT and uses[before.inputs[0]] == 1:
            # the windows are whole, so a sum over them scales and shifts like what it sums
            target, shift = graph.named(before.inputs[0]), shift / prod(before.kernel)
        if isinstance(before, Sum) and (scale == 1).all():
            # a shift of a sum is one of any of its terms
            terms = [graph.named(name) for name in before.inputs if uses[name] == 1]
            target = next((term for term in terms if isinstance(term, Conv | Dense | Affine)), None)
        if not isinstance(target, Conv | Dense | Affine):
            continue
        if isinstance(target, Affine):
            public = target.public and affine.public
            folded: Traced = replace(
                target, scale=target.scale * scale, shift=target.shift * scale + shift, public=public
            )
        else:
            rows = scale.reshape(-1, *[1] * (target.weight.ndim - 1))
            folded = replace(target, weight=target.weight * rows, bias=target.bias * scale + shift)
        graph.layers[graph.place(target.name)] = folded
        graph.drop(affine)
        index -= 1


def _fold_forward(graph: Graph) -> None:
    """Fold each affine map that is left into the layer behind it, past pools and flattening, or make it a layer."""
    index = 0
    while index < len(graph.layers):
        affine = graph.layers[index]
        if not isinstance(affine, Affine):
            index += 1
            continue
        readers = graph.readers(affine.name)
        user = graph.layers[readers[0]] if graph.uses()[affine.name] == len(readers) == 1 else None
        if isinstance(user, Conv | Dense) and _absorbs(user, affine):
            graph.layers[readers[0]] = replace(_absorbed(user, affine), inputs=affine.inputs)
            del graph.layers[index]
        elif isinstance(user, Flat | Pool):
            repeat = prod(graph.shapes[affine.name][1:]) if isinstance(user, Flat) else 1
            summed = prod(user.kernel) if isinstance(user, Pool) else 1
            moved = replace(
                affine,
                inputs=(user.name,),
                scale=np.repeat(affine.scale, repeat),
                shift=np.repeat(affine.shift, repeat) * summed,
            )
            graph.redirect(user.name, affine.name)
            graph.layers[readers[0]] = replace(user, inputs=affine.inputs)
            graph.layers.insert(readers[0] + 1, moved)
            graph.shapes[affine.name] = graph.shapes[user.name]
            del graph.layers[index]
        else:
            alone = _alone(affine, graph)
            graph.layers[index : index + 1] = alone
            index += len(alone)


def _absorbs(layer: Conv | Dense, affine: Affine) -> bool:
    """Whether an affine map before ``layer`` folds into it exactly: what pads with zeros does not see a shift there."""
    return isinstance(layer, Dense) or layer.padding == 0 or not affine.shift.any()


def _absorbed(layer: Conv | Dense, affine: Affine) -> Conv | Dense:
    weight = layer.weight
    groups = layer.groups if isinstance(layer, Conv) else 1
    outs, fan_in, *kernel = weight.shape
    rest = [1] * len(kernel)

    def by_output(by_input: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.repeat(by_input.reshape(groups, fan_in), outs // groups, axis=0).reshape(outs, fan_in, *rest)

    bias = layer.bias + (weight * by_output(affine.shift)).reshape(outs, -1).sum(1)
    return replace(layer, weight=weight * by_output(affine.scale), bias=bias)


def _alone(affine: Affine, graph: Graph) -> list[Layer]:
    """An affine map as layers of its own."""
    if affine.public:
        return [PublicAffine(affine.name, affine.inputs, float(affine.scale[0]), float(affine.shift[0]))]
    shape, count = graph.shapes[affine.name], len(affine.scale)
    weight = affine.scale.reshape(-1, 1, 1, 1)
    if len(shape) == 3:
        return [Conv(affine.name, affine.inputs, weight, affine.shift, groups=count)]
    map_name, scaled = graph.unique(f"{affine.name}.map"), graph.unique(f"{affine.name}.scale")
    plane = (count, 1, prod(shape[1:]))
    graph.shapes |= {map_name: plane, scaled: plane}
    whole = np.arange(prod(shape), dtype=np.int32)
    return [
        Pick(map_name, affine.inputs, whole.reshape(plane)),
        Conv(scaled, (map_name,), weight, affine.shift, groups=count),
        Pick(affine.name, (scaled,), whole.reshape(shape)),
    ]


def _fuse(graph: Graph) -> None:
    """Make two linear layers one where that is exact and has fewer MACs."""
    index = 0
    while index < len(graph.layers):
        second = graph.layers[index]
        first = graph.named(second.inputs[0])
        fused: Conv | Dense | None = None
        if isinstance(first, Conv | Dense) and graph.uses()[first.name] == 1:
            if isinstance(first, Conv) and isinstance(second, Conv) and first.columns is second.columns is None:
                fused = _convolved(first, second)
            elif isinstance(first, Dense) and isinstance(second, Dense):
                weight, bias = second.weight @ first.weight, second.weight @ first.bias + second.bias
                fused = Dense(second.name, first.inputs, weight, bias)
            if fused and isinstance(second, Conv | Dense):
                before = _macs(first, graph) + _macs(second, graph)
                if _macs(fused, graph) < before:
                    graph.layers[index] = fused
                    del graph.layers[graph.place(first.name)]
                    continue
        index += 1


def _convolved(first: Conv, second: Conv) -> Conv | None:
    """Two convolutions as one, if that is exact."""
    if first.groups > 1 or second.groups > 1:
        return None
    one, two = first.weight, second.weight
    bias = two.sum((2, 3)) @ first.bias + second.bias
    if two.shape[2] == 1:
        weight = np.einsum("oi,ijkl->ojkl", two[:, :, 0, 0], one)
        return Conv(second.name, first.inputs, weight, bias, first.stride * second.stride, first.padding)
    if one.shape[2] == 1 and first.stride == 1 and (second.padding == 0 or not first.bias.any()):
        weight = np.einsum("oikl,ij->ojkl", two, one[:, :, 0, 0])
        return Conv(second.name, first.inputs, weight, bias, second.stride, second.padding)
    return None


def _macs(layer: Conv | Dense, graph: Graph) -> int:
    return layer.weight.size * prod(graph.shapes[layer.name][1:])
