"""What a row of the ledger is: a paper's claim, how it is put to the test, and the judge of what was measured."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepreshape.training.runs import read_rows

RESULTS = Path(__file__).parent / "results"

Kind = Literal["exact", "structural", "accuracy", "time", "bytes"]
Verdict = Literal["re-made", "in part", "refuted", "not testable"]
Measured = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is put to the test.

    Attributes:
        id: short, of the paper and a number.
        paper, claim: which, and what it says, in our words.
        published: the figure, and how it is known: read, secondary (others quote it), or digitised from a plot.
        kind: what is compared.
        measure: gives the values that are judged; none where it is not testable.
        judge: of those values.
        threshold: the judge in words.
        minutes: of a quiet core, about.
        needs: what has to be there, such as a data set or a file of results.
        test: of the test suite, where one holds the claim exactly.
        why: it is not testable.
    """

    id: str
    paper: str
    claim: str
    published: str
    kind: Kind
    measure: Callable[[], Measured] | None = None
    judge: Callable[[Measured], Verdict] = lambda _: "not testable"
    threshold: str = ""
    minutes: float = 0.0
    needs: tuple[str, ...] = ()
    test: str = ""
    why: str = ""

    @property
    def command(self) -> str:
        """That re-makes it."""
        return f"python benchmarks/papers.py --run {self.id}" if self.measure else ""


MANY = 6
"""Values by name that a cell of the page lists; of more it gives their number and range."""


def shown(value: Any) -> str:
    """A measured value as the page has it: short, and for readers; the rows keep all digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.4g}"
    if isinstance(value, int | float):
        return f"{value:,.0f}"
    if isinstance(value, dict) and len(value) > MANY:
        return f"{len(value)} values from {shown(min(value.values()))} to {shown(max(value.values()))}"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} = {_inner(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " / ".join(map(_inner, value))
    return str(value)


def _inner(value: Any) -> str:
    """Of several values one, which may be several itself."""
    return f"({shown(value)})" if isinstance(value, dict | list) else shown(value)


def cell(measured: Measured) -> str:
    """All measured values of a claim in one line."""
    parts: list[str] = []
    before: object = None
    for name, value in measured.items():
        same = before is not None and value == before and isinstance(value, dict)
        parts.append(f"{name.replace('_', ' ')}: {'the same' if same else shown(value)}")
        before = value
    return "; ".join(parts)


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file of results."""
    return read_rows(RESULTS / name)


def at_least(name: str, whole: float, part: float) -> Callable[[Measured], Verdict]:
    """Judges the largest of several values."""

    def judge(measured: Measured) -> Verdict:
        best = max(measured[name].values())
        return "re-made" if best >= whole else "in part" if best >= part else "refuted"

    return judge
