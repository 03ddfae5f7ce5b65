"""The end of a job: a reduced network answers some test images between two processes, and the report shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deepreshape.data import Dataset
from deepreshape.data.augment import VOID
from deepreshape.models.saved import load
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import to_fixed
from deepreshape.private.service.bundle import Bundle
from deepreshape.private.service.local_run import run_local
from deepreshape.private.service.predict import Prediction
from deepreshape.private.service.segmented import SegmentedImage
from deepreshape.report.answers import AnsweredImage, PrivateAnswers, SegmentedAnswer, png_of
from deepreshape.training.runs import Result

__all__ = ["answer_privately", "pixels_of", "read_answers", "segmented_answer"]

ANSWERS = "private.json"


def answer_privately(
    results: Sequence[Result],
    data: Dataset,
    folder: Path,
    count: int,
    progress: Callable[[int, int], None] | None = None,
) -> PrivateAnswers:
    """Run a job's network on the first test images, and keep the answers in the job's folder.

    It is the reduced network with the highest validation accuracy. What was answered before is read, not run again.

    Args:
        results: of the job.
        data: its data set.
        folder: the job's.
        count: how many images.
        progress: told how many of the offline phase's bytes have travelled.
    """
    known = read_answers(folder)
    if known and len(known.images) + len(known.maps) == count:
        return known
    reduced = [result for result in results if result.budget is not None] or list(results)
    best = max(reduced, key=lambda result: (result.top1_validation or 0.0, -result.relus))
    model = load(folder / "models" / best.id)
    bundle = Bundle.of(lower(model, data))
    program, images = bundle.program, data.test.images[:count]
    inputs = to_fixed(data.normalize(images).contiguous().numpy(), program.input_fraction)
    report = run_local(program, inputs, progress=progress)
    logits = program.decode(np.array(report["outputs"], dtype=np.int64))[0]
    answered: list[AnsweredImage] = []
    segmented: list[SegmentedAnswer] = []
    for image, output, label in zip(images, logits, data.test.labels[:count], strict=True):
        png, given = png_of(pixels_of(image)), {"seconds": {}, "bytes": {}, "agree": None}
        if data.maps:
            answer = SegmentedImage.of(output, bundle.facts, **given)
            segmented.append(segmented_answer(png, answer, label.numpy()))
        else:
            answer = Prediction.of(output.reshape(-1), bundle.facts, **given)
            sure = 1.0 if answer.probability is None else answer.probability  # where the data set has one class
            answered.append(AnsweredImage(png, answer.name, sure, data.class_names[int(label)]))
    colours = ["#{:02x}{:02x}{:02x}".format(*bundle.facts.colour(at)) for at in range(len(data.class_names))]
    answers = PrivateAnswers(
        f"{best.network}: {best.plan}",
        best.relus,
        tuple(answered),
        report["seconds"],
        report["bytes"],
        report["agree"],
        tuple(segmented),
        tuple(zip(data.class_names, colours, strict=True)) if data.maps else (),
    )
    (folder / ANSWERS).write_text(json.dumps(asdict(answers), indent=1) + "\n")
    return answers


def read_answers(folder: Path) -> PrivateAnswers | None:
    """What :func:`answer_privately` has kept, if it has."""
    path = folder / ANSWERS
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        images = tuple(AnsweredImage(**image) for image in values.pop("images"))
        maps = tuple(SegmentedAnswer(**one) for one in values.pop("maps", ()))
        legend = tuple((str(name), str(colour)) for name, colour in values.pop("legend", ()))
        return PrivateAnswers(images=images, maps=maps, legend=legend, **values)
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} does not hold private answers; remove it, and they are computed anew") from None


def segmented_answer(png: str, answer: SegmentedImage, truth: NDArray[np.uint8]) -> SegmentedAnswer:
    """An image's answer beside its true map."""
    colours = [answer.facts.colour(place) for place in range(len(answer.logits))]
    colours += [(0, 0, 0)] * (VOID + 1 - len(colours))
    table, known = np.array(colours, np.uint8), truth != VOID
    painted = [png_of(table[classes].tolist()) for classes in (truth, answer.classes)]
    right = int((answer.classes[known] == truth[known]).sum())
    return SegmentedAnswer(png, painted[0], painted[1], right, int(known.sum()))


def pixels_of(image: torch.Tensor) -> list[list[list[int]]]:
    """Rows of pixels; floats are stretched to 0 to 255."""
    if image.dtype != torch.uint8:
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-9) * 255
    shown = image if len(image) == 3 else image[:1]
    return shown.byte().movedim(0, -1).tolist()
