"""Training one network: same seed, same result; killed at any step, it continues where it was.

All randomness of a step (order of the images, augmentation) follows from the seed and the number of the step, so that
a checkpoint needs no generator state.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deepreshape.data import Dataset, Split
from deepreshape.data.augment import augment, smaller
from deepreshape.nn import Faults, Nonlinearity, faulty
from deepreshape.training.convolution import MatrixConvolutions
from deepreshape.training.distill import activations, distillation_loss, mismatch_loss
from deepreshape.training.muon import Muon
from deepreshape.training.parallel import add_up_gradients, part, rank, shared_norms
from deepreshape.training.recipe import Recipe
from deepreshape.training.runs import read_rows, refuse_others, write_rows

__all__ = ["METRICS", "Progress", "Search", "Trained", "accuracy", "train"]

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
CHECKPOINT_SECONDS = 20.0


@dataclass(frozen=True)
class Progress:
    """Where a training run is: ``step`` of ``steps`` done, and the latest training loss and validation top-1."""

    step: int
    steps: int
    loss: float
    top1: float | None


@dataclass(frozen=True)
class Trained:
    """What a run came to: validation top-1 in percent, and the time it took over all its restarts.

    ``seconds`` are processor time, or on a GPU the time that passed. There is no validation top-1 where that split was
    trained on (``Recipe.holdout``).
    """

    top1_validation: float | None
    seconds: float


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset, split: Split, batch: int = 1000) -> float:
    """Top-1 accuracy in percent to three decimals, in evaluation mode and float32."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for images, labels in split.batches(batch):
        right += int((model(data.normalize(images.to(device))).argmax(1) == labels.to(device)).sum())
    model.train(training)
    return round(100 * right / len(split), 3)


