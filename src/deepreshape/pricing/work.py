"""What both parties do, turn by turn, in units that ``units.py`` measures: the work behind declared bytes.

:class:`Steps` is what an inference consists of, from an exact ``Plan`` (here) or from a
network's layers alone (``outline.py``). :func:`turns` gives each of its parts the work that makes its message and the
work that takes it; under a measured profile and a link, ``cost.schedule`` makes seconds of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from deepreshape.cost import Party, Turn, Work
from deepreshape.private.crypto.gc.halfgates import TABLE_BYTES
from deepreshape.private.parties.plan import OUTPUT, WORD_BYTES, Part, Plan
from deepreshape.private.program.integer_linear import EXACT_BITS
from deepreshape.private.program.ops import INPUT, Conv2d, Linear
from deepreshape.private.protocols import base as relu
from deepreshape.private.protocols import truncate
from deepreshape.private.protocols.base import ReluLayer
from deepreshape.private.protocols.label_transfer import LABEL_BYTES
from deepreshape.private.protocols.linear import Layout
from deepreshape.private.protocols.truncate import TruncationLayer

SESSION = "(session)"
"""Under this name connecting, greeting and the store's bookkeeping are booked."""
PREPARE_TRIPS = 5.0
INFER_TRIPS = 6.0
"""Round trips beside the program's: TCP, TLS, two of the handshake, the end; online also the claims."""
TYPICAL_WEIGHT = 0.25
"""A weight's usual size, as a part of the largest in its layer: says how many limbs a product in the clear takes."""


