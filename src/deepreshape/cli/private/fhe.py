"""Commands that run a network of squares under homomorphic encryption alone: private fhe."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import NOTHING_KEPT, err, new_table, out, print_json, progress_bar, stoppable, tell
from deepreshape.cli.options import MODEL, DataDir, InputData, Json, ModelArgument, with_groups
from deepreshape.cli.private.options import End, PinOption, SamplesOption, read_pin

if TYPE_CHECKING:
    from deepreshape.cli.models import Inputs, Network
    from deepreshape.engines.ckks.circuit import LeveledCircuit
    from deepreshape.private.service.predict import Prediction

__all__ = ["app", "price_of", "print_price"]

FULL = 1 << 14
"""More images than a ciphertext holds."""
UNPROTECTED = (
    "the server's weights have no statistical protection here: an answer's noise depends on them; a client must not "
    "hand on what it decrypted"
)

ModelOption = Annotated[str, typer.Option(help=MODEL)]
KeepOption = Annotated[bool, typer.Option("--keep", help="Keep encoded weights: faster from the second on.")]
CircuitOption = Annotated[Path, typer.Option(help="client.json, which `private fhe lower` made.")]
ImagesOption = Annotated[int, typer.Option(min=1, help="How many inputs; as many as fit share a ciphertext.")]

app = typer.Typer(
    no_args_is_help=True, help="Run a network of squares (-herpn) under leveled CKKS: one ciphertext up, one down."
)


@dataclass(frozen=True, kw_only=True)
class FheEnd(End):
    """The same, with a port of its own."""

    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 lets the server choose.")] = 7412


@dataclass(frozen=True)
class Shelf:
    """What a server keeps for its clients."""

    store: Annotated[Path, typer.Option(help="Folder for clients' evaluation keys.")]
    gigabytes_each: Annotated[
        float, typer.Option("--max-key-gb-each", min=0.001, help="Evaluation keys of a client, in GB.")
    ] = 4.0
    gigabytes: Annotated[float, typer.Option("--max-key-gb", min=0.001, help="Evaluation keys in all, in GB.")] = 32.0
    days: Annotated[int, typer.Option("--max-key-days", min=1, help="Days until unused keys are deleted.")] = 30
    sessions: Annotated[int, typer.Option("--max-sessions", min=1, help="Sessions at once, in all.")] = 2
    queries_hour_each: Annotated[
        int, typer.Option("--max-queries-hour-each", min=1, help="Ciphertexts of a client in any hour.")
    ] = 200
    queries_day_each: Annotated[
        int, typer.Option("--max-queries-day-each", min=1, help="Ciphertexts of a client in any day.")
    ] = 2000


@app.command()
def lower(
    model: ModelArgument,
    to: Annotated[Path, typer.Option("--out", help="Folder for client.json, which every client gets.")],
    samples: SamplesOption = None,
    images: ImagesOption = 1,
    data: InputData = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Fit a model into a ciphertext, say what it takes, and write what clients need to know; no weights."""
    from deepreshape.engines.ckks.remote import write_client
    from deepreshape.private.service.bundle import Facts

    network, inputs = _with_classes(model, samples, data, data_dir, images)
    circuit = _compiled(network, images)
    ranges = _ranges(network, circuit, inputs.known)
    path = write_client(to, circuit.public, Facts(**inputs.facts))
    report = {"file": str(path), "digest": circuit.public.digest, **_takes(circuit), **ranges}
    if as_json:
        print_json(report)
        return
    _print_needs(circuit)
    _print_ranges(ranges)
    out.print(f"{path} is for every client; the server takes --model {model} --circuit {path}", highlight=False)


@app.command()
def keygen(
    circuit: CircuitOption,
    to: Annotated[Path, typer.Option("--out", help="File for the secret key; never hand it on.")],
    as_json: Json = False,
) -> None:
    """Make a client's secret key for one circuit. Its evaluation keys are made as they are uploaded."""
    from deepreshape.engines.ckks.exchange import upload_bytes
    from deepreshape.engines.ckks.keys import write_secret_key
    from deepreshape.engines.ckks.remote import read_client

    public, _ = read_client(circuit)
    write_secret_key(to, public)
    size, count = upload_bytes(public), len(public.key_names)
    if as_json:
        print_json({"key": str(to), "circuit": public.digest, "upload_bytes": size, "keys": count})
        return
    out.print(
        f"made {to} for {public.parameters}; the first `client` uploads {count} evaluation keys, {size / 1e6:,.0f} MB",
        highlight=False,
    )


