"""A fitted gated network on disk: a folder with arrays (safetensors) and a JSON manifest, as networks have them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from deepreshape.convex.gates import Gates

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Fitted", "is_fitted", "load_fitted", "save_fitted"]

FORMAT = 1
KIND = "gated"
MANIFEST, WEIGHTS = "manifest.json", "gates.safetensors"


@dataclass(frozen=True, eq=False)
class Fitted:
    """A gated network that predicts, and where it comes from.

    Attributes:
        gates: public: what a client computes on its row, scaling included.
        weights: the secret of who fitted it, float64 (gates, features + 1, outputs).
        offset: added to the outputs, (outputs,).
        features: names of the columns in order.
        classes: names of the classes; none where it predicts a number.
        source: the table it was fitted to, its target, the share held out for testing, and the seed of that.
        record: settings and what the fit came to.
    """

    gates: Gates
    weights: NDArray[np.float64]
    offset: NDArray[np.float64]
    features: tuple[str, ...]
    classes: tuple[str, ...]
    source: dict[str, Any]
    record: dict[str, Any]

    def __post_init__(self) -> None:
        outputs = 1 if len(self.classes) <= 2 else len(self.classes)
        shape = (*self.gates.directions.shape, outputs)
        if self.weights.shape != shape or self.offset.shape != (outputs,):
            raise ValueError(
                f"weights {self.weights.shape} and offset {self.offset.shape}; {shape} and ({outputs},) fit"
            )
        if len(self.features) != len(self.gates.mean) or not np.isfinite(self.weights).all():
            raise ValueError("its features are not those of its gates, or its weights are not finite")

    def to_module(self) -> nn.Module:
        """One linear layer over the products of gates and features, in double precision.

        It maps (N, gates * (features + 1), 1, 1), as :meth:`Gates.expand` gives them, to the outputs; two classes have
        two outputs, -f and f.
        """
        import torch
        from torch import nn

        matrix, offset = self.weights.reshape(-1, self.weights.shape[2]).T, self.offset
        if len(self.classes) == 2:
            matrix, offset = np.concatenate([-matrix, matrix]), np.concatenate([-offset, offset])
        linear = nn.Linear(matrix.shape[1], len(matrix), dtype=torch.float64)
        linear.weight.data, linear.bias.data = torch.from_numpy(matrix.copy()), torch.from_numpy(offset.copy())
        return nn.Sequential(nn.Flatten(), linear).eval()


def is_fitted(folder: Path) -> bool:
    """Whether a folder holds a gated network, whole or not."""
    try:
        return json.loads((folder / MANIFEST).read_text()).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def save_fitted(fitted: Fitted, folder: Path) -> None:
    """Write it to ``folder``, which is made; the manifest last, so that a cut leaves none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    gates = fitted.gates
    arrays = {"mean": gates.mean, "scale": gates.scale, "directions": gates.directions}
    arrays |= {"weights": fitted.weights, "offset": fitted.offset}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / WEIGHTS)
    content = {
        "format": FORMAT,
        "kind": KIND,
        "package": f"deepreshape {version('deepreshape')}",
        "digest": _digest(folder / WEIGHTS),
        "features": fitted.features,
        "classes": fitted.classes,
        "source": fitted.source,
        "record": fitted.record,
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def load_fitted(folder: Path) -> Fitted:
    """The gated network saved in ``folder``.

    Raises:
        ValueError: if there is none, or it is damaged or of a later format.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text())
        if (content["kind"], content["format"]) != (KIND, FORMAT):
            raise ValueError(f"it is {content['kind']!r} of format {content['format']}; {KIND!r} of {FORMAT} is read")
        if _digest(folder / WEIGHTS) != content["digest"]:
            raise ValueError(f"{WEIGHTS} is not the file that was saved (its digest differs)")
        arrays = load_file(folder / WEIGHTS)
        return Fitted(
            Gates(arrays["mean"], arrays["scale"], arrays["directions"]),
            arrays["weights"],
            arrays["offset"],
            tuple(content["features"]),
            tuple(content["classes"]),
            content["source"],
            content["record"],
        )
    except (KeyError, TypeError, OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the gated network in {folder} is broken: {reason}; `convex fit` makes a new one") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
