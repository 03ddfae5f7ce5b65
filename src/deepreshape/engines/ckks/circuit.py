"""A network of linear layers and quadratics as steps on ciphertexts: which products, at which level, of which vectors.

A quadratic a x^2 + b x + c is folded around the square (AESPA: Park et al., arXiv 2201.06699). With s = sign(a),
t = s b / (2 sqrt|a|) and z = sqrt|a| x + t it is s (z^2 + s c - t^2): sqrt|a| and t go into the linear layer before, s
into whatever reads it, and s c - t^2 is added. So an activation takes one level, and a linear layer another. What a sum
adds is accumulated before the one rescaling of its step, a skipped value times its scale included: a residual takes no
level of its own. A pool and the dense layer behind it are one matrix.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks.packing import (
    DenseReduction,
    Diagonals,
    Entries,
    SlotLayout,
    convolution,
    diagonals,
    pool_sums,
    reduction,
)
from deepreshape.engines.ckks.parameters import CkksParameters, choose_modulus
from deepreshape.engines.ckks.public import PublicCircuit
from deepreshape.private.program.graph import (
    Conv,
    Dense,
    Flat,
    Layer,
    Pick,
    Pool,
    PublicAffine,
    Quadratic,
    Rectify,
    Stack,
    Sum,
)
from deepreshape.private.program.ops import INPUT, ProgramError

__all__ = ["LeveledCircuit", "LinearStep", "SquareStep", "Term", "compiled"]

Real = NDArray[np.float64]
Shape = tuple[int, ...]

WORDS: dict[type[object], str] = {
    Rectify: "a ReLU",
    PublicAffine: "a factor or summand of the network's code",
    Pick: "a move of elements",
    Stack: "a join of values",
}
"""What a user calls the layers that are met most often where they cannot be."""


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of a linear step: ``source`` times a matrix, or times a vector (slots,)."""

    source: str
    product: Diagonals | DenseReduction | Real


@dataclass(frozen=True, eq=False)
class LinearStep:
    """The sum of ``terms`` at ``level``, plus ``bias`` (slots,) after rescaling to the level below."""

    name: str
    terms: tuple[Term, ...]
    bias: Real
    level: int
    squared: bool


@dataclass(frozen=True, eq=False)
class SquareStep:
    """The square of ``source``, which is at ``level``, plus ``constant`` (slots,) after rescaling."""

    name: str
    source: str
    constant: Real
    level: int


@dataclass(frozen=True, eq=False)
class LeveledCircuit:
    """What a server computes on a ciphertext.

    Vectors have one slot for each ``public.batch`` slots of a ciphertext, which hold that value of as many images;
    rotations are ``batch`` times as long.
    """

    public: PublicCircuit
    steps: tuple[LinearStep | SquareStep, ...]

    @property
    def parameters(self) -> CkksParameters:
        return self.public.parameters

    @property
    def batch(self) -> int:
        return self.public.batch

    @property
    def rotations(self) -> int:
        return sum(product.rotations for product, _ in self._matrices())

    @property
    def products(self) -> int:
        vectors = sum(isinstance(term.product, np.ndarray) for step in self._linear() for term in step.terms)
        return vectors + sum(product.products for product, _ in self._matrices())

    @property
    def squares(self) -> int:
        return sum(isinstance(step, SquareStep) for step in self.steps)

    def work(self) -> dict[str, list[tuple[int, int]]]:
        """By operation (rotate, multiply, square): (level, how often)."""
        counts: dict[str, Counter[int]] = {"rotate": Counter(), "multiply": Counter(), "square": Counter()}
        for product, level in self._matrices():
            counts["rotate"][level] += product.rotations
            counts["multiply"][level] += product.products
        for step in self.steps:
            if isinstance(step, SquareStep):
                counts["square"][step.level] += 1
            else:
                counts["multiply"][step.level] += sum(isinstance(term.product, np.ndarray) for term in step.terms)
        return {operation: sorted(levels.items()) for operation, levels in counts.items()}

    def _linear(self) -> list[LinearStep]:
        return [step for step in self.steps if isinstance(step, LinearStep)]

    def _matrices(self) -> list[tuple[Diagonals | DenseReduction, int]]:
        return _matrices(self.steps)


