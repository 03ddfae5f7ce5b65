"""Which protocol computes which layer: the words of ``auto``, and a search for the assignment that costs least.

What is priced is always the whole: layers go side by side offline and share set-ups, so that their prices do not add
up. The search begins, for every set of kinds of protocols, with what is cheapest layer by layer, and goes on from the
best of these by changing one layer, or all layers of one config, as long as that helps. What it ends with is the least
among all assignments wherever tests can try them all; elsewhere no such change improves it.

Choices are made from public facts alone, so that both parties make the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Literal, NamedTuple, get_args

from deepreshape.cost import CostReport, LayerChoice
from deepreshape.private.program.ops import ProgramError
from deepreshape.private.program.relu_config import (
    SETTINGS,
    Assignment,
    ReluConfig,
    Role,
    assigned,
    read_relus,
    with_setting,
)
from deepreshape.private.protocols.base import Flight, ReluProtocol, Step
from deepreshape.private.protocols.steps import Steps

__all__ = ["AUTO", "Objective", "assign", "candidates", "read_objective"]

Objective = Literal["seconds", "bytes", "online"]
"""What shall be least: seconds or bytes of both phases, or seconds of the online phase; then the other of the two."""


def read_objective(text: str) -> Objective:
    """An objective by its word.

    Raises:
        ValueError: with the word, if there is none.
    """
    if text == "seconds" or text == "bytes" or text == "online":
        return text
    raise ValueError(f"unknown objective {text!r}; known are {', '.join(get_args(Objective))}")


AUTO = "auto"
EXACT = ("gc-full", "gc-sign", "ot:chain", "ot:tree")
"""What ``auto`` chooses from: exact signs. ``ot:auto`` chooses from those of ``ot``."""
WINDOWED = ("gc-sign:window", "gc-stochastic:window", "ot:window,chain", "ot:window,tree")
"""What ``auto:window`` chooses from besides: tests of the bits that the program says, which calibration chose."""


def candidates(word: str, garbler: Role = "server", cot: str = "silent") -> tuple[ReluConfig | Assignment, ...]:
    """What a word lets a layer have: one config or assignment, or those that ``auto`` chooses from.

    Args:
        word: of ``read_relus``, or ``auto`` or ``ot:auto``, perhaps with ``window`` and settings like ``batch=4096``.
        garbler: where a config takes one and the word does not say it.
        cot: likewise.

    Raises:
        ValueError: with the word, if it is none of these, or takes no such setting.
    """
    first, *settings = re.split("[:,]", word)
    if AUTO not in (first, *settings):
        if "@" not in word and first not in SETTINGS:
            raise ValueError(f"no ReLU protocol {first!r}; there are {', '.join([*SETTINGS, AUTO])}")
        given = read_relus(word)
        configs = given.configs if isinstance(given, Assignment) else (given,)
        return (assigned(_shared(configs, garbler, cot)),)
    if first not in (AUTO, "ot"):
        raise ValueError(f"{word!r}: {first} leaves nothing to choose; there are auto and ot:auto")
    settings = [setting for setting in settings if setting != AUTO]
    window = "window" in settings
    rest = [setting for setting in settings if setting != "window"]
    words = [*EXACT, *(WINDOWED if window else ())]
    chosen = [each for each in words if first in (AUTO, each.partition(":")[0])]
    known = set(chain.from_iterable(SETTINGS[each.partition(":")[0]] for each in chosen)) & {"garbler", "cot", "batch"}
    for setting in rest:
        if setting.partition("=")[0] not in known:
            raise ValueError(f"{word!r}: auto takes window, {', '.join(sorted(known))}, and no {setting!r}")

    def parsed(each: str) -> ReluConfig:
        protocol, _, preset = each.partition(":")
        takes = [setting for setting in rest if setting.partition("=")[0] in SETTINGS[protocol]]
        settings = ",".join([*([preset] if preset else []), *takes])
        return ReluConfig.parse(f"{protocol}:{settings}" if settings else protocol)

    return _shared(map(parsed, chosen), garbler, cot)


def _shared(configs: Iterable[ReluConfig], garbler: Role, cot: str) -> tuple[ReluConfig, ...]:
    return with_setting(with_setting(configs, "garbler", garbler), "cot", cot)


class Option(NamedTuple):
    """One way to compute a layer."""

    config: ReluConfig
    flight: Flight


class Selection(NamedTuple):
    """What is best, why, and how many assignments were priced."""

    relu: ReluConfig | Assignment
    choices: tuple[LayerChoice, ...]
    tried: int


def assign(
    configs: Sequence[ReluConfig],
    steps: Callable[[ReluConfig | Assignment], Steps],
    price: Callable[[Steps], CostReport],
    objective: Objective = "seconds",
) -> Selection:
    """Choose a config for every layer with ReLUs or signs.

    Args:
        configs: to choose from; of two that cost alike everywhere the first is taken.
        steps: of the whole inference, by what computes ReLUs; raises ``ProgramError`` for what a layer cannot take.
        price: of the whole inference.
        objective: what shall be least.

    Raises:
        ProgramError: if no config can be taken in all layers.
    """
    search = _Search(configs, steps, price, objective)
    best = search.run()
    return Selection(assigned(search.configs(best) or configs[:1]), tuple(search.explained(best)), len(search.prices))


class _Search:
    """Assignments as the numbers of options, a layer each, and what they cost."""

    def __init__(
        self,
        configs: Sequence[ReluConfig],
        steps: Callable[[ReluConfig | Assignment], Steps],
        price: Callable[[Steps], CostReport],
        objective: Objective,
    ) -> None:
        self.price = price
        self.objective: Objective = objective
        self.prices: dict[tuple[int, ...], CostReport] = {}
        whole: dict[ReluConfig, Steps] = {}
        refused: list[ProgramError] = []
        for config in configs:
            try:
                whole[config] = steps(config)
            except ProgramError as error:
                refused.append(error)
        if not whole:
            raise refused[0]
        base, self.steps = next(iter(whole.items()))
        self.places = self.steps.nonlinear
        self.options: list[list[Option]] = []
        for number, place in enumerate(self.places):
            options: list[Option] = []
            for config in configs:
                alone = [config if at == number else base for at in range(len(self.places))]
                try:
                    of = whole[config] if config in whole else steps(assigned(alone))
                except ProgramError:
                    continue
                option = Option(config, of.online[place])
                if _facts(option) not in map(_facts, options):
                    options.append(option)
            self.options.append(options)

    def configs(self, choice: tuple[int, ...]) -> list[ReluConfig]:
        return [options[at].config for options, at in zip(self.options, choice, strict=True)]

    def report(self, choice: tuple[int, ...]) -> CostReport:
        if choice not in self.prices:
            flights = {
                place: options[at].flight for place, options, at in zip(self.places, self.options, choice, strict=True)
            }
            self.prices[choice] = self.price(self.steps.with_flights(flights))
        return self.prices[choice]

    def cost(self, choice: tuple[int, ...]) -> tuple[float, float]:
        return _least(self.report(choice), self.objective)

    def run(self) -> tuple[int, ...]:
        best = min(self.starts(), key=self.cost)
        while True:
            better = min(self.changed(best), key=self.cost, default=best)
            if self.cost(better) >= self.cost(best):
                return best
            best = better

    def starts(self) -> Iterator[tuple[int, ...]]:
        """For every set of kinds of protocols, what is cheapest layer by layer; alone if no other layer has it."""
        alone = [
            [_least(_of(self.report(self.alike(option.config)), option.flight), self.objective) for option in options]
            for options in self.options
        ]
        kinds = list(dict.fromkeys(_kind(option) for options in self.options for option in options))
        for some in chain.from_iterable(combinations(kinds, size) for size in range(len(kinds), 0, -1)):
            choice: list[int] = []
            for options, costs in zip(self.options, alone, strict=True):
                allowed = [at for at, option in enumerate(options) if _kind(option) in some]
                choice.append(min(allowed or range(len(options)), key=costs.__getitem__))
            yield tuple(choice)
        if not kinds:
            yield ()

    def alike(self, config: ReluConfig) -> tuple[int, ...]:
        """All layers with this config, where they can have it, and with their first option elsewhere."""
        having = [[option.config for option in options] for options in self.options]
        return tuple(configs.index(config) if config in configs else 0 for configs in having)

    def changed(self, choice: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """With another option in one layer, or with another config in all layers of one."""
        for number in range(len(choice)):
            yield from self.others(choice, number)
        configs = self.configs(choice)
        for old in dict.fromkeys(configs):
            for new in dict.fromkeys(option.config for options in self.options for option in options):
                alike = self.alike(new)
                moved = (b if config == old else a for a, b, config in zip(choice, alike, configs, strict=True))
                if (after := tuple(moved)) != choice:
                    yield after

    def others(self, choice: tuple[int, ...], number: int) -> Iterator[tuple[int, ...]]:
        """With each other option in one layer."""
        for at in range(len(self.options[number])):
            if at != choice[number]:
                yield (*choice[:number], at, *choice[number + 1 :])

    def explained(self, choice: tuple[int, ...]) -> Iterator[LayerChoice]:
        """Layer by layer, what was chosen and what the whole would cost with the next best there."""
        whole = self.report(choice)
        for number, options in enumerate(self.options):
            config, flight = options[choice[number]]
            layer_report = _of(whole, flight)
            relus = sum(step.layer.count for step in _rectifying(flight))
            row = LayerChoice(flight[0].name, relus, str(config), layer_report.seconds, layer_report.bytes)
            other = min(self.others(choice, number), key=self.cost, default=None)
            if other is not None:
                then, word = self.report(other), str(options[other[number]].config)
                more = then.seconds - whole.seconds
                row = replace(row, other=word, more_seconds=more, more_bytes=then.bytes - whole.bytes)
            yield row


def _least(report: CostReport, objective: Objective) -> tuple[float, float]:
    """What an objective compares: the smaller the better."""
    if objective == "bytes":
        return report.bytes, report.seconds
    return (
        (report.only(phase="online").seconds, report.seconds)
        if objective == "online"
        else (report.seconds, report.bytes)
    )


def _rectifying(flight: Flight) -> list[Step]:
    """The steps of a flight whose protocol is chosen."""
    return [step for step in flight if isinstance(step.protocol, ReluProtocol)]


def _of(report: CostReport, flight: Flight) -> CostReport:
    """The rows of a layer's ReLUs or signs."""
    kinds = {kind for step in _rectifying(flight) for kind in step.protocol.kinds}
    return CostReport(tuple(row for row in report.rows if row.layer == flight[0].name and row.kind in kinds))


def _kind(option: Option) -> type:
    """Which set-up a way shares with others."""
    return type(_rectifying(option.flight)[0].protocol)


def _facts(option: Option) -> list[object]:
    """All that a price is made of."""
    return [(type(step.protocol), step.declared, step.work) for step in option.flight]