@app.command()
@with_groups
def server(
    options: FheEnd,
    shelf: Shelf,
    model: ModelOption,
    circuit: CircuitOption,
    until: Annotated[int, typer.Option("--sessions", min=0, help="End after so many sessions; 0 never ends.")] = 0,
    as_json: Json = False,
) -> None:
    """Serve a network to clients with a certificate of the same authority; Ctrl-C ends it."""
    from deepreshape.cli.models import find_network
    from deepreshape.engines.ckks.evaluate import EncodedCircuit
    from deepreshape.engines.ckks.keys import KeyCaps, KeyShelf
    from deepreshape.engines.ckks.remote import LIMITS, ServedModel, read_client
    from deepreshape.private.parties.store import Store
    from deepreshape.private.service.quotas import Caps
    from deepreshape.private.service.service import Service
    from deepreshape.private.transport.tls import listen

    public, _ = read_client(circuit)
    compiled = _compiled(find_network(model, public.input, prod(public.shape)), public.batch)
    if compiled.public != public:
        raise ValueError(f"{circuit} was made of another network than {model}; run `private fhe lower {model}` again")
    key_caps = KeyCaps(int(shelf.gigabytes_each * 1e9), int(shelf.gigabytes * 1e9), shelf.days)
    served = ServedModel(EncodedCircuit(compiled), KeyShelf(shelf.store / "evaluation-keys", key_caps))
    endpoint = options.endpoint("server", LIMITS)
    with listen(options.host, options.port) as listener:
        caps = Caps(
            sessions=shelf.sessions,
            queries_hour_each=shelf.queries_hour_each,
            queries_day_each=shelf.queries_day_each,
        )
        service = Service(listener, endpoint, served, Store(shelf.store / "sessions"), caps, notify=tell)
        line = f"serving {compiled.squares} layers of squares on {options.host}:{listener.getsockname()[1]}"
        service.run(until, lambda: tell(f"{line}; {UNPROTECTED}"))
    if as_json:
        print_json(service.ended)