def _matrices(steps: Sequence[LinearStep | SquareStep]) -> list[tuple[Diagonals | DenseReduction, int]]:
    return [
        (term.product, step.level)
        for step in steps
        if isinstance(step, LinearStep)
        for term in step.terms
        if isinstance(term.product, Diagonals | DenseReduction)
    ]


def _digest(steps: Sequence[LinearStep | SquareStep]) -> str:
    """SHA-256 over all that is computed, weights included."""
    digest = hashlib.sha256()

    def see(word: str, *vectors: Real) -> None:
        digest.update(f"{word}\n".encode())
        for vector in vectors:
            digest.update(np.ascontiguousarray(vector, "<f8").tobytes())

    for step in steps:
        see(f"{type(step).__name__} {step.level}", step.constant if isinstance(step, SquareStep) else step.bias)
        for term in step.terms if isinstance(step, LinearStep) else ():
            match term.product:
                case Diagonals() as matrix:
                    for giant, terms in matrix.giants:
                        for baby, vector in terms:
                            see(f"{term.source} {giant} {baby}", vector)
                case DenseReduction() as matrix:
                    see(f"{term.source} {matrix.width}", *matrix.vectors)
                case vector:
                    see(term.source, vector)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _Part:
    """A summand before slots are known: a matrix's entries, or a factor for each flat value."""

    source: str
    entries: Entries | Real


@dataclass(frozen=True, eq=False)
class _Form:
    """A value as a sum of parts plus ``bias`` (flat), in the layout of ``layout``."""

    parts: tuple[_Part, ...]
    bias: Real
    shape: Shape
    layout: SlotLayout

    @property
    def plain(self) -> bool:
        """Whether it is a step's value, up to a factor."""
        return len(self.parts) == 1 and isinstance(self.parts[0].entries, np.ndarray) and not self.bias.any()

    @property
    def factor(self) -> tuple[str, Real]:
        """Of a plain form: the step, and the factor of each value."""
        (part,) = self.parts
        if isinstance(part.entries, Entries):
            raise TypeError(f"{part.source} is behind a matrix")
        return part.source, part.entries


@dataclass
class _Node:
    form: _Form
    depth: int
    squares: int
    constant: Real | None = None
    """Of a square; None makes it a linear step that is not squared."""


@dataclass
class _Builder:
    readers: Counter[str]
    forms: dict[str, _Form] = field(default_factory=dict[str, "_Form"])
    nodes: dict[str, _Node] = field(default_factory=dict[str, "_Node"])

    def value(self, name: str, *, rest: bool) -> _Form:
        """The value of a layer; with ``rest`` as a value of its own, made by a step if it must be."""
        form = self.forms[name]
        if form.plain or (not rest and self.readers[name] == 1):
            return form
        self.add(name, form)
        ones = np.ones(len(form.bias))
        self.forms[name] = _Form((_Part(name, ones),), np.zeros(len(ones)), form.shape, form.layout)
        return self.forms[name]

    def add(self, name: str, form: _Form, constant: Real | None = None) -> None:
        known = [(self.nodes[part.source].depth, self.nodes[part.source].squares) for part in form.parts]
        squared = constant is not None
        depth, squares = max(depth for depth, _ in known) + 1 + squared, max(count for _, count in known) + squared
        self.nodes[name] = _Node(form, depth, squares, constant)


def compiled(layers: Sequence[Layer], shape: tuple[int, int, int], images: int = 1) -> LeveledCircuit:
    """The circuit of a network without ReLUs, and the smallest parameters that hold it.

    Args:
        layers: as :func:`~deepreshape.private.program.graph.simplify` leaves them; the last gives the answer.
        shape: of one input, (C, H, W).
        images: how many a ciphertext should hold, if that needs no larger degree.

    Raises:
        ProgramError: if a layer is none that this engine computes, naming it.
        ValueError: if the network is too deep or too large for any parameters.
    """
    _see_depth(layers)
    builder = _Builder(Counter(name for layer in layers for name in layer.inputs))
    layout = SlotLayout.of(*shape)
    count = prod(shape)
    builder.forms[INPUT] = _Form((_Part(INPUT, np.ones(count)),), np.zeros(count), shape, layout)
    builder.nodes[INPUT] = _Node(builder.forms[INPUT], 0, 0)
    for layer in layers:
        builder.forms[layer.name] = _form(builder, layer)
    last = layers[-1].name
    if builder.forms[last].plain:
        raise ProgramError(f"{last}: the answer of a network under CKKS comes from a linear layer")
    builder.value(last, rest=True)
    return _placed(builder, last, layout, images)


