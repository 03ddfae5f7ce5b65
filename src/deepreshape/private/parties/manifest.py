"""What a batch on disk was made for, and what is in it: the manifest beside its streams."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from deepreshape.private.errors import StoreError
from deepreshape.private.files import read_json

MANIFEST = "manifest.json"
MANIFEST_BYTES = 1 << 20
MOST_STREAMS = 5000
ID = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Binding:
    """What a batch was made for; it opens for nothing else.

    Attributes:
        program: digest of the program.
        peer: fingerprint of the other party's certificate.
        parameters: public settings, as agreed in the handshake.
    """

    program: str
    peer: str
    parameters: Mapping[str, int | str]

    def fields(self) -> dict[str, object]:
        """All of it, as it is written beside the batch."""
        return {"program": self.program, "peer": self.peer, "parameters": dict(self.parameters)}


def read_manifest(folder: Path) -> tuple[Binding, frozenset[str]]:
    """What a fresh batch was made for, and the names of its streams.

    Raises:
        StoreError: if there is no such batch, or its manifest is not of the form, sizes and types that one is written
            in: whoever wrote it is not known.
    """
    try:
        content: object = read_json(folder / MANIFEST, MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"there is no fresh {short(folder.name)} here") from None
    except OSError as error:
        raise StoreError(f"{short(folder.name)}: its {MANIFEST} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StoreError(f"{short(folder.name)}: its {MANIFEST} is damaged: {error}") from None
    fields = cast(dict[str, object], content) if isinstance(content, dict) else {}
    program, peer = fields.get("program"), fields.get("peer")
    parameters, streams = fields.get("parameters"), fields.get("streams")
    if not (
        isinstance(program, str)
        and isinstance(peer, str)
        and isinstance(parameters, dict)
        and isinstance(streams, list)
    ):
        raise StoreError(f"{short(folder.name)}: its {MANIFEST} is damaged: fields are missing or of other types")
    parameters, streams = cast(dict[str, object], parameters), cast(list[object], streams)
    plain = all(PARAMETER.fullmatch(name) and isinstance(value, int | str) for name, value in parameters.items())
    named = all(isinstance(name, str) and NAME.fullmatch(name) for name in streams)
    if not (plain and named and ID.fullmatch(program) and ID.fullmatch(peer) and len(streams) <= MOST_STREAMS):
        raise StoreError(f"{short(folder.name)}: its {MANIFEST} is damaged: a value is not of its form")
    binding = Binding(program, peer, cast(dict[str, int | str], parameters))
    return binding, frozenset(cast(list[str], streams))


def read_streams(folder: Path, binding: Binding) -> frozenset[str]:
    """The names of a fresh batch's streams, if it was made for ``binding``."""
    written, streams = read_manifest(folder)
    theirs = written.fields()
    different = [name for name, value in binding.fields().items() if canonical(theirs[name]) != canonical(value)]
    if different:
        raise StoreError(f"{short(folder.name)} was made for another {' and '.join(different)}")
    return streams


def fits_one(folder: Path, bindings: Iterable[Binding]) -> bool:
    """Whether a fresh batch was made for one of ``bindings``."""
    try:
        written = canonical(read_manifest(folder)[0].fields())
    except StoreError:  # damaged: it is for nothing
        return False
    return any(written == canonical(binding.fields()) for binding in bindings)


def canonical(value: object) -> bytes:
    """One JSON text for every value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def check_id(session: str) -> None:
    """Raise StoreError unless it is an id."""
    if not ID.fullmatch(session):
        raise StoreError(f"batch {session!r}: is named by a session id, 64 hexadecimal digits")


def short(session: str) -> str:
    """What messages call a batch."""
    return f"batch {session[:16]}"
