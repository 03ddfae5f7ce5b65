"""What commands print: the two consoles, progress, tables, and the end by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from textwrap import wrap
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from deepreshape.cost import Assigned
    from deepreshape.data import Dataset
    from deepreshape.experiments.experiment import Experiment, Point
    from deepreshape.private.service.segmented import SegmentedImage
    from deepreshape.training import Progress as TrainingProgress
    from deepreshape.training.runs import Result


class Output(Console):
    """Standard output; a reader that has enough, as ``head`` has, is no error."""

    def on_broken_pipe(self) -> None:
        reader_left()


def reader_left() -> NoReturn:
    """End without a word: nobody reads what is left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


out, err = Output(), Console(stderr=True)

LINE_S = 30.0
"""Between lines that say how far long work is, where there is no terminal."""


def print_assigned(assigned: Assigned, to: Console = out) -> None:
    """What ``auto`` chose for each layer, and what the next best would have cost."""
    table = new_table("layer", "ReLUs", "protocol", "KB", "s", "next best", "+ KB", "+ s")
    for row in assigned.choices:
        chosen = thousands(row.relus), row.protocol, f"{row.bytes / 1000:,.1f}", f"{row.seconds:.3f}"
        more = (
            (row.other, f"{row.more_bytes / 1000:+,.1f}", f"{row.more_seconds:+.3f}") if row.other else ("none", "", "")
        )
        table.add_row(row.layer, *chosen, *more)
    to.print(table)
    to.print(
        f"auto: {assigned}; layers without what a run sets up once, the next best as a change of the whole",
        highlight=False,
        soft_wrap=True,
    )


def stoppable(work: Any, then: str = "the same command goes on from here") -> Any:
    """Do ``work``; Ctrl-C or SIGTERM ends it with exit code 130 or 143 and says what is ``then``.

    Code in other languages may turn the interrupt into an error of its own, as safetensors does while it loads, so what
    counts is that there was one.
    """
    stopped: int | None = None

    def stop(number: int, _: object) -> None:
        nonlocal stopped
        stopped = number
        raise KeyboardInterrupt

    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    watched = [kind for kind, default in defaults.items() if signal.getsignal(kind) is default]
    if current_thread() is not main_thread():
        watched = []
    for kind in watched:
        signal.signal(kind, stop)
    try:
        return work()
    except BaseException as error:
        if stopped is None and not isinstance(error, KeyboardInterrupt):
            raise
        err.print(f"stopped; {then}")
        raise typer.Exit(128 + (stopped or signal.SIGINT)) from None
    finally:
        for kind in watched:
            signal.signal(kind, defaults[kind])


NOTHING_KEPT = "nothing was kept"


class _Bar(Progress):
    """A bar on standard error with the time left; where that is no terminal, a line now and then."""

    def __init__(self, column: ProgressColumn, *, megabytes: bool = False) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), column, TimeRemainingColumn()
        super().__init__(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._unit, self._name = (1e6, " MB") if megabytes else (1, "")
        self._said = time.monotonic()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Where the task is now."""
        super().update(task_id, **fields)
        if self.disable and time.monotonic() - self._said >= LINE_S:
            self._said, task = time.monotonic(), self._tasks[task_id]
            far = [f"{number / self._unit:,.0f}" for number in (task.completed, task.total or 0)]
            said = [task.description, f"{' of '.join(far)}{self._name}" if task.total else ""]
            err.print(": ".join(filter(None, said)), highlight=False, markup=False)


def progress_bar() -> Progress:
    """A bar of steps."""
    return _Bar(MofNCompleteColumn())


def count_bar(what: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """A bar that is told how many of how many."""
    return _telling(progress_bar(), what)


def bytes_bar(what: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """The same, of bytes."""
    return _telling(_Bar(DownloadColumn(), megabytes=True), what)


@contextmanager
def _telling(bar: Progress, what: str) -> Generator[Callable[[int, int], None]]:
    with bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def into(bar: Progress, task: Any) -> Any:
    """Shows the progress of a training run as a task of ``bar``."""
    return lambda progress: bar.update(task, completed=progress.step, total=progress.steps)


def run_experiment(experiment: Experiment, data: Dataset, to: Path) -> list[Result]:
    """Do an experiment in its folder, or what is left of it, with a line for each point that is done."""
    with progress_bar() as bar:
        whole = bar.add_task("points", total=None)
        task = bar.add_task("", total=None)

        def show(number: int, total: int, point: Point, progress: TrainingProgress | None) -> None:
            bar.update(whole, completed=number - (progress is not None), total=total)
            if progress:
                bar.update(task, description=point.title, completed=progress.step, total=progress.steps)
            else:
                err.print(f"{number}/{total} {point.id}: {point.title}", highlight=False)

        return stoppable(lambda: experiment.run(data, to, show))


def new_table(*names: str) -> Table:
    """A table whose columns after the first hold numbers; where it is narrow, only the first column is broken."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column(names[0], overflow="fold")
    for name in names[1:]:
        table.add_column("\n".join(wrap(name, 8, break_long_words=False)), justify="right", no_wrap=True)
    return table


def write_pictures(segmented: Sequence[SegmentedImage], picture: Path | None) -> list[str]:
    """Write the pictures of answers where the user wants them; their paths."""
    if picture is None:
        return []
    paths = [picture]
    if len(segmented) > 1:
        paths = [picture.with_stem(f"{picture.stem}-{number}") for number in range(1, len(segmented) + 1)]
    for answer, path in zip(segmented, paths, strict=True):
        answer.save(path)
    return [str(path) for path in paths]


def print_segmented(segmented: Sequence[SegmentedImage], pictures: Sequence[str]) -> None:
    """Each answer's classes with their colours, and where its picture is."""
    for number, answer in enumerate(segmented):
        table = new_table("class", "colour", "pixels")
        for name, colour, share in answer.legend():
            table.add_row(escape(name), f"[{colour}]██[/] {colour}", f"{share:.2%}")
        out.print(table)
        if pictures:
            out.print(f"written to {pictures[number]}", soft_wrap=True, highlight=False, markup=False)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    try:
        sys.stdout.write(json.dumps(value, indent=1) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        reader_left()


def tell(line: str) -> None:
    """A line for people on standard error, as it is."""
    err.print(line, highlight=False, markup=False, soft_wrap=True)


def thousands(value: int) -> str:
    """With commas."""
    return f"{value:,}"
