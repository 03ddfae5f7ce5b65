"""The programs of a network's exits, asked one after the other about inputs that no exit before was sure of.

    run_in_turn(programs, inputs, sure)      # both parties on this machine
    ask_in_turn(clients, x, threshold=0.8)   # a client, whose server offers the programs of all exits

Every exit is a program of its own and every question a new query, which starts again at the input: nothing of what the
parties held for an earlier exit is used. The server learns of each input at which exit it ended, one bit an exit, and
no more than that; the client learns the logits of every exit that it asked. The client alone decides, and the server
cannot see by which rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepreshape.private.parties.sessions import Answer, InferenceClient, Progress
from deepreshape.private.program.ops import Integers
from deepreshape.private.program.program import Program
from deepreshape.private.program.relu_config import GC_FULL, ReluConfig
from deepreshape.private.service.local_run import run_local
from deepreshape.private.service.stop import confidence

__all__ = ["Asked", "InTurn", "ask_in_turn", "run_in_turn"]

Real = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class InTurn:
    """What came of inputs that were put to exits in turn.

    Attributes:
        logits: for each input float64, those of the exit at which it ended: (classes,), or a map of them.
        ends: by input, the number of that exit, (N,).
        reports: of each exit, as :func:`~.local_run.run_local` gives them; None of one that no input reached.
        reached: by exit, how many inputs were put to it.
    """

    logits: tuple[Real, ...]
    ends: NDArray[np.intp]
    reports: tuple[dict[str, Any] | None, ...]
    reached: tuple[int, ...]

    def report(self, names: Mapping[int, str]) -> dict[str, Any]:
        """One report of all, as of a network: counts, seconds, bytes and rounds are means of one input, places sums.

        Args:
            names: of the exits, by their number, for the rows of layers.
        """
        ran = [(number, report) for number, report in enumerate(self.reports) if report]

        def mean(of: Callable[[dict[str, Any]], float]) -> float:
            return sum(self.reached[number] * of(report) for number, report in ran) / len(self.ends)

        def phases(name: str) -> dict[str, float]:
            return {phase: mean(lambda report, at=phase: report[name][at]) for phase in ("offline", "online")}

        def most(name: str) -> dict[str, float]:
            return {role: max(report[name][role] for _, report in ran) for role in ("client", "server")}

        return {
            **{name: all(report[name] for _, report in ran) for name in ("agree", "same_class")},
            **{name: sum(report[name] for _, report in ran) for name in ("same_places", "places")},
            "max_lsb_difference": max(report["max_lsb_difference"] for _, report in ran),
            **{name: mean(lambda report, of=name: report[of]) for name in ("relus", "squares", "signs")},
            "seconds": phases("seconds"),
            "bytes": phases("bytes"),
            "rounds": mean(lambda report: report["rounds"]),
            "declared_bytes_match": all(report["declared_bytes_match"] for _, report in ran),
            "peak_rss_mib": most("peak_rss_mib"),
            "stored_mib": most("stored_mib"),
            "layers": [{"exit": names[number], **row} for number, report in ran for row in report["layers"]],
        }


def run_in_turn(
    programs: Mapping[int, Program],
    inputs: Integers,
    sure: Callable[[Real], NDArray[np.bool_]],
    relu: ReluConfig = GC_FULL,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> InTurn:
    """Put every input to the first program, those that it leaves open to the next, and so on, between two processes.

    Args:
        programs: of the exits in their order, with weights, one output each.
        inputs: (N, *input_shape), int64, of one format for all programs.
        sure: of logits (n, classes), or maps of them, which are taken, (n,); the last program's all are.
        relu: how ReLUs are computed.
        progress: is told, for each program, how many of its offline phases' bytes have travelled.
        workers: as :func:`~.local_run.run_local` takes them.

    Raises:
        ProgramError, ValueError, OverflowError, ProtocolError: as :func:`~.local_run.run_local`.
    """
    ends = np.full(len(inputs), len(programs) - 1)
    logits: dict[int, Real] = {}
    reports: list[dict[str, Any] | None] = []
    reached: list[int] = []
    open_ = np.arange(len(inputs))
    for number, program in enumerate(programs.values()):
        reached.append(len(open_))
        if not len(open_):
            reports.append(None)
            continue
        report = run_local(program, inputs[open_], relu, progress=progress, workers=workers)
        answers = program.decode(np.array(report.pop("outputs"), dtype=np.int64))[0]
        logits.update(zip(open_.tolist(), answers, strict=True))
        reports.append(report)
        taken = sure(answers) | (number == len(programs) - 1)
        ends[open_[taken]] = number
        open_ = open_[~taken]
    return InTurn(tuple(logits[place] for place in range(len(inputs))), ends, tuple(reports), tuple(reached))


class Asked(NamedTuple):
    """What one exit was asked and answered.

    Attributes:
        at: its stage.
        logits: float64, (classes,), or a map of them.
        confidence: of the answer, 0 to 1.
        answer: integers, traffic and seconds.
    """

    at: int
    logits: Real
    confidence: float
    answer: Answer


def ask_in_turn(
    clients: Mapping[int, InferenceClient], x: Integers, threshold: float, progress: Progress | None = None
) -> tuple[Asked, ...]:
    """Put one input to a server's exits until an answer is sure enough; that is the last given.

    Args:
        clients: of one server, by stage in rising order, of programs with one output and the same format of inputs.
        x: the input, int64 of the programs' input shape.
        threshold: confidence from which an answer is taken; the last exit's is taken anyway.
        progress: is told how far a batch is that is made now.

    Raises:
        ValueError, LostBatchError, ProtocolError, StoreError: as :meth:`~.sessions.InferenceClient.infer`; what exits
            before have answered is lost then, and the server knows that it was asked.
    """
    asked: list[Asked] = []
    for at, client in clients.items():
        answer = client.infer(x, progress=progress)
        logits = client.plan.program.decode(answer.output)[0]
        asked.append(Asked(at, logits, float(confidence(logits[None])[0]), answer))
        if asked[-1].confidence >= threshold:
            break
    return tuple(asked)
