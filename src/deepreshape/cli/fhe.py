"""Commands that run a network of squares under homomorphic encryption alone: private fhe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deepreshape.cli.console import DataDir, Json, err, new_table, out, print_json, progress_bar, stoppable
from deepreshape.cli.private import MODEL, NOTHING_KEPT, SamplesOption

__all__ = ["app"]

PRECISION = 1e-3
"""Error, of the range of a network's outputs, beyond which an answer does not count as the network's."""
UNPROTECTED = (
    "the server's weights have no statistical protection here: an answer's noise depends on them; a client must not "
    "hand on what it decrypted"
)

app = typer.Typer(
    no_args_is_help=True, help="Run a network of squares (-herpn) under leveled CKKS: one ciphertext up, one down."
)


@app.callback()
def fhe() -> None:
    """Keep ``local`` a command of its own while it is the only one."""


@app.command()
def local(
    model: Annotated[str, typer.Option(help=MODEL)],
    samples: SamplesOption = None,
    images: Annotated[int, typer.Option(min=1, help="How many inputs; as many as fit share a ciphertext.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Keep encoded weights: faster from the second on.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run both parties on this machine, the server in a process of its own that never has the secret key."""
    import numpy as np

    from deepreshape.cli.models import compare, find_inputs, find_network, read_samples
    from deepreshape.engines.ckks.circuit import compiled
    from deepreshape.engines.ckks.local import run_encrypted
    from deepreshape.private.program.lower import real_layers

    network = find_network(model)
    inputs = find_inputs(network, read_samples(samples) if samples else None, data_dir, images)
    circuit = compiled(real_layers(network.built(), network.shape), network.shape, images)
    parameters = circuit.parameters
    largest = float(np.abs(network.run(inputs.known)).max())
    if not largest < parameters.largest_answer / 2:
        raise ValueError(
            f"outputs reach {largest:.3g}; an answer is read up to {parameters.largest_answer:g}: scale the last layer"
        )
    if not as_json:
        err.print(f"{parameters}; {len(circuit.rotation_steps) + 1} keys to upload once", highlight=False)
    chosen = inputs.new[:images]
    with progress_bar() as bar:
        task = bar.add_task("keys", total=None)
        answer = stoppable(
            lambda: run_encrypted(
                circuit, chosen.astype(np.float64), keep=keep, progress=lambda what: bar.update(task, description=what)
            ),
            NOTHING_KEPT,
        )
    beside = compare(network, chosen, answer.outputs.reshape(images, -1))
    report: dict[str, Any] = {
        "agree": bool(
            beside["same_class"] == images and beside["largest_difference"] <= PRECISION * beside["largest_output"]
        ),
        "max_error": beside["largest_difference"],
        "same_class": beside["same_class"],
        "inputs": images,
        "squares": circuit.squares,
        "levels": parameters.levels,
        "degree": parameters.degree,
        "modulus_bits": sum(parameters.primes),
        "rotations": circuit.rotations,
        "products": circuit.products,
        "images_a_ciphertext": circuit.batch,
        "seconds": {name: round(value, 3) for name, value in answer.cpu_seconds.items()},
        "bytes": answer.bytes,
        "peak_rss_mib": round(answer.peak_rss_mib),
    }
    if as_json:
        print_json(report)
        return
    table = new_table("", "CPU, s", "sent, MB")
    for name, part in (("keys", "keys"), ("encrypt", "up"), ("evaluate", ""), ("decrypt", "down")):
        size = f"{report['bytes'][part] / 1e6:,.2f}" if part else ""
        table.add_row(name, f"{report['seconds'][name]:.2f}", size)
    out.print(table)
    out.print(
        f"{images} inputs, {circuit.batch} to a ciphertext, which takes {circuit.rotations} rotations, "
        f"{circuit.products:,} products and {circuit.squares} layers of squares; peak memory "
        f"{answer.peak_rss_mib:,.0f} MiB at the server",
        highlight=False,
    )
    out.print(
        f"same class as your network in floating point: {beside['same_class']} of {images}; largest difference "
        f"{beside['largest_difference']:.2g}, outputs reach {beside['largest_output']:.3g}",
        highlight=False,
    )
    out.print(UNPROTECTED, highlight=False)
