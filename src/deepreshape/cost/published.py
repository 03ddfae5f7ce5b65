"""The published cost of hybrid private inference (Garimella et al., ASPLOS 2023, "Characterizing and Optimizing
End-to-End Systems for Private Inference"), as a function of a network's layers.

Server: 32-core EPYC 7502; client: Atom Z8350 with 4 threads; one wireless link of 1 Gbit/s. DELPHI's protocol: SEAL BFV
with N = 8192 for linear layers offline, garbled circuits over a 41-bit prime for ReLUs. Nothing overlaps and offline
work is charged in full. The constants are those of the study's simulator; the HE time of a layer is the study's
measured time per MAC at the layer's input resolution (a strided convolution costs as if it had stride 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Literal

from deepreshape.cost.layers import Layer, LinearLayer, ReluLayer, SignLayer, SquareLayer, UnpricedLayer
from deepreshape.cost.link import Link, split
from deepreshape.cost.report import Cost, CostReport

__all__ = ["PROFILES", "Published", "price_published", "published_seconds"]

SLOTS = 8192
CIPHERTEXT_BYTES = 524_393 + 8
KEY_BYTES = 33_180_308
KEY_SECONDS = 0.340
ENCRYPT_SECONDS = 2.65 / 613
DECRYPT_SECONDS = 0.17 / 90
"""Of one ciphertext: the study's totals for ResNet-18 over its 613 ciphertexts up and 90 down."""

HE_SECONDS_PER_MMAC = {64: 0.330, 32: 0.356, 16: 0.386, 8: 0.420, 4: 0.454}
"""By input resolution; the same rates fit the study's CIFAR and TinyImageNet layers."""

LAYER_PARALLEL_SLOWDOWN = 1.175
"""With a thread for each layer, the slowest one took 1.15 (CIFAR) and 1.20 (TinyImageNet) times its time alone."""

SHARES_SECONDS_PER_MAC = 0.43 / 555.4e6

GARBLE_SECONDS = {"server": 103.7e-6, "client": 687e-6}
EVALUATE_SECONDS = {"server": 54.6e-6, "client": 346e-6}
"""Of one ReLU on one thread: slopes of the study's fits over 1, 10 and 100 ReLUs."""

THREADS = {"server": 32, "client": 4}
ENCODE_OFFLINE_SECONDS = 7.585e-6
ENCODE_ONLINE_SECONDS = 3.47e-6

CIRCUIT_BYTES = 17_072
OT_SETUP_BYTES = 672
OT_SEND_BYTES = 1_344
LABEL_BYTES = 1_184
BASE_OT_BYTES = 4_096
ELEMENT_BYTES = 9
PREDICTION_BYTES = 131
FIRST_LAYER_BYTES = 27_689
STORED_BY_EVALUATOR = 18_248
STORED_BY_GARBLER = 3_590

WIRELESS = 1e9


@dataclass(frozen=True)
class Published:
    """One protocol of the study.

    Attributes:
        garbler: who garbles; the other party stores the circuits and evaluates them.
        layer_parallel: one thread for each linear layer's HE, instead of one for all.
        slots: whether the link is divided by need (wireless slot allocation) instead of in halves.
    """

    garbler: Literal["server", "client"]
    layer_parallel: bool
    slots: bool


PROFILES: dict[str, Published] = {
    "server-garbler": Published("server", layer_parallel=False, slots=False),
    "server-garbler+lphe+wsa": Published("server", layer_parallel=True, slots=True),
    "client-garbler+lphe+wsa": Published("client", layer_parallel=True, slots=True),
}


def he_seconds(layer: LinearLayer) -> float:
    """HE evaluation of one linear layer on one thread."""
    size = min(max(max(layer.in_size), 1), 64)
    known = sorted(HE_SECONDS_PER_MMAC)
    low = max((d for d in known if d <= size), default=known[0])
    high = min((d for d in known if d >= size), default=known[-1])
    share = 0.0 if low == high else (log2(size) - log2(low)) / (log2(high) - log2(low))
    rate = HE_SECONDS_PER_MMAC[low] + share * (HE_SECONDS_PER_MMAC[high] - HE_SECONDS_PER_MMAC[low])
    area = layer.kernel[0] * layer.kernel[1] * layer.in_size[0] * layer.in_size[1]
    return rate * 1e-6 * layer.in_channels * layer.out_channels * area / layer.groups


