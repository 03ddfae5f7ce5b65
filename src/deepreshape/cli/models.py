"""The network that a word on the command line means, inputs of it, and the integer program of both."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepreshape.cli.options import read_data, set_threads
from deepreshape.convex.saved import is_fitted, load_fitted
from deepreshape.counting import check_one_input
from deepreshape.experiments.points import see_fits, see_names
from deepreshape.models import Architecture, MultiExit, architecture, build
from deepreshape.models.exits import MultiExitNetwork, read_exits_name
from deepreshape.models.saved import Manifest, load, manifest_of
from deepreshape.models.zoo import folder_of
from deepreshape.nn import require_finite
from deepreshape.private.service.segmented import class_maps, is_map

if TYPE_CHECKING:
    from deepreshape.convex.saved import Fitted
    from deepreshape.data import Dataset
    from deepreshape.private.program.quantize import Lowered

__all__ = [
    "Inputs",
    "Network",
    "compare",
    "find_inputs",
    "find_network",
    "lowered",
    "lowered_exits",
    "made_by",
    "random_inputs",
    "read_samples",
    "see_outputs",
    "shown_network",
    "trained_network",
]

Shape = tuple[int, int, int]
Images = NDArray[np.float32]
"""Normalised, channels first."""

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Endings of files that torch's users keep weights in."""
CALIBRATION_IMAGES = 256
VALIDATION_IMAGES = 1000
RANDOM_IMAGES = 8


@dataclass(frozen=True)
class Network:
    """A torch module and the shape of its input; with what is known of where it comes from.

    Attributes:
        module: of a network that is known by its name only, without storage (on the ``meta`` device).
        shape: of one input.
        architecture: of a network by name.
        manifest: of a saved one.
        fitted: of a gated network, whose inputs are products of a row with its gates.
        exits: the network with exits of which the module is the plain network up to one of them, or to the end.
        point: the stage after which that is.
    """

    module: nn.Module
    shape: Shape
    architecture: Architecture | None = None
    manifest: Manifest | None = None
    fitted: Fitted | None = None
    exits: MultiExitNetwork | None = None
    point: int = 0

    @classmethod
    def with_exits(cls, network: MultiExitNetwork, manifest: Manifest | None = None) -> Network:
        """Of a network with exits, the one without them."""
        point = network.architecture.points[-1]
        named = None if manifest else network.architecture
        return cls(network.exit(point), network.architecture.input, named, manifest, None, network, point)

    def at(self, point: int | None) -> Network:
        """The network up to one of its exits; as it is without one.

        Raises:
            ValueError: if there is none there.
        """
        if point is None:
            return self
        if self.exits is None:
            raise ValueError(f"--exit {point}: the network has no exits; `deepreshape exits train` gives it some")
        return replace(self, module=self.exits.exit(point), point=point)

    def all_exits(self) -> MultiExitNetwork | None:
        """The network with its exits, in evaluation mode, with weights as :meth:`built` has them; None without any."""
        network = build(self.architecture, seed=0) if self.exits and self.architecture else self.exits
        return network.eval() if isinstance(network, MultiExitNetwork) else None

    def built(self) -> nn.Module:
        """The module in evaluation mode; with random weights, always the same, if it has a name only."""
        if network := self.all_exits():
            return network.exit(self.point)
        return (build(self.architecture, seed=0) if self.architecture else self.module).eval()

    def judged(self) -> nn.Module:
        """:meth:`built`, which gives one output: of several the first, as of a program."""
        return _FirstOutput(self.built())

    @torch.no_grad()
    def run(self, inputs: Images) -> NDArray[np.float64]:
        """What it gives for inputs (N, channels, height, width), in floats: (N, classes) or maps (N, classes, h, w).

        Of several outputs, in a tuple, a list or a dictionary, the first, as of a program.

        Raises:
            TypeError: if it gives no tensor.
            ValueError: if it gives not one output for each input.
        """
        return self.judged()(torch.from_numpy(inputs)).double().cpu().numpy()

    def logits(self, inputs: Images) -> NDArray[np.float64]:
        """What :meth:`run` gives without a softmax at the end, which a program leaves to the client."""
        with _SoftmaxLeftOut():
            return self.run(inputs)