@app.command()
@with_groups
def client(
    options: FheEnd,
    circuit: CircuitOption,
    secret: Annotated[Path, typer.Option("--secret", help="Secret key file, which `private fhe keygen` made.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Images or .npy arrays of the network's input shape; none only uploads the keys."),
    ] = None,
    pin: PinOption = None,
    forget: Annotated[bool, typer.Option("--forget", help="Have the server delete your keys, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Ask for the classes of images without showing them; uploads evaluation keys that the server has not."""
    from deepreshape.engines.ckks.exchange import upload_bytes
    from deepreshape.engines.ckks.keys import read_secret_key
    from deepreshape.engines.ckks.remote import LIMITS, Remote, read_client
    from deepreshape.private.service.predict import Prediction

    if not options.port:
        raise ValueError("--port 0 lets the server choose; a client needs the port that it chose")
    public, facts = read_client(circuit)
    holder = read_secret_key(secret, public)
    remote = Remote(options.endpoint("client", LIMITS), options.host, options.port, public, read_pin(pin))
    if forget:
        stoppable(remote.forget, "the server may have deleted them")
        if as_json:
            print_json({"circuit": public.digest, "keys": "deleted"})
        else:
            out.print("the server has deleted your evaluation keys of this circuit")
        return
    images: list[Any] = []
    for path in inputs or []:
        x, done = facts.input_of(path, public.input)
        images.append(x)
        if done:
            tell(f"{path}: {done}")
    tell(f"up to {upload_bytes(public) / 1e6:,.0f} MB of evaluation keys are uploaded once; what is there stays")
    with progress_bar() as bar:
        task = bar.add_task("answers", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, description=f"keys: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

        replies = stoppable(lambda: remote.predict(holder, images, show), "keys that went up whole are kept there")
    rows = [
        Prediction.of(logits.ravel(), facts, seconds={}, bytes={}, agree=None, done="") for logits in replies.outputs
    ]
    if as_json:
        print_json({"inputs": [_rounded(row) for row in rows], "bytes": replies.sent, "cpu_seconds": replies.cpu})
        return
    for path, row in zip(inputs or [], rows, strict=True):
        told = f"{row.logits.item():.2g}" if row.probability is None else f"{row.probability:4.0%}  {row.name}"
        # the server's owner chose the name
        out.print(f"{told}  {path}", highlight=False, markup=False)
    sent = replies.sent
    out.print(f"{sent['keys'] / 1e6:,.1f} MB of keys, {sent['up'] / 1e6:,.2f} MB up, {sent['down'] / 1e6:,.2f} MB down")


@app.command()
def local(
    model: ModelOption,
    samples: SamplesOption = None,
    images: ImagesOption = 1,
    keep: KeepOption = False,
    data: InputData = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run both parties on this machine, the server in a process of its own that never has the secret key."""
    import numpy as np

    from deepreshape.cli.models import compare
    from deepreshape.engines.ckks.local import run_encrypted
    from deepreshape.engines.ckks.parameters import PRECISION

    network, inputs = _with_classes(model, samples, data, data_dir, images)
    circuit = _compiled(network, images)
    chosen = inputs.new[:images]
    ranges = _ranges(network, circuit, np.concatenate([inputs.known, chosen]))
    if not as_json:
        _print_needs(circuit)
    with progress_bar() as bar:
        task = bar.add_task("keys", total=None)
        answer = stoppable(
            lambda: run_encrypted(
                circuit,
                chosen.astype(np.float64),
                keep=keep,
                progress=lambda what: bar.update(task, description=what),
            ),
            NOTHING_KEPT,
        )
    beside = compare(network, chosen, answer.outputs.reshape(images, -1))
    report: dict[str, Any] = {
        "agree": bool(
            beside["same_class"] == images and beside["largest_difference"] <= PRECISION * beside["largest_output"]
        ),
        "max_error": beside["largest_difference"],
        "largest_output": beside["largest_output"],
        "same_class": beside["same_class"],
        "inputs": images,
        **_takes(circuit),
        **ranges,
        "seconds": {name: round(value, 3) for name, value in answer.cpu_seconds.items()},
        "evaluate_seconds": round(answer.evaluate_seconds, 3),
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
        f"{images} inputs, {circuit.batch} to a ciphertext, evaluated in {answer.evaluate_seconds:,.1f} s; "
        f"peak memory {answer.peak_rss_mib:,.0f} MiB at the server",
        highlight=False,
    )
    out.print(
        f"same class as your network in floating point: {beside['same_class']} of {images}; largest difference "
        f"{beside['largest_difference']:.2g}, outputs reach {beside['largest_output']:.3g}",
        highlight=False,
    )
    _print_ranges(ranges)
    out.print(UNPROTECTED, highlight=False)


def _rounded(row: Prediction) -> list[dict[str, Any]] | dict[str, Any]:
    """An answer for JSON, as few digits as people are shown: decryptions in full may tell the key."""
    if row.probability is None:
        return {"value": float(f"{row.logits.item():.2g}")}
    return [{"class": name, "percent": round(100 * share)} for name, share in row.ranked]


def price_of(network: Network, links: str | None) -> dict[str, Any]:
    """What ``cost --protocol fhe`` reports of a network, of as many images in a ciphertext as fit.

    Raises:
        ValueError: if it does not fit under CKKS; says what would.
    """
    from deepreshape.cost import read_link
    from deepreshape.engines.ckks.price import price_circuit

    circuit = _compiled(network, FULL)
    price = price_circuit(circuit)
    at = {name: read_link(name) for name in (links or "loopback").split(",")}
    return {
        "protocol": "fhe",
        **_takes(circuit),
        "keys": len(circuit.public.key_names),
        "bytes": {"keys": price.keys, "up": price.up, "down": price.down},
        "seconds": {"keys": price.setup_seconds, "first": price.seconds, "kept": price.seconds_kept},
        "memory": {"keys": price.memory, "kept": price.kept_memory},
        "links": {
            name: {"keys": link.seconds(price.keys, 0), "query": link.seconds(price.up, price.down, 1)}
            for name, link in at.items()
        },
    }


def print_price(report: dict[str, Any]) -> None:
    """For people."""
    sizes, seconds, memory = report["bytes"], report["seconds"], report["memory"]
    table = new_table("", "seconds of a core", "MB sent")
    table.add_row(f"{report['keys']} evaluation keys, once", f"{seconds['keys']:,.1f}", f"{sizes['keys'] / 1e6:,.0f}")
    query = f"{sizes['up'] / 1e6:,.2f} up, {sizes['down'] / 1e6:,.2f} down"
    table.add_row(f"a ciphertext of {report['images_a_ciphertext']} images", f"{seconds['first']:,.1f}", query)
    table.add_row("the same with weights kept encoded", f"{seconds['kept']:,.1f}", query)
    out.print(table)
    out.print(
        f"{report['levels']} levels, N = {report['degree']:,}, {report['rotations']} rotations, {report['products']:,} "
        f"products, {report['squares']} layers of squares; the server holds {memory['keys'] / 1e9:,.2f} GB of keys a "
        f"client at work, and {memory['kept'] / 1e9:,.2f} GB of weights if they are kept",
        highlight=False,
    )
    for name, link in report["links"].items():
        out.print(f"link {name}: keys {link['keys']:,.1f} s once, a query {link['query']:,.2f} s more", highlight=False)
    out.print(UNPROTECTED, highlight=False)


def _with_classes(
    model: str, samples: Path | None, data: str | None, data_dir: Path | None, count: int
) -> tuple[Network, Inputs]:
    """A network that gives one class for an image, and inputs of it."""
    from deepreshape.cli.models import network_and_inputs

    network, inputs = network_and_inputs(model, samples, data, data_dir, count)
    if "upsample" in inputs.facts:
        raise ValueError(
            f"{model} gives a class for each pixel, which encrypted inference here has no answers for; `private local` "
            "and `private serve` run it"
        )
    return network, inputs


def _compiled(network: Network, images: int) -> LeveledCircuit:
    from deepreshape.engines.ckks.circuit import compiled
    from deepreshape.private.program.lower import real_layers

    return compiled(real_layers(network.built(), network.shape), network.shape, images)


def _takes(circuit: LeveledCircuit) -> dict[str, Any]:
    """What the report of every command has of a circuit."""
    parameters = circuit.parameters
    return {
        "squares": circuit.squares,
        "levels": parameters.levels,
        "degree": parameters.degree,
        "modulus_bits": sum(parameters.primes),
        "expected_error": float(f"{parameters.expected_error:.2g}"),
        "rotations": circuit.rotations,
        "products": circuit.products,
        "images_a_ciphertext": circuit.batch,
    }


def _ranges(network: Network, circuit: LeveledCircuit, known: Any) -> dict[str, Any]:
    """How near answers come to what can be read; only the answer has a limit under CKKS.

    Raises:
        ValueError: if one may lie beyond it.
    """
    import numpy as np

    each, limit = np.abs(network.logits(known)).max(axis=1), circuit.parameters.largest_answer
    largest = float(each.max())
    if not largest < limit / 2:
        raise ValueError(
            f"outputs reach {largest:.3g} on {len(known):,} known inputs; an answer is read up to {limit:g}, half of "
            "which is kept free: scale the last layer"
        )
    return {"answer_limit": limit, "answer_largest": largest, "answers_looked_at": len(known)}


def _print_needs(circuit: LeveledCircuit) -> None:
    from deepreshape.engines.ckks.exchange import upload_bytes

    size = upload_bytes(circuit.public) / 1e6
    err.print(
        f"{circuit.parameters}; {len(circuit.public.key_names)} keys of {size:,.0f} MB to upload once; "
        f"{circuit.rotations} rotations, {circuit.products:,} products and {circuit.squares} layers of squares a "
        f"ciphertext of {circuit.batch} images; errors of about {circuit.parameters.expected_error:.1g} of the largest "
        "output are expected (a fit to measured ones, no bound)",
        highlight=False,
    )


def _print_ranges(ranges: dict[str, Any]) -> None:
    out.print(
        f"answers reach {ranges['answer_largest']:.3g} of {ranges['answer_limit']:g} on "
        f"{ranges['answers_looked_at']:,} known inputs; no one sees whether another input goes beyond",
        highlight=False,
    )