@dataclass(frozen=True)
class Product:
    """One linear operation.

    Attributes:
        layout: of one of its copies under encryption.
        share_bits: of a share.
        fan_in: multiply-adds of an output in the clear.
    """

    layout: Layout
    share_bits: int
    fan_in: int

    @property
    def outputs(self) -> int:
        """Elements of the result."""
        return self.layout.layer.copies * math.prod(self.layout.layer.output_shape)

    @property
    def macs(self) -> int:
        """Multiply-adds in the clear."""
        return self.outputs * self.fan_in

    @property
    def clear(self) -> Work:
        """The server's product with its own shares, online."""
        layer = self.layout.layer
        room = EXACT_BITS - math.ceil(layer.weight_bits + math.log2(self.fan_in * TYPICAL_WEIGHT))
        limbs = -(-self.share_bits // max(room, 1))
        places = math.prod(layer.output_shape[1:])
        return {
            "clear.mac": limbs * self.macs,
            "clear.patch": limbs * places * math.prod(layer.weight_shape[1:]) * layer.copies,
            "clear.weight": layer.copies * layer.out_channels * self.fan_in,
            "element": self.outputs,
            "store.read": WORD_BYTES * self.outputs,
        }


@dataclass(frozen=True)
class Steps:
    """All that one inference consists of.

    Attributes:
        parts: who sends what, in order.
        products, relus, truncations: the operations, by name.
        inputs, outputs: elements of the network's input and output.
        stored: bytes that (client, server) keep from offline to online, and in how many streams.
        streams: likewise.
    """

    parts: tuple[Part, ...]
    products: Mapping[str, Product]
    relus: Mapping[str, ReluLayer]
    truncations: Mapping[str, TruncationLayer]
    inputs: int
    outputs: int
    stored: tuple[int, int]
    streams: tuple[int, int]

    @property
    def working_set(self) -> tuple[int, int]:
        """About how many bytes (client, server) hold at once, beside the program and the interpreter."""
        largest = max(self.relus.values(), key=_gates, default=None)
        circuits = labels = 0
        if largest:
            # a batch of tables is there three times: as made or received, sealed, and in the pipe
            circuits = 3 * TABLE_BYTES * largest.circuit.and_gates * min(largest.count, largest.batch)
            labels = 2 * LABEL_BYTES * largest.chosen * largest.count
        ciphertexts = max(max(product.layout.declared.traffic["offline"]) for product in self.products.values())
        layers = [product.layout.layer for product in self.products.values()]
        weights = sum(8 * layer.copies * math.prod(layer.weight_shape) for layer in layers)
        return circuits + labels + 2 * ciphertexts, circuits + labels + 2 * ciphertexts + 2 * weights

    @classmethod
    def of(cls, plan: Plan) -> Steps:
        """Those of an exact plan."""
        program, rows = plan.program, plan.declared().rows
        bits = program.modulus.bits
        products = {
            op.name: Product(
                plan.layouts[op.name],
                bits,
                math.prod(op.weight_shape(program.values[op.inputs[0]])[1:]),
            )
            for op in program.ops
            if isinstance(op, Conv2d | Linear)
        }
        return cls(
            tuple(plan.parts()),
            products,
            plan.relus,
            plan.truncations,
            program.values[INPUT].size,
            program.values[program.output].size,
            (sum(row.stored_client for row in rows), sum(row.stored_server for row in rows)),
            (sum(row.stored_client > 0 for row in rows), sum(row.stored_server > 0 for row in rows)),
        )


def turns(steps: Steps) -> Iterator[Turn]:
    """All turns of one inference, offline and online, with one session each."""
    make: Work = {"session": 1, "store.create": 1}
    yield Turn(SESSION, "offline", "session", "client", make=make, trips=PREPARE_TRIPS)
    online = False
    done = Counter[tuple[str, str, str]]()
    for part in steps.parts:
        if part.phase == "online" and not online:
            online = True
            # the server makes its half durable and says so, then the client its own
            order: tuple[tuple[int, Party], ...] = (1, "server"), (0, "client")
            for at, party in order:
                make = {"store.commit": steps.stored[at], "store.stream": steps.streams[at]}
                yield Turn(SESSION, "offline", "store", party, make=make, trips=0.5, settles=True)
            # both open and read their streams side by side; the client is done when its own are destroyed
            make = {"session": 1, "store.claim": 1, "store.open": max(steps.streams), "store.destroy": steps.stored[0]}
            yield Turn(SESSION, "online", "session", "client", make=make, trips=INFER_TRIPS)
        row = part.layer, part.phase, part.kind
        yield from _of(steps, part, done[row])
        done[row] += 1


def _of(steps: Steps, part: Part, before: int) -> Iterator[Turn]:
    """A part is one turn for each of its senders; without any, work of one party alone.

    ``before`` says how many parts of the same layer, phase and kind came before.
    """
    bare = Turn(part.layer, part.phase, part.kind, "server" if part.kind == "clear" else "client")
    counts: Mapping[str, int] = {} if before else _counts(steps, bare)
    if part.kind == "clear":
        yield replace(bare, make=steps.products[part.layer].clear, counts=counts)
    elif not part.senders:
        yield replace(bare, make={"store.write": counts["stored_client"]}, counts=counts)
    for number, letter in enumerate(part.senders):
        sender: Party = "client" if letter == "C" else "server"
        count = part.senders.count(letter)
        turn = _turn(steps, replace(bare, sender=sender), before + number)
        nbytes = (part.up if letter == "C" else part.down) // count
        own: Mapping[str, int] = {} if number else counts
        yield replace(turn, nbytes=nbytes, make=_share(turn.make, count), take=_share(turn.take, count), counts=own)


def _counts(steps: Steps, turn: Turn) -> Mapping[str, int]:
    """What :meth:`deepreshape.private.parties.plan.Plan.declared` counts in this row beside bytes and rounds."""
    match turn.kind, turn.phase:
        case "he", _:
            product = steps.products[turn.layer]
            products = product.layout.layer.copies * product.layout.products
            return {"he_products": products, "stored_server": WORD_BYTES * product.outputs}
        case "clear", _:
            return {"macs": steps.products[turn.layer].macs}
        case "garble", _:
            layer = steps.relus[turn.layer]
            client, server = relu.stored(layer)
            work = {"relus": layer.count, "and_gates": _gates(layer), "transfers": layer.count * relu.ots(layer)}
            return work | {"stored_client": client, "stored_server": server}
        case "evaluate", _:
            return {"relus": steps.relus[turn.layer].count}
        case "truncate", "offline":
            layer = steps.truncations[turn.layer]
            stored = truncate.stored(layer)
            return {"transfers": layer.count, "stored_client": stored[0], "stored_server": stored[1]}
        case "shares", "offline":
            return {"stored_client": WORD_BYTES * (steps.inputs if turn.layer == INPUT else steps.outputs)}
        case _:
            return {}


def _share(work: Work, count: int) -> Work:
    return {kind: units / count for kind, units in work.items()}


def _turn(steps: Steps, turn: Turn, number: int) -> Turn:
    match turn.kind, turn.phase:
        case "keys", _:
            primes = _primes(next(iter(steps.products.values())).layout)
            return replace(turn, make={f"{primes}.keys": 1, "he.start": 1}, take={f"{primes}.receive": 1})
        case "transfers", _:
            # who opens a pair of base transfers is its sender; the other chooses
            return replace(turn, make={"ot.base.receive": 1}, take={"ot.base.send": 1}) if number % 2 else turn
        case "he", _:
            return _linear(turn, steps.products[turn.layer])
        case "garble", _:
            return _garble(turn, steps.relus[turn.layer], number)
        case "evaluate", _:
            return _evaluate(turn, steps.relus[turn.layer])
        case "truncate", _:
            return _truncate(turn, steps.truncations[turn.layer])
        case "shares", _:
            count = steps.outputs if turn.layer == OUTPUT else steps.inputs
            return replace(turn, make={"element": count}, take={"element": count})
        case _:
            raise ValueError(f"no work is known for {turn.kind!r} of {turn.layer}")


def _primes(layout: Layout) -> str:
    return f"he{len(layout.parameters.prime_bits)}"


def _linear(turn: Turn, product: Product) -> Turn:
    primes, copies = _primes(product.layout), product.layout.layer.copies
    sent, returned = (copies * count for count in product.layout.declared.ciphertexts)
    if turn.sender == "client":
        return replace(turn, make={f"{primes}.encrypt": sent}, pieces=max(sent // copies, 1))
    products = copies * product.layout.products
    make = {
        f"{primes}.receive": sent,
        f"{primes}.encode": products / product.layout.bands,
        f"{primes}.product": products,
        f"{primes}.respond": returned,
        f"{primes}.reveal": product.outputs,
        "store.write": WORD_BYTES * product.outputs,
    }
    take = {f"{primes}.decrypt": returned, f"{primes}.reveal.client": product.outputs}
    return replace(turn, make=make, take=take, parallel=product.layout.outputs)


def _garble(turn: Turn, layer: ReluLayer, step: int) -> Turn:
    """Offline: 0, the evaluator chooses labels; 1, circuits; 2, where the product is made outside, its answer."""
    if step == 0:
        transfers = layer.chosen * layer.count
        make = {unit(layer, "ot.choose"): transfers, unit(layer, "offline"): 1}
        return replace(turn, make=make, take={unit(layer, "ot.send"): transfers}, pieces=len(layer.spans))
    if step == 2:
        return replace(turn, take={unit(layer, "element"): layer.count})
    make, take = _circuits("garble", layer), _circuits("take", layer, batches=False)
    return replace(turn, make=make, take=take, aside={"store.write": _stored(layer)}, pieces=len(layer.spans))


def _evaluate(turn: Turn, layer: ReluLayer) -> Turn:
    if turn.sender != layer.garbler:
        return replace(turn, take={unit(layer, "element"): layer.count})
    make = {**_circuits("label", layer, batches=False), unit(layer, "online"): 1}
    take = {**_circuits("evaluate", layer), unit(layer, "store.read"): _stored(layer)}
    return replace(turn, make=make, take=take, pieces=len(layer.spans))


def _gates(layer: ReluLayer) -> int:
    return layer.circuit.and_gates * layer.count


def unit(layer: ReluLayer, step: str) -> str:
    """Name of the unit of one step of a layer's protocol; both protocols of the sign alone have the same.

    The steps ``"offline"`` and ``"online"`` are what a layer costs there whatever its size.
    """
    return f"{'gc-full' if layer.sign is None else 'sign'}.{layer.garbler}.{step}"


def _circuits(step: str, layer: ReluLayer, *, batches: bool = True) -> Work:
    """A gate costs something for each instance and for each batch; a product outside, something for each ReLU."""
    name = unit(layer, step)
    work: dict[str, float] = {name: _gates(layer)}
    if batches:
        work[f"{name}.gate"] = layer.circuit.and_gates * len(layer.spans)
    if layer.sign is not None:
        work[f"{name}.relu"] = layer.count
    return work


def _stored(layer: ReluLayer) -> int:
    return sum(relu.stored(layer))


def _truncate(turn: Turn, layer: TruncationLayer) -> Turn:
    count = layer.count
    if turn.phase == "online":
        other = "server" if turn.sender == "client" else "client"
        return replace(turn, take={f"truncate.{other}.online": count})
    stored = truncate.stored(layer)
    make = {"ot.choose": count, "truncate.client.offline": count, "store.write": stored[0]}
    take = {"ot.send": count, "truncate.server.offline": count, "store.write": stored[1]}
    return replace(turn, make=make, take=take)
