"""A model on disk: a folder with weights (safetensors) and a JSON manifest that rebuilds the network around them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from deepreshape.data import Dataset
from deepreshape.models import Architecture, build, from_dict
from deepreshape.nn import Nonlinearity, rebuild

__all__ = ["MANIFEST", "Manifest", "load", "manifest", "manifest_of", "note_step", "save", "weights_digest"]

FORMAT = 2
WEIGHTS = "model.safetensors"
MOST_BLOCKS = 1000
"""The deepest network that is built from a file: a manifest of a stranger's could ask for any number."""
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a saved model says of itself.

    Attributes:
        architecture: rebuilds the network.
        dataset: what it was trained on.
        class_names: of its outputs, in order.
        mean, std: of the input, by channel, on the scale 0 to 1.
        history: the settings of every step that led to it, in order.
    """

    architecture: Architecture
    dataset: str = ""
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    history: tuple[dict[str, Any], ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, architecture: Architecture, data: Dataset, history: tuple[dict[str, Any], ...]) -> Self:
        """With what a data set says of inputs and outputs."""
        return cls(architecture, data.name, data.class_names, data.mean, data.std, history)


def save(model: nn.Module, folder: Path | str, manifest: Manifest | None = None, *, half: bool = False) -> None:
    """Write ``model`` to ``folder``, which is created; the manifest is written last, so that a cut leaves no model.

    What stands at sites is written by its kind, its tensors with the weights.

    Args:
        model: a network of this package, such as ``linearize`` or ``build`` gives.
        folder: for the two files.
        manifest: what to write of it; what the model carries (:func:`manifest_of`) without one.
        half: whether floats are rounded to 16 bits, for half the size; :func:`load` gives them as float32 again.

    Raises:
        ValueError: if nothing says how the network is rebuilt, or a weight is too large for 16 bits.
    """
    manifest = manifest or manifest_of(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    # tensors that share memory, as tied weights do, are written for each of their names
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        state = {name: _rounded(name, tensor) for name, tensor in state.items()}
    save_file(state, folder / WEIGHTS)
    kinds = {name: module.kind for name, module in model.named_modules() if isinstance(module, Nonlinearity)}
    content = {
        "format": FORMAT,
        "package": f"deepreshape {version('deepreshape')}",
        "digest": _digest(folder / WEIGHTS),
        "architecture": manifest.architecture.to_dict(),
        "nonlinearities": kinds,
        "dataset": manifest.dataset,
        "class_names": manifest.class_names,
        "mean": manifest.mean,
        "std": manifest.std,
        "history": manifest.history,
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def _rounded(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.half()
    if not torch.equal(torch.isfinite(rounded), torch.isfinite(tensor)):
        raise ValueError(f"{name} has a value of {tensor.abs().max():g}, too large for 16 bits; leave half out")
    return rounded


FAULTS = (LookupError, TypeError, AttributeError, ArithmeticError, OSError, ValueError, RuntimeError, SafetensorError)
"""What a manifest that fits no architecture makes the builders raise."""


def load(folder: Path | str) -> nn.Module:
    """The model saved in ``folder``, in evaluation mode; it carries its manifest (:func:`manifest_of`).

    Raises:
        ValueError: if the folder holds no model, or one that is damaged or of a later format.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        why = f"there is no {MANIFEST} in it" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{folder} holds no saved model: {why}; `train` makes one of a network by name")
    try:
        content = json.loads(path.read_text())
        if content["format"] not in (1, FORMAT):
            raise ValueError(f"its format is {content['format']}, this version reads 1 and {FORMAT}")
        if not isinstance(content["dataset"], str):
            raise ValueError(f"its data set is {content['dataset']!r}, which is no name")
        if _digest(folder / WEIGHTS) != content["digest"]:
            raise ValueError(f"{WEIGHTS} is not the file that was saved (its digest differs)")
        state = {
            name: tensor.float() if tensor.dtype == torch.float16 else tensor
            for name, tensor in load_file(folder / WEIGHTS).items()
        }
        content = _of_format_1(content, state) if content["format"] == 1 else content
        manifest = Manifest(
            from_dict(content["architecture"]),
            content["dataset"],
            tuple(content["class_names"]),
            tuple(content["mean"]),
            tuple(content["std"]),
            tuple(content["history"]),
        )
        if sum(getattr(manifest.architecture, "phi", ())) > MOST_BLOCKS:
            raise ValueError(f"its network has more than {MOST_BLOCKS} blocks")
        model = build(manifest.architecture, "meta")
        for name, kind in content["nonlinearities"].items():
            tensors = {
                key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")
            }
            model.set_submodule(name, rebuild(kind, tensors))
        model.load_state_dict(state, assign=True)
        _attach(model, manifest)
    except FAULTS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the saved model in {folder} is broken: {reason}") from error
    return model.eval()


def manifest(folder: Path | str) -> Manifest:
    """The manifest of the model saved in ``folder``.

    Raises:
        ValueError: as :func:`load`.
    """
    return manifest_of(load(folder))


def manifest_of(model: nn.Module) -> Manifest:
    """What a model carries of where it comes from; of one that was just built, its architecture alone.

    Raises:
        ValueError: if the model has no architecture.
    """
    carried = getattr(model, "manifest", None)
    if isinstance(carried, Manifest):
        return carried
    if not hasattr(model, "architecture"):
        raise ValueError(
            f"nothing says how a {type(model).__name__} is rebuilt; save what `linearize` gives, or "
            "`deepreshape.models.convert(model, data.shape)`"
        )
    return Manifest(model.architecture)  # pyright: ignore[reportArgumentType]


def note_step(model: nn.Module, data: Dataset, step: Mapping[str, Any], *, source: nn.Module | None = None) -> None:
    """Note on a model, for the manifest it is saved with, that a step on ``data`` led to it.

    Args:
        model: a network of this package.
        data: what the step was done on.
        step: its settings, as plain JSON values.
        source: the network that the step began with, whose history goes on; ``model`` itself without one.
    """
    history = (*manifest_of(model if source is None else source).history, dict(step))
    _attach(model, Manifest.of(manifest_of(model).architecture, data, history))


def _attach(model: nn.Module, manifest: Manifest) -> None:
    model.manifest = manifest  # pyright: ignore[reportArgumentType]


def _of_format_1(content: dict[str, Any], state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The manifest of format 1 as one of format 2: one architecture type, masks without their kind."""
    old = dict(content["architecture"])
    form = {name: value for name, value in old.pop("reuse").items() if name != "chained" or value}
    old["reduction"] = {"removed": old.pop("removed"), "reused": old.pop("reused"), "form": form}
    if old["family"] != "resnet":
        old = {name: value for name, value in old.items() if name not in ("block", "stem")}
    kinds = {
        path: "polynomial-relu" if f"{path}.coefficients" in state else "masked-relu" for path in content["masked"]
    }
    return content | {"architecture": old, "nonlinearities": kinds}


def weights_digest(model: nn.Module) -> str:
    """A digest of its weights, masks and statistics, by name and shape; hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