class _SoftmaxLeftOut(TorchDispatchMode):
    """Each softmax gives its input. A network that can be lowered has one only at its end."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten._softmax.default, torch.ops.aten._log_softmax.default):
            return args[0].clone()
        return func(*args, **(kwargs or {}))


class _FirstOutput(nn.Module):
    """A network that takes images in any type of floats, and gives the first tensor of what it gives.

    That is logits (N, classes), without further axes of one, or maps of them (N, classes, h, w).

    Raises:
        TypeError: if it gives none.
        ValueError: if its first axis is not the batch's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.parameter = next(network.parameters(), torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        given = self.network(images.to(self.parameter))
        outputs = next((leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)), None)
        if outputs is None:
            raise TypeError(f"it gives a {type(given).__name__} without a tensor in it")
        if outputs.dim() < 2 or len(outputs) != len(images):
            raise ValueError(
                f"it gives an output of shape {tuple(outputs.shape)} for a batch of {len(images)}; keep the first axis "
                "for the batch"
            )
        return outputs if is_map(outputs.shape[1:]) else outputs.flatten(1)


def find_network(model: str, shape: Shape | None = None, classes: int = 100) -> Network:
    """The network meant by a name, a folder, zoo:NAME, package.module:callable or file.py:callable.

    Raises:
        ValueError: if there is none, or it holds weights that are no numbers.
    """
    network = _network_of(model, shape, classes)
    require_finite(network.module)
    return network


def _network_of(model: str, shape: Shape | None, classes: int) -> Network:
    folder = folder_of(model)
    if is_fitted(folder):
        fitted = load_fitted(folder)
        products = (fitted.gates.directions.size, 1, 1)
        if shape and shape != products:
            raise ValueError(
                f"{model} takes {products[0]} products of a row of {len(fitted.features)} columns with its gates, not "
                f"inputs of {'x'.join(map(str, shape))}; leave --input and --data out"
            )
        return Network(fitted.to_module(), products, fitted=fitted)
    if folder.is_dir():
        saved = load(folder)
        manifest = manifest_of(saved)
        if isinstance(saved, MultiExitNetwork):
            return replace(Network.with_exits(saved, manifest), shape=shape or manifest.architecture.input)
        return Network(saved, shape or manifest.architecture.input, manifest=manifest)
    if ":" in model:
        module = made_by(model, "a network")
        if not isinstance(module, nn.Module):
            raise ValueError(f"{model!r} gives a {type(module).__name__}, not a torch module")
        return Network(module, shape or (3, 32, 32))
    if model.endswith(WEIGHTS):
        raise ValueError(
            f"{model} may hold weights, and no code; load it in a function of your own, and give that: mine.py:net"
        )
    if model.endswith(".onnx"):
        raise ValueError(
            f"{model} is an ONNX file, which is no torch module; load it in code of your own (onnx2torch.convert), and "
            "give the callable that returns the module, such as mine.py:net"
        )
    if model.endswith(".py") and Path(model).is_file():
        raise ValueError(f"{model} holds code; say which callable makes the network, such as {model}:net")
    if read := read_exits_name(model):
        whole = architecture(read[0], shape or (3, 32, 32), classes)
        return Network.with_exits(cast(MultiExitNetwork, build(MultiExit(whole, *read[1:]), "meta")))
    named = architecture(model, shape or (3, 32, 32), classes)
    return Network(build(named, "meta"), named.input, named)


def shown_network(
    model: str, shape: Shape | None, classes: int, data: str | None, data_dir: Path | None
) -> tuple[Network, Dataset | None]:
    """The network meant by a word for inputs of a shape, or for those of a data set, and that data set.

    Raises:
        ValueError: if there is none, or both shape and data say what its inputs are.
    """
    if data is None:
        return find_network(model, shape, classes), None
    dataset = read_data(data, data_dir)
    if shape and shape != dataset.shape:
        raise ValueError(
            f"--input {'x'.join(map(str, shape))} and --data {data}, whose images are "
            f"{'x'.join(map(str, dataset.shape))}, both say the shape; leave --input out"
        )
    return find_network(model, dataset.shape, len(dataset.class_names)), dataset


def trained_network(model: str, data: str | None, data_dir: Path | None, threads: int) -> tuple[Network, Dataset]:
    """A network with weights, and the data set given or, of a saved one, its own.

    Raises:
        ValueError: if it has no weights, or takes other images or knows other classes than those of the data set.
    """
    network = find_network(model)
    check_one_input(network.module)
    if network.architecture:
        raise ValueError(f"{model} is a name and no trained network; `deepreshape train {model}` makes one")
    word = data or (network.manifest.dataset if network.manifest else "")
    if not word:
        raise ValueError(f"{model} does not say what it was trained on; give its images, as --data folder:PATH")
    set_threads(threads, word)
    dataset = read_data(word, data_dir)
    if network.manifest:
        see_fits(network.module, dataset, str(folder_of(model)))
        return network, dataset
    see_outputs(network, dataset, model)
    return network, dataset


