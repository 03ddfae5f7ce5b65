"""Training one network: same seed, same result; killed at any step, it continues where it was.

All randomness of a step (order of the images, augmentation) follows from the seed and the number of the step, so that
a checkpoint needs no generator state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deepreshape.data import Dataset, Split
from deepreshape.data.augment import draw_moves, smaller
from deepreshape.nn import Escape, Faults, HerPN, Nonlinearity, escape, faulty
from deepreshape.nn.backward import backward_slope
from deepreshape.training.cached_teacher import CachedTeacher
from deepreshape.training.checkpoint import Checkpoint
from deepreshape.training.convolution import MatrixConvolutions
from deepreshape.training.distill import activations, mismatch_loss
from deepreshape.training.hooks import Hook
from deepreshape.training.objective import Objective, objective_of
from deepreshape.training.optimizer import make_optimizer, set_rate
from deepreshape.training.parallel import add_up_gradients, part, rank, shared_norms
from deepreshape.training.recipe import Recipe

__all__ = ["Progress", "Trained", "TrainingRun", "accuracy", "train"]

CHECKPOINT_SECONDS = 20.0
IMAGES_AT_ONCE, MAPS_AT_ONCE = 1000, 50
"""In evaluation."""
Judged = TypeVar("Judged")


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
    trained on (``Recipe.holdout``). Under another objective the number is its metric.
    """

    top1_validation: float | None
    seconds: float


def accuracy(
    model: nn.Module, data: Dataset, split: Split, batch: int | None = None, *, objective: Objective | None = None
) -> float:
    """The metric of the objective, else of the data set's: top-1 or mIoU in percent, in evaluation mode and float32."""
    return judge(model, data, split, (objective or objective_of(data)).metric, batch)