def _see_depth(layers: Sequence[Layer]) -> None:
    """Refuse a network that is too deep before its matrices are laid out, which takes gigabytes of large ones."""
    squares = {INPUT: 0}
    for layer in layers:
        squares[layer.name] = max(squares[name] for name in layer.inputs) + isinstance(layer, Quadratic)
    deepest = squares[layers[-1].name]
    if deepest:
        choose_modulus(2 * deepest + 1, deepest, 1)


def _form(builder: _Builder, layer: Layer) -> _Form:
    match layer:
        case Conv():
            source = builder.value(layer.inputs[0], rest=True)
            shape = _map_shape(layer.name, source.shape)
            if layer.weight.shape[2] != layer.weight.shape[3]:
                raise ProgramError(f"{layer.name}: this engine convolves with square kernels only")
            outs = len(layer.weight)
            rows, columns = (
                (size + 2 * layer.padding - layer.weight.shape[2]) // layer.stride + 1 for size in shape[1:]
            )
            layout = source.layout.strided(outs, rows, columns, layer.stride)
            choose_modulus(1, 0, max(layout.size, source.layout.size))  # before the matrix is laid out
            entries = convolution(layer.weight, shape, layer.stride, layer.padding, layer.groups)
            return _mapped(source, entries, (outs, rows, columns), np.repeat(layer.bias, rows * columns), layout)
        case Pool():
            source = builder.value(layer.inputs[0], rest=True)
            shape = _map_shape(layer.name, source.shape)
            rows, columns = (
                (size - kernel) // stride + 1
                for size, kernel, stride in zip(shape[1:], layer.kernel, layer.stride, strict=True)
            )
            out = shape[0], rows, columns
            stride = layer.stride[0] if rows > 1 or columns > 1 else 1
            if (rows > 1 or columns > 1) and layer.stride[0] != layer.stride[1]:
                raise ProgramError(f"{layer.name}: this engine pools with equal strides only")
            layout = source.layout.strided(*out, stride)
            return _mapped(source, pool_sums(shape, layer.kernel, layer.stride), out, np.zeros(prod(out)), layout)
        case Dense():
            source = builder.value(layer.inputs[0], rest=False)
            if len(source.parts) > 1:
                source = builder.value(layer.inputs[0], rest=True)
            part = next(iter(source.parts))
            entries = _dense(layer.weight, part.entries)
            bias = layer.bias + layer.weight @ source.bias
            outs = len(layer.weight)
            return _Form((_Part(part.source, entries),), bias, (outs,), SlotLayout.of(1 << (outs - 1).bit_length()))
        case Flat():
            source = builder.value(layer.inputs[0], rest=False)
            return _Form(source.parts, source.bias, (prod(source.shape),), source.layout)
        case Sum():
            forms = [builder.value(name, rest=False) for name in layer.inputs]
            if len({form.layout for form in forms}) > 1:
                raise ProgramError(f"{layer.name}: what is added lies differently in the slots")
            parts = tuple(part for form in forms for part in form.parts)
            bias = sum((form.bias for form in forms), np.zeros(len(forms[0].bias)))
            return _Form(parts, bias, forms[0].shape, forms[0].layout)
        case Quadratic():
            return _squared(builder, layer)
        case _:
            what = WORDS.get(type(layer), f"a {type(layer).__name__.lower()}")
            raise ProgramError(
                f"{layer.name}: {what} is not computed under CKKS, which knows linear layers and squares; `deepreshape "
                "linearize MODEL --method herpn --budget 0` makes squares of ReLUs, and `substitute`, or an -avg name, "
                "average pools of max pools"
            )


