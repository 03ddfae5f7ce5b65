"""Three ways to a private answer: both parties on this machine, a server of your own, and its client.

run_private(lowered, image)                                  # two processes over TLS, and what it cost
Server("bundle", keys="keys").run()                          # in one process
Client("bundle", keys="keys", address="host:7411").predict("photo.jpg")

Where every pixel has a class, ``segment_private`` and ``Client.segment`` give it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.parties import sessions
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.store import Store
from deepreshape.private.program.program import to_fixed
from deepreshape.private.program.relu_config import read_relus
from deepreshape.private.service.answer import PrivateAnswer
from deepreshape.private.service.bundle import Bundle, Facts
from deepreshape.private.service.local_run import run_local
from deepreshape.private.service.quotas import Caps
from deepreshape.private.service.segmented import SegmentedImage
from deepreshape.private.service.service import Service
from deepreshape.private.transport.certificates import Credentials
from deepreshape.private.transport.tls import EmulatedLink, Endpoint, listen

__all__ = ["Client", "Prediction", "Server", "run_private", "segment_private"]

PORT = 7411


@dataclass(frozen=True)
class Prediction(PrivateAnswer):
    """The answer to one image.

    Attributes:
        name: of the most likely class.
        probability: of it, from the softmax of the logits; None where there is one logit, which has nothing beside it.
        ranked: (name, probability) of the five most likely classes; empty where there is one logit.
    """

    name: str
    probability: float | None
    ranked: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        told = f"{self.logits.item():.6g}" if self.probability is None else f"{self.name} ({self.probability:.1%})"
        return f"{told}; {self.took}"

    @classmethod
    def of(cls, logits: NDArray[np.float64], facts: Facts, **rest: Any) -> Prediction:
        """The prediction that logits (classes,) mean."""
        if len(logits) == 1:
            return cls(facts.name(0), None, (), logits=logits, **rest)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = [int(place) for place in np.argsort(-shares)[:5]]
        ranked = tuple((facts.name(at), float(shares[at])) for at in best)
        return cls(*ranked[0], ranked, logits=logits, **rest)


def run_private(
    program: Any,
    image: Any,
    *,
    relu: str = "gc-full",
    link: EmulatedLink | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Run a client and a server in two processes of this machine, over TLS, on one image, for its class.

    Args:
        program: what ``lower`` gives, a :class:`Bundle` or a bare program with weights.
        image: as :meth:`Facts.input_of` takes it.
        relu: how ReLUs are computed, a word of ``read_relus``.
        link: a slower link to emulate.
        progress: is told how many of the offline phase's bytes have travelled, and how many there are.

    Raises:
        ValueError: if the image does not fit, or the program gives a class for each pixel.
        ProgramError: if a value may not fit the modulus.
        ProtocolError: if a process fails or is killed.
    """
    bundle = Bundle.of(program)
    _see_classes(bundle.facts)
    logits, answered = _run_both(bundle, image, relu, link, progress)
    return Prediction.of(logits.reshape(-1), bundle.facts, **answered)