def see_outputs(network: Network, dataset: Dataset, model: str) -> None:
    """Refuse a network that does not take a data set's images, or gives not one output for each of its classes.

    Args:
        network: with weights.
        dataset: the data set.
        model: the word that meant the network, for the message.
    """
    one, two = (dataset.normalize(dataset.train.images[:count]).contiguous().numpy() for count in (1, 2))
    try:
        outputs = network.run(one)
    except Exception as error:  # of the user's own code
        why = (str(error) or type(error).__name__).splitlines()[0]
        image = f"image of {dataset.name}, of shape {dataset.shape}"
        failed = f"a single {image}, and takes two at once" if _runs(network, two) else f"an {image}"
        raise ValueError(f"{model} fails on {failed}: {why}") from None
    if is_map(outputs.shape[1:]) != dataset.maps:
        labels = "a class for each pixel" if dataset.maps else "one class for each image"
        raise ValueError(f"{model} gives outputs of shape {outputs.shape[1:]}, and {dataset.name} has {labels}")
    if outputs.shape[1] != len(dataset.class_names):
        raise ValueError(
            f"{model} gives {outputs.shape[1]} outputs, and {dataset.name} has {len(dataset.class_names)} classes"
        )


def _runs(network: Network, images: Images) -> bool:
    try:
        network.run(images)
    except Exception:  # of the user's own code
        return False
    return True


@dataclass(frozen=True)
class Inputs:
    """Inputs of a network.

    Attributes:
        known: what its formats are calibrated on.
        new: to try it on.
        validation: to choose settings on.
        labels: their classes, where somebody knows one for each image.
        facts: what a client needs to send images and read answers, as a data set has them.
    """

    known: Images
    new: Images
    validation: Images
    labels: NDArray[np.int64] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def find_inputs(
    network: Network,
    samples: Images | None = None,
    data_dir: Path | None = None,
    count: int = 1,
    data: Dataset | None = None,
) -> Inputs:
    r"""Those given, else of the data set given or a saved network's own, else random ones for random weights.

    Of the samples given, the first :data:`CALIBRATION_IMAGES` are known and the others new, if there are more.

    Args:
        network: whose inputs they are.
        samples: of (N, \*shape).
        data_dir: folder with the data sets.
        count: how many new ones are wanted.
        data: whose images to take.

    Raises:
        ValueError: if there are none, or fewer: formats of a network that has weights may not rest on random inputs.
    """
    inputs = _found_inputs(network, samples, data_dir, count, data)
    if len(inputs.new) < count:
        raise ValueError(f"{count:,} inputs are wanted and there are {len(inputs.new):,} new ones")
    return inputs


def _found_inputs(
    network: Network, samples: Images | None, data_dir: Path | None, count: int, data: Dataset | None
) -> Inputs:
    if samples is not None:
        new = samples[CALIBRATION_IMAGES:]
        return Inputs(samples[:CALIBRATION_IMAGES], new if len(new) else samples, samples[:VALIDATION_IMAGES])
    if data is None:
        if network.architecture:
            return random_inputs(network.shape, count)
        if network.manifest is None:
            raise ValueError(
                "formats of a network of your own are calibrated on its inputs; give some, as --samples X.npy or "
                "--data folder:PATH"
            )
        data = read_data(network.manifest.dataset, data_dir)
    known, new, valid = (
        data.normalize(images).contiguous().numpy()
        for images in (
            data.train.images[:CALIBRATION_IMAGES],
            data.test.images[:count],
            data.validation.images[:VALIDATION_IMAGES],
        )
    )
    labels = None if data.maps else data.validation.labels[:VALIDATION_IMAGES].numpy()
    return Inputs(known, new, valid, labels, data.facts)


