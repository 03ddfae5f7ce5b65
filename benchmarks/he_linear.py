"""Homomorphic linear layers of the offline phase: CPU seconds of each role, bytes each way, noise left.

    python benchmarks/he_linear.py [--json] [--rounds 9] [--bits 37] [--weight-bits 8]

Both roles run in this process without a socket. ``client`` is encrypting and decrypting, ``server`` answers with
weights encoded afresh, ``server_kept`` with encodings kept from before. ``limit`` is the time of the plaintext products
alone, in NTT form, and ``over_limit`` the ratio of client and server together to it. ``spare_bits`` is SEAL's own noise
budget of a response of which every coefficient was revealed, so it covers the worst of 8192 floods.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from deepreshape.pricing.calibrate import machine
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.he import bfv as he
from deepreshape.private.crypto.he import residues
from deepreshape.private.crypto.he.packing import Convolution, choose_parameters, lay_out
from deepreshape.private.crypto.he.parameters import DEGREE, STATISTICAL_BITS
from deepreshape.private.crypto.he.responses import EncodedWeights, respond
from deepreshape.private.crypto.he.seal_container import seal

TARGET = {"layer": "64x8x8 -> 64, 3x3", "cpu_seconds": 0.15, "bytes": 3_000_000}


def cases(bits: int) -> dict[str, Convolution]:
    return {
        "64x8x8 -> 64, 3x3": Convolution(64, 8, 8, 64, 3, 1, 1, bits),
        "16x32x32 -> 16, 3x3": Convolution(16, 32, 32, 16, 3, 1, 1, bits),
        "32x16x16 -> 32, 3x3": Convolution(32, 16, 16, 32, 3, 1, 1, bits),
        "64x8x8 -> 128, 1x1": Convolution(64, 8, 8, 128, weight_bits=bits),
        "16x32x32 -> 32, 3x3, stride 2": Convolution(16, 32, 32, 32, 3, 2, 1, bits),
        "16x32x32 -> 32, 1x1, stride 2": Convolution(16, 32, 32, 32, 1, 2, 0, bits),
        "linear 512 -> 100": Convolution.matrix(512, 100, bits),
    }


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 5),
        "min": round(min(values), 5),
        "max": round(max(values), 5),
        "stdev": round(statistics.stdev(values), 5),
    }


def measure(layer: Convolution, modulus: int, rounds: int) -> dict[str, Any]:
    parameters = choose_parameters(modulus, [layer])
    layout = lay_out(layer, parameters)
    rng = Randomness()
    key = he.ClientKey(parameters)
    responder = he.Responder(parameters, key.public_key(), key.galois_keys())
    top = 2**layer.weight_bits
    integers = np.random.default_rng(0).integers(-top, top + 1, layer.weight_shape)
    weights = EncodedWeights(layout, integers)
    kept = EncodedWeights(layout, integers, keep=True)
    mask = residues.uniform(rng, int(np.prod(layer.input_shape)), modulus).reshape(layer.input_shape)
    seconds: dict[str, list[float]] = {"client": [], "server": [], "server_kept": [], "limit": []}

    def timed(role: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        seconds[role].append(time.process_time() - began)
        return result

    sent = [key.encrypt(polynomial) for polynomial in layout.polynomials(mask)]
    respond(responder, kept, sent)  # encodes what is kept, and warms everything up
    received = responder.receive(sent[0], layout.interleave)
    plain = he.encode(parameters, np.random.default_rng(1).integers(-top, top + 1, parameters.degree)).plain
    total, product = seal.Ciphertext(), seal.Ciphertext()
    evaluator = he._evaluator(parameters)
    evaluator.multiply_plain(received, plain, total)

    def products() -> None:
        for _ in range(layout.products):
            evaluator.multiply_plain(received, plain, product)
            evaluator.add_inplace(total, product)

    def client() -> list[bytes]:
        return [key.encrypt(polynomial) for polynomial in layout.polynomials(mask)]

    def finish(responses: list[bytes]) -> None:
        for response, (channels, rows) in zip(responses, layout.slices(), strict=True):
            key.decrypt(response, layout.form, layout.positions(channels, rows))

    for _ in range(rounds):
        timed("client", client)
        responses, _ = timed("server", lambda: respond(responder, weights, sent))
        began = time.process_time()
        finish(responses)
        seconds["client"][-1] += time.process_time() - began
        timed("server_kept", lambda: respond(responder, kept, sent))
        timed("limit", products)

    everywhere = np.arange(parameters.degree)
    masks = residues.uniform(rng, parameters.degree, modulus)
    inputs = [responder.receive(each, layout.interleave) for each in sent[: layout.inputs]]
    leaves = [zip(inputs, row, strict=True) for row in weights.rows(0)]
    revealed = responder.respond(leaves, masks, layout.form, everywhere)
    out, back = layout.declared.traffic["offline"]
    assert (out, back) == (sum(map(len, sent)), sum(map(len, responses)))
    both = [a + b for a, b in zip(seconds["client"], seconds["server"], strict=True)]
    return {
        "primes": parameters.prime_bits,
        "cpu_seconds": {role: spread(values) for role, values in seconds.items()} | {"both": spread(both)},
        "over_limit": round(statistics.median(both) / statistics.median(seconds["limit"]), 2),
        "bytes_to_server": out,
        "bytes_to_client": back,
        "bytes_keys_once": parameters.setup_bytes,
        "ciphertexts": layout.declared.ciphertexts,
        "products": layout.products,
        "switches": layout.switches,
        "kept_bytes": layout.declared.encoded_bytes,
        "flood_bits": layout.form.flood_bits,
        "spare_bits": key._decryptor.invariant_noise_budget(key._from_wire(revealed, layout.form, everywhere)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=9, help="repetitions, at least 2")
    parser.add_argument("--bits", type=int, default=37, help="ring width: shares are modulo 2^bits")
    parser.add_argument("--weight-bits", type=int, default=8, help="bits of a weight, without its sign")
    arguments = parser.parse_args()
    rows = {
        name: measure(layer, 2**arguments.bits, arguments.rounds)
        for name, layer in cases(arguments.weight_bits).items()
    }
    report = {
        "machine": machine(),
        "versions": {name: version(name) for name in ("numpy", "tenseal", "zstandard")},
        "n": arguments.rounds,
        "modulus": f"2^{arguments.bits}",
        "degree": DEGREE,
        "statistical_bits": STATISTICAL_BITS,
        "target": TARGET,
        "layers": rows,
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    cpu, modulus = report["machine"]["cpu"], report["modulus"]
    print(f"{cpu}, n = {arguments.rounds}, modulo {modulus}, medians of CPU milliseconds")
    titles = f"{'client':>8}{'server':>8}{'kept':>8}{'x limit':>9}{'kB up':>8}{'kB down':>9}{'in/out':>9}{'spare':>7}"
    print(f"{'layer':32}{titles}")
    for name, row in rows.items():
        medians = [1000 * row["cpu_seconds"][role]["median"] for role in ("client", "server", "server_kept")]
        sizes = row["bytes_to_server"] / 1000, row["bytes_to_client"] / 1000
        counts = "{}/{}".format(*row["ciphertexts"])
        print(
            f"{name:32}"
            + "".join(f"{value:8.1f}" for value in medians)
            + f"{row['over_limit']:9.1f}{sizes[0]:8.0f}{sizes[1]:9.0f}{counts:>9}{row['spare_bits']:7d}"
        )


if __name__ == "__main__":
    main()
