"""Client and server over TLS: each inference is one ciphertext up and one down, after one upload of evaluation keys.

Both certificates are verified, and the handshake compares the digest of the circuit, so that keys of another network
are refused before anything is sent. A session's process is forked for it (:mod:`deepreshape.private.service.service`):
what a client sends is read in a process that serves this client alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepreshape.engines.ckks.evaluate import EncodedCircuit
from deepreshape.engines.ckks.exchange import Requester, answer_requests
from deepreshape.engines.ckks.keys import KeyShelf
from deepreshape.engines.ckks.public import PublicCircuit
from deepreshape.engines.ckks.scheme import Holder
from deepreshape.private.files import read_json, replace_file
from deepreshape.private.parties.sessions import Admit
from deepreshape.private.service.bundle import Facts, facts_of
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.handshake import Agreement, Connection, client_session, server_session
from deepreshape.private.transport.tls import Endpoint, Limits

__all__ = ["LIMITS", "MOST_CIPHERTEXTS", "Remote", "Replies", "ServedModel", "read_client", "write_client"]

Real = NDArray[np.float64]

CLIENT_FILE = "client.json"
FILE_BYTES = 1 << 22
LIMITS = Limits(read_s=3600.0, write_s=600.0, session_s=86400.0)
"""An upload takes hours on a slow line, and an answer minutes of a core."""
MOST_CIPHERTEXTS = 250
"""In one session."""
FORGET = 255
"""In place of a number of ciphertexts: delete my keys."""


def write_client(folder: Path, public: PublicCircuit, facts: Facts) -> Path:
    """The file that every client gets; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"circuit": public.to_dict(), "facts": asdict(facts)}
    replace_file(folder / CLIENT_FILE, json.dumps(values, indent=1).encode(), 0o644)
    return folder / CLIENT_FILE


def read_client(path: Path) -> tuple[PublicCircuit, Facts]:
    """What a server's owner gave.

    Raises:
        ValueError: if it is none.
    """
    try:
        values: Any = read_json(path, FILE_BYTES)
        if sorted(values) != ["circuit", "facts"]:
            raise ValueError("it has not the fields circuit and facts")
        public = PublicCircuit.from_dict(values["circuit"])
        return public, facts_of(values["facts"], public.input[0], prod(public.shape))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; the server's owner makes it by `private fhe lower`") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not what `private fhe lower` makes for clients: {error}") from None


@dataclass(frozen=True)
class ServedModel:
    """What a server has: a model, and the keys of its clients."""

    model: EncodedCircuit
    shelf: KeyShelf

    def serve(self, channel: Connection, admit: Admit) -> None:
        """The server's side of one session.

        Raises:
            ProtocolError: if the session fails, or the client was given another circuit.
            StoreError: if keys cannot be kept.
        """
        public = self.model.circuit.public
        with server_session(channel, lambda _: _agreement(public)):
            keys = self.shelf.of(channel.peer.fingerprint, public)
            (count,) = channel.receive(Frame.READY, 1)
            if count == FORGET:
                keys.delete()
                return
            keys.make_room()
            answer_requests(channel, self.model, keys, count, admit)


class Replies(NamedTuple):
    """Answers (N, ...), bytes by what they were, and CPU seconds of the client by step."""

    outputs: Real
    sent: dict[str, int]
    cpu: dict[str, float]


@dataclass(frozen=True)
class Remote:
    """A server, as its client sees it.

    Args:
        endpoint: with the client's certificate.
        host, port: where it listens.
        public: the circuit.
        pinned: fingerprint of the one server certificate to accept.
    """

    endpoint: Endpoint
    host: str
    port: int
    public: PublicCircuit
    pinned: str | None = None

    def predict(
        self, holder: Holder, images: Sequence[Real], progress: Callable[[int, int], object] | None = None
    ) -> Replies:
        """Answers of images (C, H, W); sends evaluation keys first if the server has them not.

        Args:
            holder: of the secret key.
            images: none only uploads keys.
            progress: is told of the upload, bytes done and in all.

        Raises:
            ValueError: if they are too many for one session.
            ProtocolError: if the session fails; the keys that were sent stay there.
        """
        batch = self.public.batch
        groups = [np.stack(images[start : start + batch]) for start in range(0, len(images), batch)]
        if len(groups) > MOST_CIPHERTEXTS:
            raise ValueError(
                f"{len(images):,} images are {len(groups):,} ciphertexts; a session takes {MOST_CIPHERTEXTS}"
            )
        channel = self.endpoint.connect(self.host, self.port, self.pinned)
        with client_session(channel, _agreement(self.public)):
            channel.send(Frame.READY, bytes([len(groups)]))
            requester = Requester(channel, self.public, holder)
            requester.upload(progress)
            outputs = list(requester.ask(groups))
        whole = np.concatenate(outputs) if outputs else np.zeros((0, *self.public.shape))
        return Replies(whole, dict(requester.sent), dict(requester.cpu))

    def forget(self) -> None:
        """Have the server delete this client's keys of this circuit.

        Raises:
            ProtocolError: if the session fails.
        """
        channel = self.endpoint.connect(self.host, self.port, self.pinned)
        with client_session(channel, _agreement(self.public)):
            channel.send(Frame.READY, bytes([FORGET]))


def _agreement(public: PublicCircuit) -> Agreement:
    return Agreement(public.digest, {"engine": "ckks", "degree": public.parameters.degree, "batch": public.batch})
