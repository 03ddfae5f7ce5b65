"""Where inputs may stop in networks with exits, as a page: all configurations, and images by the exit they end at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepreshape.report.answers import png_of
from deepreshape.report.html import environment

__all__ = ["Ended", "page_of_exits"]


Pixels = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Ended:
    """An image and the exit at which it ended.

    Attributes:
        at: the exit's stage.
        confidence: of its answer, 0 to 1.
        pictures: in base64, the image and, where every pixel has a class, the true map and the answer.
        caption: the answer in words; empty of maps.
    """

    at: int
    confidence: float
    pictures: tuple[str, ...]
    caption: str = ""

    @classmethod
    def of(cls, at: int, confidence: float, pictures: Sequence[Pixels], caption: str = "") -> Ended:
        """Of pictures as rows of pixels of one or three values from 0 to 255."""
        return cls(at, confidence, tuple(png_of(each) for each in pictures), caption)


def page_of_exits(
    title: str, search: Mapping[str, Any], metric: str, shown: str, ended: Sequence[Ended], command: str
) -> str:
    """The page.

    Args:
        title: of the networks and what was searched.
        search: what ``exits search --json`` gives.
        metric: what quality is, in words.
        shown: the word of the policy by which the images ended.
        ended: images, by exit.
        command: that makes the page again.
    """
    page = environment().get_template("exits.html.j2")
    by_exit = {at: [one for one in ended if one.at == at] for at in sorted({one.at for one in ended})}
    return page.render(title=title, metric=metric, shown=shown, by_exit=by_exit, command=command, **search)