def _squared(builder: _Builder, layer: Quadratic) -> _Form:
    source = builder.value(layer.inputs[0], rest=False)
    if layer.mask is not None and layer.mask.any():
        raise ProgramError(f"{layer.name}: {int(layer.mask.sum()):,} ReLUs are left, which CKKS does not compute")
    constant, linear, square = layer.coefficients.T
    if not square.all():
        raise ProgramError(f"{layer.name}: channel {int(np.argmin(square != 0))} has no square (a = 0)")
    each = prod(source.shape) // len(square)
    root, sign = np.repeat(np.sqrt(np.abs(square)), each), np.repeat(np.sign(square), each)
    shift = np.repeat(linear, each) * sign / (2 * root)
    parts = tuple(_Part(part.source, _scaled(part.entries, root)) for part in source.parts)
    form = _Form(parts, source.bias * root + shift, source.shape, source.layout)
    builder.add(layer.name, form, np.repeat(constant, each) * sign - shift**2)
    return _Form((_Part(layer.name, sign),), np.zeros(len(sign)), source.shape, source.layout)


def _mapped(source: _Form, entries: Entries, shape: Shape, bias: Real, layout: SlotLayout) -> _Form:
    name, factor = source.factor
    entries = Entries(entries.outputs, entries.inputs, entries.weights * factor[entries.inputs])
    return _Form((_Part(name, entries),), bias, shape, layout)


def _scaled(entries: Entries | Real, factor: Real) -> Entries | Real:
    if isinstance(entries, np.ndarray):
        return entries * factor
    return Entries(entries.outputs, entries.inputs, entries.weights * factor[entries.outputs])


def _dense(weight: Real, before: Entries | Real) -> Entries:
    """The entries of ``weight`` (out, in) times what its input is."""
    outs, ins = len(weight), len(weight.T)
    if isinstance(before, np.ndarray):
        before = Entries(np.arange(ins), np.arange(ins), before)
    count = len(before.inputs)
    return Entries(
        np.repeat(np.arange(outs), count),
        np.tile(before.inputs, outs),
        (weight[:, before.outputs] * before.weights).ravel(),
    )


def _map_shape(name: str, shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ProgramError(f"{name}: a layer of maps behind one of vectors")
    return shape[0], shape[1], shape[2]


def _placed(builder: _Builder, answer: str, layout: SlotLayout, images: int) -> LeveledCircuit:
    nodes = {name: node for name, node in builder.nodes.items() if name != INPUT}
    levels = nodes[answer].depth
    sizes = [node.form.layout.size for node in nodes.values()] + [layout.size]
    parameters = choose_modulus(levels, max(node.squares for node in nodes.values()), max(sizes))
    batch = min(1 << (images - 1).bit_length(), parameters.slots // max(sizes))
    slots, steps = parameters.slots // batch, list[LinearStep | SquareStep]()
    layouts = {INPUT: layout} | {name: node.form.layout for name, node in nodes.items()}
    for name, node in nodes.items():
        form, squared = node.form, node.constant is not None
        level = levels - node.depth + 1 + squared
        terms = tuple(Term(part.source, _product(part, layouts[part.source], form, slots)) for part in form.parts)
        linear = f"{name} (before its square)" if squared else name
        steps.append(LinearStep(linear, terms, _vector(form.layout, form.bias, slots), level, squared))
        if node.constant is not None:
            steps.append(SquareStep(name, linear, _vector(form.layout, node.constant, slots), level - 1))
    rotations = frozenset(batch * step for product, _ in _matrices(steps) for step in product.steps)
    shape = nodes[answer].form.shape
    public = PublicCircuit(parameters, batch, tuple(sorted(rotations)), layout, layouts[answer], shape, _digest(steps))
    return LeveledCircuit(public, tuple(steps))


def _product(part: _Part, source: SlotLayout, form: _Form, slots: int) -> Diagonals | DenseReduction | Real:
    if isinstance(part.entries, np.ndarray):
        return _vector(form.layout, part.entries, slots)
    if len(form.shape) == 1:
        return reduction(part.entries, form.shape[0], source, slots)
    return diagonals(part.entries, source, form.layout, slots)


def _vector(layout: SlotLayout, values: Real, slots: int) -> Real:
    whole = np.zeros(layout.channels * layout.height * layout.width)
    whole[: len(values)] = values
    return layout.packed(whole.reshape(layout.channels, layout.height, layout.width), slots)
