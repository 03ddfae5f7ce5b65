"""Where a training run was when it was killed: weights, optimizer and step in one file, and the rows of its metrics."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deepreshape.training.parallel import rank
from deepreshape.training.runs import read_rows, refuse_others, write_rows

__all__ = ["CHECKPOINT", "METRICS", "Checkpoint"]

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
LOCK = "lock"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that a run can be continued from.

    Attributes:
        folder: made, if it is not there; the first process writes it.
        settings: of the run; those of a checkpoint that is there must be the same.
        model, optimizer, average: what is saved and brought back.
    """

    folder: Path
    settings: dict[str, Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]

    @contextmanager
    def alone(self) -> Generator[None]:
        """Alone in the folder, among all processes that write to one.

        Raises:
            ValueError: if another run is in it.
        """
        if rank():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"another run is at work in {self.folder}; let it end, or choose another folder") from None
        try:
            yield
        finally:
            lock.release()

    def save(self, step: int, seconds: float) -> None:
        """One file, written beside the old one and then put in its place."""
        if rank():
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
        state = {"step": step, "seconds": seconds, "settings": self.settings}
        part = self.folder / f"{CHECKPOINT}.part"
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, part, metadata={"state": json.dumps(state)})
        os.replace(part, self.folder / CHECKPOINT)

    def note(self, row: dict[str, Any]) -> None:
        """Add a row to the metrics."""
        if rank() == 0:
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")

    def resume(self) -> tuple[int, float]:
        """Bring everything to where the last checkpoint was; returns its step and the seconds spent until then.

        Raises:
            ValueError: if the folder holds another run.
        """
        path, metrics = self.folder / CHECKPOINT, self.folder / METRICS
        if not path.is_file():
            if rank() == 0:
                metrics.unlink(missing_ok=True)
            return 0, 0.0
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        refuse_others(self.folder, "run", state["settings"], self.settings)
        try:
            self.model.load_state_dict(
                {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
            )
        except RuntimeError:
            raise ValueError(f"{self.folder} holds a run of another network; use that one, or another folder") from None
        for name in self.average:
            self.average[name].copy_(tensors[f"average.{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        if metrics.is_file() and rank() == 0:
            write_rows(metrics, [row for row in read_rows(metrics) if row["step"] <= state["step"]])
        return state["step"], state["seconds"]