class Search(Protocol):
    """What a search for masks adds to the training of the network it is in.

    Whatever it knows lies in parameters and buffers of that network, so that a checkpoint holds all of it.
    """

    def gates(self) -> list[nn.Parameter]:
        """Parameters of their own kind: trained without decay, at ``gate_lr``."""
        ...

    @property
    def gate_lr(self) -> float:
        """Peak learning rate of the gates, on the recipe's schedule."""
        ...

    def before(self, step: int, steps: int) -> None:
        """Called before each step's forward pass, with the number of steps done."""
        ...

    def penalty(self) -> Tensor | None:
        """What is added to the loss."""
        ...

    def after(self, step: int, steps: int, batch: Tensor, labels: Tensor) -> None:
        """Called after each step with this process's part of the batch, normalised, and its labels."""
        ...

    def over(self) -> bool:
        """Whether the search has found what it wants and ends before the recipe does."""
        ...


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    search: Search | None = None,
) -> Trained:
    """Train ``model`` in place on the training split.

    Under ``torchrun`` all processes call it alike; each computes its part of a batch (:mod:`.parallel`), and the first
    one writes.

    Args:
        model: with its initial weights, on the device to train on.
        data: its validation split is looked at after each epoch, or trained on as the recipe says; its test split is
            not touched.
        recipe: the settings.
        seed: of the order of the images and the augmentation.
        teacher: gives the soft targets of distillation; it is used in evaluation mode, without gradient.
        folder: where checkpoint and metrics go; a run that was cut there is continued.
        progress: called after every step.
        search: what a search for masks does on the way.

    Raises:
        ValueError: if the folder holds another run, the loss stops being a number, or a setting does not fit the
            network: images cannot grow where masks have one size, and maps are compared at masked ReLUs only.
    """
    if recipe.grow:
        masked = bool(search) or any(isinstance(at, Nonlinearity) for at in model.modules())
        _see_growth(model, data, recipe, masked=masked)
    learned = data.train if recipe.holdout else data.whole
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if teacher is not None:
        teacher.to(device=device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    low = _low_precision(recipe, device)
    optimizer = _optimizer(model, recipe, search, torch.bfloat16 if low else torch.float32)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()} if recipe.ema else {}
    an_epoch = -(-len(learned) // recipe.batch)
    steps = an_epoch * recipe.epochs
    settings = {**asdict(recipe), "seed": seed}
    step, spent = _resume(folder, settings, model, optimizer, average) if folder else (0, 0.0)
    images = learned.images.to(device) if isinstance(learned.images, Tensor) else learned.images
    labels = learned.labels.to(device)
    clock = time.monotonic if device.type == "cuda" else time.process_time
    started, saved, top1 = clock() - spent, time.monotonic(), None
    model.train()
    with ExitStack() as during:
        during.enter_context(shared_norms(model))
        during.enter_context(MatrixConvolutions())
        compared = _compared(model, teacher, recipe, during)
        while step < steps and not (search and search.over()):
            epoch, place = divmod(step, an_epoch)
            order = torch.randperm(len(labels), generator=_generator(seed, epoch))
            chosen = order[place * recipe.batch : (place + 1) * recipe.batch]
            randomness = _generator(seed, step)
            batch = augment(
                images[chosen].to(device), randomness, crop=recipe.crop, flip=recipe.flip, cutout=recipe.cutout
            )
            batch = smaller(data.normalize(part(batch)), recipe.grow, step / steps)
            known = labels[part(chosen)]
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _schedule(recipe, (step + 1) / steps)
            if search:
                search.before(step, steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                soft = None
                if teacher is not None:
                    with torch.no_grad():
                        soft = teacher(batch)
                with _signs(model, recipe, seed, step):
                    logits = model(batch)
            loss = distillation_loss(
                logits.float(),
                known,
                None if soft is None else soft.float(),
                temperature=recipe.temperature,
                weight=recipe.distill,
                smoothing=recipe.smoothing,
            )
            if compared:
                loss = loss + recipe.mismatch * mismatch_loss(*compared)
            penalty = search.penalty() if search else None
            optimizer.zero_grad(set_to_none=True)
            # each process's part of what the whole batch loses
            ((loss if penalty is None else loss + penalty) * (len(known) / len(chosen))).backward()
            add_up_gradients(model.parameters())
            optimizer.step()
            if search:
                search.after(step, steps, batch, known)
            step += 1
            _follow(average, model, recipe.ema)
            ends = step == steps or bool(search and search.over())
            if step % an_epoch == 0 or ends:
                if not torch.isfinite(loss):
                    raise ValueError(
                        f"the loss became {loss.item()} in epoch {epoch + 1}; a lower lr than {recipe.lr} may work"
                    )
                with _signs(model, recipe, seed, step):
                    top1 = _measure(model, average, data) if recipe.holdout else None
                if folder and rank() == 0:
                    row = {"epoch": epoch + 1, "step": step, "loss": round(loss.item(), 4), "top1_validation": top1}
                    with (folder / METRICS).open("a") as file:
                        file.write(json.dumps(row) + "\n")
            if folder and rank() == 0 and (time.monotonic() - saved > CHECKPOINT_SECONDS or ends):
                state = {"step": step, "seconds": clock() - started, "settings": settings}
                _checkpoint(folder, state, model, optimizer, average)
                saved = time.monotonic()
            if progress:
                progress(Progress(step, steps, loss.item(), top1))
    if average:
        model.load_state_dict(average)
    model.eval()
    if top1 is None and recipe.holdout:
        with _signs(model, recipe, seed, step):
            top1 = accuracy(model, data, data.validation)
    return Trained(top1, clock() - started)


@torch.no_grad()
def _see_growth(model: nn.Module, data: Dataset, recipe: Recipe, *, masked: bool) -> None:
    """Refuse to grow images of a network that does not take the smallest of them."""
    if masked:
        raise ValueError(f"grow={recipe.grow} shrinks images and masks have one size; leave it out")
    device = next(model.parameters()).device
    image = smaller(data.normalize(data.train.images[:1].to(device)), recipe.grow, 0.0)
    try:
        model.eval()(image)
    except RuntimeError:
        height, width = image.shape[2:]
        raise ValueError(
            f"grow={recipe.grow} begins with images of {height}x{width}, too small for this network; leave it out"
        ) from None


def _compared(
    model: nn.Module, teacher: nn.Module | None, recipe: Recipe, during: ExitStack
) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Where the activation maps of student and teacher at the masked ReLUs will be, if the recipe compares them."""
    if teacher is None or not recipe.mismatch:
        return None
    names = [name for name, module in model.named_modules() if isinstance(module, Nonlinearity)]
    if not names:
        raise ValueError(f"mismatch={recipe.mismatch} compares maps at masked ReLUs, and there are none; leave it out")
    return during.enter_context(activations(model, names)), during.enter_context(activations(teacher, names))


def _generator(seed: int, count: int) -> torch.Generator:
    """A generator of its own for each seed and count; torch's takes the low 32 bits of what it is given."""
    return torch.Generator().manual_seed((count + 1_000_003 * seed) % 2**32)


def _signs(model: nn.Module, recipe: Recipe, seed: int, step: int) -> AbstractContextManager[None]:
    """The recipe's faults in the ReLUs of ``model``, drawn anew for each step."""
    if not recipe.relu:
        return nullcontext()
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed((step + 1_000_003 * seed + 500_009 + 7919 * rank()) % 2**32)
    return faulty(model, Faults.parse(recipe.relu), generator)


def _optimizer(
    model: nn.Module, recipe: Recipe, search: Search | None, precision: torch.dtype
) -> torch.optim.Optimizer:
    gates = search.gates() if search else []
    convolutions = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    named = {id(parameter) for parameter in (*gates, *convolutions, *linear)}
    other = recipe.lr * recipe.lr_other
    kinds = (
        (convolutions, recipe.weight_decay, recipe.lr, True),
        (linear, recipe.weight_decay, other, False),
        ([parameter for parameter in model.parameters() if id(parameter) not in named], 0.0, other, False),
        (gates, 0.0, search.gate_lr if search else 0.0, False),
    )
    groups = [
        {"params": some, "weight_decay": decay, "peak": peak, "orthogonal": orthogonal}
        for some, decay, peak, orthogonal in kinds
        if some
    ]
    if recipe.optimizer == "muon":
        return Muon(groups, precision)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.lr)


def _schedule(recipe: Recipe, done: float) -> float:
    """Share of the peak learning rate when this share of the run is done."""
    if done < recipe.warmup:
        return done / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    left = (1 - done) / (1 - recipe.warmup) if recipe.warmup < 1 else 1.0
    return left if recipe.schedule == "onecycle" else (1 - cos(pi * left)) / 2


def _low_precision(recipe: Recipe, device: torch.device) -> bool:
    if recipe.precision != "auto":
        return recipe.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@torch.no_grad()
def _follow(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for name, tensor in model.state_dict().items():
        if name in average:
            if tensor.dtype.is_floating_point:
                average[name].lerp_(tensor, 1 - decay)
            else:
                average[name].copy_(tensor)


def _measure(model: nn.Module, average: dict[str, Tensor], data: Dataset) -> float:
    if not average:
        return accuracy(model, data, data.validation)
    now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(average)
    top1 = accuracy(model, data, data.validation)
    model.load_state_dict(now)
    return top1


def _checkpoint(
    folder: Path,
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> None:
    """One file, written beside the old one and then put in its place."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    part = folder / f"{CHECKPOINT}.part"
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        part,
        metadata={"state": json.dumps(state)},
    )
    os.replace(part, folder / CHECKPOINT)


def _resume(
    folder: Path,
    settings: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> tuple[int, float]:
    """Bring everything to where the last checkpoint was; returns its step and the seconds spent until then."""
    folder.mkdir(parents=True, exist_ok=True)
    path, metrics = folder / CHECKPOINT, folder / METRICS
    if not path.is_file():
        if rank() == 0:
            metrics.unlink(missing_ok=True)
        return 0, 0.0
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    refuse_others(folder, "run", state["settings"], settings)
    try:
        model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    except RuntimeError:
        raise ValueError(f"{folder} holds a run of another network; use that one, or another folder") from None
    for name in average:
        average[name].copy_(tensors[f"average.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    if metrics.is_file() and rank() == 0:
        write_rows(metrics, [row for row in read_rows(metrics) if row["step"] <= state["step"]])
    return state["step"], state["seconds"]