@torch.no_grad()
def judge(
    model: nn.Module,
    data: Dataset,
    split: Split,
    by: Callable[[Iterator[tuple[Any, Tensor]]], Judged],
    batch: int | None = None,
) -> Judged:
    """What ``by`` makes of outputs and labels, batch by batch, of a network in evaluation mode and float32."""
    batch = batch or (MAPS_AT_ONCE if data.maps else IMAGES_AT_ONCE)
    training = {module: module.training for module in model.modules()}
    model.eval()
    device = next(model.parameters()).device

    def outputs() -> Iterator[tuple[Any, Tensor]]:
        for images, labels in split.batches(batch):
            yield model(data.normalize(images.to(device))), labels.to(device)

    judged = by(outputs())
    for module, was in training.items():
        module.training = was
    return judged


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    objective: Objective | None = None,
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
        teacher: gives the soft targets of distillation; it is used in evaluation mode, without gradient. A
            :class:`~.cached_teacher.CachedTeacher` is looked up instead.
        folder: where checkpoint and metrics go; a run that was cut there is continued.
        progress: called after every step.
        objective: what the network is trained for; :func:`objective_of` the data set without one.

    Raises:
        ValueError: if the folder holds another run, the loss stops being a number, or a setting does not fit the
            network: images cannot grow where masks have one size, and maps are compared at masked ReLUs only.
    """
    return TrainingRun(model, data, recipe, seed=seed, teacher=teacher, objective=objective).complete(folder, progress)


class TrainingRun:
    """What :func:`train` does, for a run that a search for masks watches and steers.

    Args:
        model, data, recipe, seed, teacher, objective: as :func:`train` takes them.
        hook: what the search does on the way.

    Raises:
        ValueError: if a setting does not fit the network.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        recipe: Recipe,
        *,
        seed: int,
        teacher: nn.Module | None = None,
        hook: Hook | None = None,
        objective: Objective | None = None,
    ) -> None:
        sites = [site for site in model.modules() if isinstance(site, Nonlinearity) and not isinstance(site, HerPN)]
        see_recipe_fits(model, data, recipe, teacher, masked=bool(hook or sites))
        self.model, self.data, self.recipe, self.seed = model, data, recipe, seed
        self.teacher, self.hook, self.objective = teacher, hook, objective or objective_of(data)
        self.device = next(model.parameters()).device
        self.names = [] if teacher is None else _compared_names(model, teacher, recipe)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if teacher is not None:
            teacher.to(device=self.device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        self.low = _low_precision(recipe, self.device)
        self.optimizer = make_optimizer(model, recipe, hook)
        self.average = {name: tensor.clone() for name, tensor in model.state_dict().items()} if recipe.ema else {}
        learned = data.train if recipe.holdout else data.whole
        self.images = learned.images.to(self.device) if isinstance(learned.images, Tensor) else learned.images
        self.labels = learned.labels.to(self.device)
        joined = len(learned) > recipe.batch and len(learned) % recipe.batch == 1
        # one image is no batch to a norm of vectors: it joins the batch before it
        self.an_epoch = -(-len(learned) // recipe.batch) - joined
        self.step, self.steps = 0, self.an_epoch * recipe.epochs
        self.compared: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self.escaped: Escape | None = None

    def complete(self, folder: Path | None, progress: Callable[[Progress], None] | None) -> Trained:
        """Do the steps that are left; arguments, result and errors as :func:`train` has them."""
        settings = {**asdict(self.recipe), "seed": self.seed}
        checkpoint = Checkpoint(folder, settings, self.model, self.optimizer, self.average) if folder else None
        clock = time.monotonic if self.device.type == "cuda" else time.process_time
        started, saved, top1 = clock(), time.monotonic(), None
        with ExitStack() as during:
            if checkpoint:
                during.enter_context(checkpoint.alone())
                self.step, spent = checkpoint.resume()
                started -= spent
            self._begin(during)
            while not self._over():
                loss = self._advance()
                if self.step % self.an_epoch == 0 or self._over():
                    top1 = self._end_epoch(loss, checkpoint)
                if checkpoint and (time.monotonic() - saved > CHECKPOINT_SECONDS or self._over()):
                    checkpoint.save(self.step, clock() - started)
                    saved = time.monotonic()
                if progress:
                    progress(Progress(self.step, self.steps, loss.item(), top1))
        if self.average:
            self.model.load_state_dict(self.average)
        self.model.eval()
        if top1 is None and self.recipe.holdout:
            with self._faults():
                top1 = accuracy(self.model, self.data, self.data.validation, objective=self.objective)
        return Trained(top1, clock() - started)

    def _end_epoch(self, loss: Tensor, checkpoint: Checkpoint | None) -> float | None:
        """Judge an epoch by its last loss and the validation split, and note both."""
        epoch = (self.step - 1) // self.an_epoch + 1
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {loss.item()} in epoch {epoch}; a lower lr than {self.recipe.lr} may work"
            )
        top1 = self._measured() if self.recipe.holdout else None
        if checkpoint:
            checkpoint.note({"epoch": epoch, "step": self.step, "loss": round(loss.item(), 4), "top1_validation": top1})
        return top1

    def _begin(self, during: ExitStack) -> None:
        """Put the network in training mode, and what has to be there during the run on the stack."""
        self.model.train()
        if self.recipe.frozen_norms:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        during.enter_context(shared_norms(self.model))
        during.enter_context(MatrixConvolutions())
        if self.teacher is not None and self.names:
            ours, theirs = (during.enter_context(activations(net, self.names)) for net in (self.model, self.teacher))
            self.compared = ours, theirs
        self.escaped = during.enter_context(escape(self.model)) if self.recipe.escape else None

    def _over(self) -> bool:
        """Whether all steps are done, or the hook has what it wants."""
        return self.step >= self.steps or bool(self.hook and self.hook.over())

    def _advance(self) -> Tensor:
        """One step; returns its loss, without the hook's penalty."""
        batch, target, share, soft = self._batch()
        set_rate(self.optimizer, self.recipe, (self.step + 1) / self.steps)
        if self.hook:
            self.hook.before(self.step, self.steps)
        loss = self._loss(batch, target, soft)
        penalty = self.hook.penalty() if self.hook else None
        self.optimizer.zero_grad(set_to_none=True)
        # each process's part of what the whole batch loses
        ((loss if penalty is None else loss + penalty) * share).backward()
        add_up_gradients(self.model.parameters())
        self.optimizer.step()
        if self.hook:
            self.hook.after(self.step, self.steps, batch, target)
        self.step += 1
        _follow(self.average, self.model, self.recipe.ema)
        return loss

    def _batch(self) -> tuple[Tensor, Tensor, float, Tensor | None]:
        """What falls to this process: images, targets, their share of the whole batch, a cached teacher's answers."""
        recipe = self.recipe
        epoch, place = divmod(self.step, self.an_epoch)
        order = torch.randperm(len(self.labels), generator=_generator(self.seed, epoch))
        end = len(order) if place + 1 == self.an_epoch else (place + 1) * recipe.batch
        chosen = order[place * recipe.batch : end]
        images = self.images[chosen].to(self.device)
        shape, randomness = (len(images), images.shape[2], images.shape[3]), _generator(self.seed, self.step)
        offsets, soft = None, None
        if isinstance(self.teacher, CachedTeacher):
            offsets, soft = self.teacher.draw(chosen, randomness)
        moves = draw_moves(shape, randomness, crop=recipe.crop, flip=recipe.flip, cutout=recipe.cutout, offsets=offsets)
        batch = self.data.normalize(part(moves.images(images)))
        target = part(self.objective.target(self.labels[chosen.to(self.device)], moves))
        share = len(target) / len(chosen)
        return smaller(batch, recipe.grow, self.step / self.steps), target, share, None if soft is None else part(soft)

    def _loss(self, batch: Tensor, target: Tensor, soft: Tensor | None) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            if self.teacher is not None and soft is None:
                with torch.no_grad():
                    soft = self.teacher(batch)
            with self._faults(), self._slope():
                outputs = self.model(batch)
        loss = self.objective.loss(outputs, target, soft, self.recipe)
        if self.escaped:
            loss = loss + self.recipe.escape * self.escaped.take()
        return loss + self.recipe.mismatch * mismatch_loss(*self.compared) if self.compared else loss

    def _measured(self) -> float:
        """The metric on the validation split, of the averaged weights if there are some."""
        now = {}
        if self.average:
            now = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.model.load_state_dict(self.average)
        with self._faults():
            metric = accuracy(self.model, self.data, self.data.validation, objective=self.objective)
        if now:
            self.model.load_state_dict(now)
        return metric

    def _slope(self) -> AbstractContextManager[None]:
        """The recipe's slope in the backward pass of ReLUs that are off."""
        slope = self.recipe.backward_slope
        return backward_slope(self.model, slope) if slope else nullcontext()

    def _faults(self) -> AbstractContextManager[None]:
        """The recipe's faults in the network's ReLUs, drawn anew for each step."""
        if not self.recipe.relu:
            return nullcontext()
        seed = (self.step + 1_000_003 * self.seed + 500_009 + 7919 * rank()) % 2**32
        return faulty(self.model, Faults.parse(self.recipe.relu), torch.Generator(self.device).manual_seed(seed))


@torch.no_grad()
def see_recipe_fits(
    model: nn.Module, data: Dataset, recipe: Recipe, teacher: nn.Module | None, *, masked: bool
) -> None:
    """Refuse settings that do not go with a network or a teacher, before anything is written.

    Args:
        model: that is trained, or what it will be made of.
        data: of the training.
        recipe: with the settings.
        teacher: if any.
        masked: whether masks stand in the network that is trained.

    Raises:
        ValueError: if images cannot grow, or a cached teacher saw other windows.
    """
    if isinstance(teacher, CachedTeacher) and teacher.crop != recipe.crop:
        raise ValueError(f"the cached teacher saw crop={teacher.crop}, the recipe has crop={recipe.crop}")
    if not recipe.grow:
        return
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


def _compared_names(model: nn.Module, teacher: nn.Module, recipe: Recipe) -> list[str]:
    """The masked ReLUs at which activation maps of student and teacher are compared, if the recipe compares them.

    Raises:
        ValueError: if there are none, or the teacher has no layer of such a name.
    """
    if not recipe.mismatch:
        return []
    modules = dict(model.named_modules())
    names = [
        name
        for name, module in modules.items()
        if isinstance(module, Nonlinearity)
        and not isinstance(module, nn.Conv2d)
        and not isinstance(modules.get(name.rpartition(".")[0]), Nonlinearity)  # a part of a site
    ]
    if not names:
        raise ValueError(f"mismatch={recipe.mismatch} compares maps at masked ReLUs, and there are none; leave it out")
    with activations(teacher, names):
        return names


def _generator(seed: int, count: int) -> torch.Generator:
    """A generator of its own for each seed and count; torch's takes the low 32 bits of what it is given."""
    return torch.Generator().manual_seed((count + 1_000_003 * seed) % 2**32)


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