def segment_private(
    program: Any,
    image: Any,
    *,
    relu: str = "gc-full",
    link: EmulatedLink | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SegmentedImage:
    """As :func:`run_private`, for a class for each pixel.

    Raises:
        ValueError: if the image does not fit, or the program gives one class for the image.
        ProgramError: if a value may not fit the modulus.
        ProtocolError: if a process fails or is killed.
    """
    bundle = Bundle.of(program)
    _see_maps(bundle.facts)
    logits, answered = _run_both(bundle, image, relu, link, progress)
    return SegmentedImage.of(logits, bundle.facts, **answered)


def _run_both(
    bundle: Bundle, image: Any, relu: str, link: EmulatedLink | None, progress: Callable[[int, int], None] | None
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """The logits for an image, and what else an answer says."""
    x, done = bundle.facts.input_of(image, bundle.program.input_shape)
    report = run_local(
        bundle.program,
        to_fixed(x[None], bundle.program.input_fraction),
        read_relus(relu),
        link=link,
        progress=progress,
    )
    logits = bundle.program.decode(np.array(report["outputs"], dtype=np.int64))[0][0]
    return logits, {name: report[name] for name in ("seconds", "bytes", "agree")} | {"done": done}


def _see_classes(facts: Facts) -> None:
    if facts.upsample:
        raise ValueError("the program gives a class for each pixel, and no class of the image; segment it")


def _see_maps(facts: Facts) -> None:
    if not facts.upsample:
        raise ValueError("the program gives one class for the image, and none for its pixels; predict it")


class Server:
    """A server of one bundle for several clients, whose certificates are of the same authority.

    Args:
        bundle: the folder that `lower` wrote, with the server's program.
        keys: folder with authority.pem, server.pem and server.key, from ``deepreshape private keygen``.
        address: to listen on, ``host:port``; port 0 takes a free one.
        relu: how ReLUs are computed; clients need the same.
        store: folder for preprocessing; ``server-store`` in the folder of keys without.
        workers: at most how many processes do homomorphic work.
        caps: the most that a client may have.
        notify: is told what happens, in lines without secrets.

    Raises:
        ValueError: if bundle, keys or address are not what they should be.
    """

    def __init__(
        self,
        bundle: Path | str,
        *,
        keys: Path | str,
        address: str = f"127.0.0.1:{PORT}",
        relu: str = "gc-full",
        store: Path | str | None = None,
        workers: int | None = None,
        caps: Caps | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        program = Bundle.read(bundle, "server").program
        model = Model(program, Plan(program.public(), read_relus(relu)), workers=workers)
        endpoint = Endpoint(Credentials.within(Path(keys), "server", "server"))
        folder = Path(store) if store else Path(keys) / "server-store"
        host, port = read_address(address)
        listener = listen(host, port)
        self.address = f"{host}:{listener.getsockname()[1]}"
        self._service = Service(listener, endpoint, model, Store(folder), caps, notify=notify)

    def run(self, sessions: int = 0) -> dict[str, int]:
        """Serve until SIGINT or SIGTERM, or until so many sessions have ended; 0 has no such end.

        Returns:
            How many sessions were served, failed and refused.

        Raises:
            RuntimeError: if this process has other threads.
            StoreError: if another server is serving from the store.
        """
        self._service.run(sessions)
        return {str(outcome): count for outcome, count in self._service.ended.items()}


class Client:
    """A client of a server of the same bundle; it never shows the image, and never sees the weights.

    Args:
        bundle: folder with client.program and client.json; nothing else of the bundle is needed.
        keys: folder with authority.pem and the client's certificate and key.
        address: of the server, ``host:port``.
        name: in the client's certificate.
        relu: how ReLUs are computed, as at the server.
        store: folder for preprocessing, never to be copied; ``NAME-store`` in the folder of keys without.

    Raises:
        ValueError: if bundle, keys or address are not what they should be.
    """

    def __init__(
        self,
        bundle: Path | str,
        *,
        keys: Path | str,
        address: str = f"127.0.0.1:{PORT}",
        name: str = "client",
        relu: str = "gc-full",
        store: Path | str | None = None,
    ) -> None:
        known = Bundle.read(bundle, "client")
        self.facts = known.facts
        self._plan = Plan(known.program.public(), read_relus(relu))
        endpoint = Endpoint(Credentials.within(Path(keys), "client", name))
        folder = Path(store) if store else Path(keys) / f"{name}-store"
        self._party = sessions.InferenceClient(endpoint, *read_address(address), self._plan, Store(folder))

    def prepare(self, n: int = 1, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Do the offline work of ``n`` predictions ahead of time; returns the ids of their batches.

        Raises:
            ProtocolError, StoreError: if it fails; batches that were finished stay.
        """
        return [prepared.batch for prepared in self._party.prepare_several(n, progress)]

    def predict(self, image: Any, progress: Callable[[int, int], None] | None = None) -> Prediction:
        """Ask for the class of an image; prepares first if nothing is ready.

        Args:
            image: as :meth:`Facts.input_of` takes it.
            progress: is told how far preparing is.

        Raises:
            ValueError: if the image does not fit, or the program gives a class for each pixel.
            ProtocolError, StoreError: if it fails; preprocessing that was in use is spent.
        """
        _see_classes(self.facts)
        logits, answered = self._infer(image, progress)
        return Prediction.of(logits.reshape(-1), self.facts, **answered)

    def segment(self, image: Any, progress: Callable[[int, int], None] | None = None) -> SegmentedImage:
        """As :meth:`predict`, for a class for each pixel.

        Raises:
            ValueError: if the image does not fit, or the program gives one class for the image.
            ProtocolError, StoreError: if it fails; preprocessing that was in use is spent.
        """
        _see_maps(self.facts)
        logits, answered = self._infer(image, progress)
        return SegmentedImage.of(logits, self.facts, **answered)

    def _infer(
        self, image: Any, progress: Callable[[int, int], None] | None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """The logits for an image, and what else an answer says."""
        program = self._plan.program
        x, done = self.facts.input_of(image, program.input_shape)
        answer = self._party.infer(to_fixed(x, program.input_fraction), progress=progress)
        sent = sum(row.sent + row.received for row in answer.ledger.traffic.values())
        logits = program.decode(answer.output)[0]
        return logits, {"seconds": {"online": answer.seconds}, "bytes": {"online": sent}, "agree": None, "done": done}


def read_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port``.

    Raises:
        ValueError: if it is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"an address is host:port, such as 127.0.0.1:{PORT}, not {text!r}")
    return host, int(port)