def network_and_inputs(
    model: str, samples: Path | None, data: str | None, data_dir: Path | None, count: int
) -> tuple[Network, Inputs]:
    """A network of any kind, and inputs of it: samples, those of a data set, or of its own."""
    if samples and data:
        raise ValueError(f"--samples {samples} and --data {data} both give inputs; leave one out")
    given, dataset = (read_samples(samples) if samples else None), (read_data(data, data_dir) if data else None)
    shape = dataset.shape if dataset else given.shape[1:] if given is not None else None
    network = find_network(model, shape, len(dataset.class_names) if dataset else 100)
    check_one_input(network.module)
    if given is not None:
        try:
            network.run(given[:1])
        except Exception as error:  # of the user's own code
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{model} fails on an input of {samples}, of shape {given.shape[1:]}: {why}") from None
    if dataset:
        see_outputs(network, dataset, model)
        if network.manifest:
            see_names(network.manifest.class_names, dataset, model)
    inputs = find_inputs(network, given, data_dir, count, dataset)
    return network, inputs


def random_inputs(shape: Shape, count: int = 1) -> Inputs:
    """Inputs as random as the weights of a network that nobody trained, ``count`` of them new."""
    generator = torch.Generator().manual_seed(0)
    known, new, valid = (
        torch.randn(n, *shape, generator=generator).numpy() for n in (RANDOM_IMAGES, count, RANDOM_IMAGES)
    )
    return Inputs(known, new, valid)


def read_samples(path: Path) -> Images:
    """Inputs from a file of NumPy's: (N, channels, height, width).

    Raises:
        ValueError: if it holds something else.
    """
    from deepreshape.private.files import read_arrays

    samples = read_arrays(path)
    if not isinstance(samples, np.ndarray) or samples.ndim != 4 or samples.dtype.kind != "f" or not len(samples):
        kind = f"{samples.dtype} {samples.shape}" if isinstance(samples, np.ndarray) else "several arrays"
        raise ValueError(
            f"{path} holds {kind}; inputs are real numbers, as the network sees them, of shape (N, channels, height, "
            "width)"
        )
    if wrong := int((~np.isfinite(samples)).sum()):
        raise ValueError(f"{path} holds {wrong:,} values that are NaN or infinite, of {samples.size:,}")
    if not samples.any():
        raise ValueError(f"{path} holds zeros only; formats are calibrated on inputs like those that will come")
    return samples.astype(np.float32)


def lowered(network: Network, inputs: Inputs) -> Lowered:
    """The integer program, with random weights if the network has a name only."""
    from deepreshape.private.program.lower import lower

    if network.exits:
        return lowered_exits(network, inputs)[network.point]
    return lower(network.built(), inputs.known)


def lowered_exits(network: Network, inputs: Inputs) -> dict[int, Lowered]:
    """By point, the integer programs of a network with exits: parts of one, so that what they share is the same."""
    from deepreshape.private.program.lower import lower

    whole = network.all_exits()
    assert whole is not None  # noqa: S101 - the caller looked
    every = lower(whole, inputs.known)
    return {
        point: every.up_to(output)
        for point, output in zip(whole.architecture.points, every.program.outputs, strict=True)
    }


def compare(
    network: Network, inputs: Images, outputs: NDArray[np.float64], upsample: tuple[int, int] | None = None
) -> dict[str, Any]:
    """How the outputs of an integer program differ from the network's own in floating point.

    Args:
        network: that was lowered.
        inputs: (N, channels, height, width).
        outputs: as the network gives them before a softmax at its end, in real units.
        upsample: (height, width) of the maps that outputs are read as; none where each is one class.
    """
    theirs = network.logits(inputs)
    ours, finite = outputs.reshape(theirs.shape), np.isfinite(theirs).all(1)
    values = {
        "inputs": len(inputs),
        "same_class": int(((ours.argmax(1) == theirs.argmax(1)) & finite).reshape(len(inputs), -1).all(1).sum()),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "largest_output": float(np.abs(theirs).max()),
    }
    if upsample:
        one, other = (class_maps(logits, upsample) for logits in (ours, theirs))
        values |= {"pixels": one.size, "same_pixels": int((one == other).sum())}
    return values


def made_by(word: str, what: str) -> Any:
    """What a callable of the user's code gives: ``file.py:callable`` or ``package.module:callable``.

    Raises:
        ValueError: if it fails, naming ``what`` was wanted.
    """
    where, _, name = word.rpartition(":")
    try:
        return getattr(_imported(where), name)()
    except Exception as error:  # whatever their code raises
        raise ValueError(f"{word!r} does not give {what}: {type(error).__name__}: {error}") from error


def _imported(where: str) -> ModuleType:
    if not where.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
