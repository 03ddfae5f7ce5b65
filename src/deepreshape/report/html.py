"""A job's results as one HTML file that needs no network, and its main chart as one SVG file."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deepreshape.report.answers import PrivateAnswers
from deepreshape.report.chart import Chart, Mark, lay_out_chart
from deepreshape.report.pareto import (
    BOTH,
    MACS,
    RELUS,
    Advantage,
    Basis,
    Summary,
    advantages,
    pareto_front,
    profiles_of,
    seconds_basis,
    summarize,
)
from deepreshape.training.runs import Result

__all__ = ["environment", "picture", "render", "scope", "verdict"]

SCOPES = {
    "digits": "This shows the way from a design to private answers, not which network is better: the digits have 8x8 "
    "pixels, of which the last two stages see 2x2 and 1x1, so that widening them buys next to nothing. Plans that "
    "reuse ReLUs add linear layers, whose fixed prices can outweigh the ReLUs they save. The comparison that means "
    "something is on CIFAR-100: docs/removal.md, at equal ReLU count."
}
"""By data set, what a comparison of networks on it does not show."""


def render(
    results: Sequence[Result],
    *,
    baseline: str,
    settings: str,
    command: str,
    data: Markup | None = None,
    answers: PrivateAnswers | None = None,
    seconds: Basis | None = None,
) -> str:
    """The report of a job.

    Args:
        results: of the job; at least one.
        baseline: name of the network that the others are compared with.
        settings: as resolved, to be shown.
        command: that made the results.
        data: for the explorable chart, from ``explore.embedded``; still pictures only without.
        answers: images that one of the networks answered privately.
        seconds: predicted, at equal amounts of which networks are compared beside ReLUs and multiply-adds; those of the
            first published profile without.
    """
    points = summarize(results)
    profiles = profiles_of(points)
    if seconds is None and profiles:
        priced = {(point.network, point.plan): point.priced[profiles[0]] for point in points}
        seconds = seconds_basis(profiles[0], priced)
    bases = [RELUS, MACS, BOTH, *([seconds] if seconds else [])]
    gains = {basis: advantages(points, baseline, basis) for basis in bases}
    best = set(pareto_front([(point.relus, point.mean) for point in points]))
    costs = [
        ("ReLUs", "ReLUs", [point.relus for point in points]),
        ("multiply-adds", "MACs", [point.macs for point in points]),
        *(("priced time", f"seconds, {name}", [point.priced[name] for point in points]) for name in profiles[:1]),
    ]
    charts = [_chart(points, f"Accuracy against {of}", label, values) for of, label, values in costs if any(values)]
    page = environment().get_template("report.html.j2")
    return page.render(
        title=f"{baseline} and its relatives on {results[0].data}",
        verdict=verdict(gains[RELUS], baseline),
        scope=scope(results),
        data=data,
        answers=answers,
        charts=charts,
        profiles=profiles,
        points=points,
        anchors=[_anchor(point) for point in points],
        on_front=[(point.relus, point.mean) in best for point in points],
        comparisons=[(basis, verdict(of, baseline, basis), of) for basis, of in gains.items() if of],
        baseline=baseline,
        rows=results,
        command=command,
        settings=settings,
        n=results[0].n,
        metric=points[0].metric,
        provenance=f"deepreshape {version('deepreshape')}, Python {platform.python_version()}, {platform.machine()}",
    )


def scope(results: Sequence[Result]) -> str:
    """What results on this data set show and what not, where that has to be said; empty elsewhere."""
    return SCOPES.get(results[0].data, "")


def picture(results: Sequence[Result]) -> str:
    """Accuracy against ReLUs as a standalone SVG that follows the reader's light or dark setting.

    Raises:
        ValueError: if no network has any.
    """
    points = summarize(results)
    if not any(point.relus for point in points):
        raise ValueError("none of these networks has a ReLU, so there is no accuracy against ReLUs to draw")
    chart = _chart(points, "Accuracy against ReLUs", "ReLUs", [point.relus for point in points])
    return environment().get_template("chart.svg.j2").render(chart=chart, linked=False, metric=points[0].metric)


def verdict(gains: Sequence[Advantage], baseline: str, basis: Basis = RELUS) -> str:
    """One or two sentences that follow from the numbers, and say what they do not show."""
    if not gains:
        return (
            f"No network has a {basis.name} between two of {baseline}'s, so nothing can be said at equal {basis.name}."
        )
    best, worst = max(gains, key=lambda gain: gain.gain), min(gains, key=lambda gain: gain.gain)
    ahead = sum(gain.gain > 0 for gain in gains)
    clear = [gain for gain in gains if gain.spread is not None and abs(gain.gain) > 2 * gain.spread]
    seeds = (
        f"{len(clear)} of them differ by more than twice the spread over seeds."
        if any(gain.spread is not None for gain in gains)
        else "There is one seed, so differences of a point or so mean little."
    )
    like = ", each against the same method" if any(", " in gain.point.network for gain in gains) else ""
    return (
        f"At equal {basis.name}, {ahead} of {len(gains)} other points between two of {baseline}'s are ahead of it"
        f"{'' if ', ' in baseline else like}: from "
        f"{worst.gain:+.1f} points ({worst.point.network}, {worst.point.relus:,} ReLUs) to {best.gain:+.1f} "
        f"({best.point.network}, {best.point.relus:,} ReLUs). {seeds}"
    )


def _chart(points: Sequence[Summary], title: str, label: str, costs: Sequence[float]) -> Chart:
    marks = [
        Mark(
            point.network,
            cost,
            point.mean,
            point.spread or 0.0,
            f"{point.network}: {point.plan}\n{point.relus:,} ReLUs, {point.macs / 1e6:,.1f} M MACs\n"
            f"{point.mean:.2f} % test {point.metric}, {len(point.top1)} seed(s)",
            _anchor(point),
        )
        for point, cost in zip(points, costs, strict=True)
        if cost > 0
    ]
    return lay_out_chart(title, label, marks, pareto_front([(mark.x, mark.y) for mark in marks]))


def _anchor(point: Summary) -> str:
    return f"{point.network}-{point.relus}".replace(" ", "-")


def environment() -> Environment:
    """Where the templates are, and how they are filled in."""
    return Environment(
        loader=PackageLoader("deepreshape.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