def price_published(layers: Sequence[Layer], profile: Published, link: Link | None = None) -> CostReport:
    """What one inference costs under a protocol of the study.

    Args:
        layers: of the network, in order, as a count gives them.
        profile: the protocol.
        link: between the parties; the study's 1 Gbit/s without. A profile with slots divides the sum of its rates anew.

    Returns:
        Rows by layer and phase. Where layers run in parallel, each is charged its part of the time they take together.

    Raises:
        ValueError: if the network has squares, or layers that the study does not price.
    """
    for layer in layers:
        if isinstance(layer, UnpricedLayer):
            raise ValueError(f"the published systems have no price for {layer.name}: {layer.operator}")
    squares = sum(layer.squares for layer in layers if isinstance(layer, SquareLayer))
    if squares:
        raise ValueError(
            f"the published systems price no squares, and the network has {squares:,}; our runtime "
            "does, whatever computes its ReLUs: gc-full, gc-sign or ot"
        )
    signs = sum(layer.signs for layer in layers if isinstance(layer, SignLayer))
    if signs:
        raise ValueError(f"the published systems price no signs, and the network has {signs:,}; gc-full does")
    linear = [layer for layer in layers if isinstance(layer, LinearLayer)]
    serial = sum(map(he_seconds, linear))
    parallel = max(map(he_seconds, linear), default=0.0) * LAYER_PARALLEL_SLOWDOWN if profile.layer_parallel else serial
    rows = [Cost("keys", "offline", "he", seconds=KEY_SECONDS, bytes_up=KEY_BYTES + BASE_OT_BYTES, rounds=1)]
    for layer in layers:
        if isinstance(layer, LinearLayer):
            rows += _linear(layer, parallel / serial if serial else 0.0)
        elif isinstance(layer, ReluLayer):
            rows += _relu(layer, profile)
    first = next(iter(linear), None)
    if first:
        elements = first.in_channels * first.in_size[0] * first.in_size[1]
        up = ELEMENT_BYTES * elements if profile.garbler == "server" else FIRST_LAYER_BYTES
        rows.append(Cost("input", "online", "send", bytes_up=up, bytes_down=PREDICTION_BYTES, rounds=1))
    return CostReport.of(_timed(rows, profile, link or Link(WIRELESS / 2, WIRELESS / 2)))


def published_seconds(layers: Sequence[Layer]) -> dict[str, float]:
    """Seconds of one inference under each of :data:`PROFILES`, on its study's link; none if it cannot be priced."""
    if any(isinstance(layer, SquareLayer | SignLayer | UnpricedLayer) for layer in layers):
        return {}
    return {name: round(price_published(layers, profile).seconds, 3) for name, profile in PROFILES.items()}


def _timed(rows: Sequence[Cost], profile: Published, link: Link) -> Iterable[Cost]:
    """The rows, and for each that moves bytes one more for the time this takes."""
    if profile.slots:
        up, down = sum(row.bytes_up for row in rows), sum(row.bytes_down for row in rows)
        link = split(link.up + link.down, up, down, link.latency)
    for row in rows:
        yield row
        seconds = link.seconds(row.bytes_up, row.bytes_down, row.rounds)
        if seconds:
            yield Cost(row.layer, row.phase, "send", seconds=seconds)


def _linear(layer: LinearLayer, speed: float) -> Iterable[Cost]:
    area = layer.in_size[0] * layer.in_size[1]
    # the client sends each ciphertext once for every rotation that the kernel needs
    up = layer.kernel[0] * layer.kernel[1] * ceil(layer.in_channels * area / SLOTS)
    down = ceil(layer.out_channels * area / SLOTS)
    yield Cost(
        layer.name,
        "offline",
        "he",
        seconds=he_seconds(layer) * speed + up * ENCRYPT_SECONDS + down * DECRYPT_SECONDS,
        bytes_up=up * CIPHERTEXT_BYTES,
        bytes_down=down * CIPHERTEXT_BYTES,
        rounds=1,
        macs=layer.macs,
    )
    yield Cost(layer.name, "online", "shares", seconds=layer.macs * SHARES_SECONDS_PER_MAC)


def _relu(layer: ReluLayer, profile: Published) -> Iterable[Cost]:
    if not layer.relus:
        return
    garbler, n = profile.garbler, layer.relus
    evaluator = "client" if garbler == "server" else "server"
    stored = {evaluator: STORED_BY_EVALUATOR * n, garbler: STORED_BY_GARBLER * n}
    served = garbler == "server"
    yield Cost(
        layer.name,
        "offline",
        "garble",
        seconds=n * (GARBLE_SECONDS[garbler] / THREADS[garbler] + ENCODE_OFFLINE_SECONDS),
        bytes_up=n * (OT_SETUP_BYTES if served else CIRCUIT_BYTES),
        bytes_down=n * (CIRCUIT_BYTES + OT_SEND_BYTES) if served else 0,
        rounds=1,
        relus=n,
        stored_client=stored["client"],
        stored_server=stored["server"],
    )
    yield Cost(
        layer.name,
        "online",
        "evaluate",
        seconds=n * (EVALUATE_SECONDS[evaluator] / THREADS[evaluator] + ENCODE_ONLINE_SECONDS),
        bytes_up=ELEMENT_BYTES * layer.elements if served else n * OT_SEND_BYTES,
        bytes_down=n * (LABEL_BYTES if served else OT_SETUP_BYTES),
        rounds=1,
    )
