"""Several processes that train one network: each computes its part of every batch, and all take the same step.

Started by ``torchrun``, on the processors or GPUs of one machine or of several. In a process of its own everything here
does nothing. Gradients are those of the whole batch, and batch norms see the whole batch too, so that the result is the
one that a single process gives, up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

__all__ = ["add_up", "add_up_gradients", "device", "part", "process_group", "rank", "shared_norms", "world"]


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 is the one that writes and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def device() -> torch.device:
    """The GPU that ``torchrun`` means for this process, or the only one, or the processor."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group() -> Generator[None]:
    """Join the processes that ``torchrun`` started with this one, if it did."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    distributed.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def part(batch: Tensor) -> Tensor:
    """What this process takes of a batch; the parts are as equal as can be.

    Raises:
        ValueError: if the batch has fewer items than there are processes.
    """
    if len(batch) < world():
        raise ValueError(f"a batch of {len(batch)} cannot be divided among {world()} processes; use a larger batch")
    return batch.tensor_split(world())[rank()]


@torch.no_grad()
def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if world() > 1:
        distributed.all_reduce(tensor)
    return tensor


@torch.no_grad()
def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over all processes, as one message."""
    if world() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = add_up(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


class _Sum(torch.autograd.Function):
    """The sum over all processes, which the gradient takes back to each of them."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        return add_up(tensor.clone())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return add_up(grads[0].clone())


def _sum(tensor: Tensor) -> Tensor:
    return _Sum.apply(tensor)  # pyright: ignore[reportReturnType]


class _SharedNorm(nn.Module):
    """Batch norm over the parts of all processes; it has the parameters and buffers of the one it stands in for."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum or 0.0
        for name, parameter in norm.named_parameters():
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            known = self.running_mean, self.running_var, self.weight, self.bias
            return nn.functional.batch_norm(x, *known, eps=self.eps)
        wide = x.float()
        count = wide.new_tensor([x.numel() // x.shape[1]])
        *sums, n = _sum(torch.cat([wide.sum((0, 2, 3)), count])).split([x.shape[1], 1])
        mean = sums[0] / n
        away = wide - mean[:, None, None]
        variance = _sum(away.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (away * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


@contextmanager
def shared_norms(model: nn.Module) -> Generator[None]:
    """While this lasts, the batch norms of ``model`` see the batch of all processes."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    if world() == 1:
        norms = {}
    for name, norm in norms.items():
        model.set_submodule(name, _SharedNorm(norm).train(norm.training))
    try:
        yield
    finally:
        for name, norm in norms.items():
            model.set_submodule(name, norm)
