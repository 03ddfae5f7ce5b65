"""How ReLUs are computed: one public value that both parties agree on, and the word for it.

For all layers alike that is a :class:`ReluConfig`, layer by layer an :class:`Assignment`; :func:`read_relus` reads
either.

A word is a protocol's name with its settings behind a colon: ``gc-full``, ``gc-sign:window``,
``gc-stochastic:drop=12,neg-pass``, ``gc-full:garbler=client,batch=4096``. Settings that are left out have their
defaults. What each setting means is said once, at :class:`ReluConfig`; which protocol takes which, in :data:`SETTINGS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Literal

from deepreshape.private.arith.drelu import MODES, Mode

Role = Literal["client", "server"]
ROLES: tuple[Role, ...] = ("server", "client")
SETTINGS = {
    "gc-full": ("garbler", "batch"),
    "gc-sign": ("window", "garbler", "batch"),
    "gc-stochastic": ("window", "drop", "mode", "garbler", "batch"),
    "ot": ("window", "drop", "mode", "carry", "cot", "batch"),
}
"""The settings that each protocol takes."""
CARRIES = ("chain", "tree")
"""How ``ot`` finds the carry of two shares; left out, each layer has what suits it."""
COTS = ("silent", "softspoken", "iknp")
"""What makes the correlated transfers of ``ot``, by falling trust in its assumption and rising bytes."""
MOST_LAYERS = 5000
"""That an assignment may name."""
REPLACED = {"calibrated": "window"}
"""Settings that have another name now."""


@dataclass(frozen=True)
class ReluConfig:
    """How ReLUs are computed.

    Attributes:
        protocol: ``"gc-full"``, the whole ReLU in the circuit; ``"gc-sign"``, its exact sign; ``"gc-stochastic"``,
            Circa's sign, which may be wrong for small values; ``"ot"``, the sign by oblivious transfer, exact unless
            low bits are left out.
        window: test only the bits that the program says for each layer: both ends of each window for gc-stochastic, the
            upper end for gc-sign, both ends for ot.
        drop: low bits that every sign test leaves out.
        mode: which small values are counted wrong where low bits are left out.
        carry: ``"chain"``, one round, or ``"tree"``, fewer bytes; empty to let each layer have what suits it.
        cot: what makes the correlated transfers, one of :data:`COTS`.
        garbler: who garbles; the other party stores the tables and evaluates them.
        batch: instances that one garbling covers: few enough for rows to stay in cache, many enough to hide the
            interpreter.

    Raises:
        ValueError: if there is no such protocol, or it does not take a setting that is given.
    """

    protocol: str = "gc-full"
    window: bool = False
    drop: int = 0
    mode: Mode = "pos-zero"
    carry: str = ""
    cot: str = "silent"
    garbler: Role = "server"
    batch: int = 8192

    def __post_init__(self) -> None:
        known = SETTINGS.get(self.protocol)
        if known is None:
            raise ValueError(f"no ReLU protocol {self.protocol!r}; there are {', '.join(SETTINGS)}")
        for name in self._given():
            if name not in known:
                raise ValueError(f"{self.protocol} takes no {name}; its settings are {', '.join(known)}")
        if self.mode not in MODES or self.garbler not in ROLES:
            raise ValueError(
                f"mode is {' or '.join(MODES)} and garbler {' or '.join(ROLES)}, not {self.mode!r} and {self.garbler!r}"
            )
        if self.carry not in ("", *CARRIES) or self.cot not in COTS:
            raise ValueError(
                f"carry is {' or '.join(CARRIES)} and cot {', '.join(COTS)}, not {self.carry!r} and {self.cot!r}"
            )
        if self.drop < 0 or self.batch < 1:
            raise ValueError(f"drop is at least 0 and batch at least 1, not {self.drop} and {self.batch}")
        if self.window and self.drop:
            raise ValueError(f"drop={self.drop} and window both say which bits to test; give one of them")

    def __str__(self) -> str:
        words = ["window"] if self.window else []
        if self.protocol == "gc-stochastic":
            words += [*([] if self.window else [f"drop={self.drop}"]), self.mode]
        if self.protocol == "ot":
            words += [f"drop={self.drop}"] * bool(self.drop) + [self.mode] * (self.mode != MODES[0])
            words += [self.carry] * bool(self.carry)
        words += [f"{name}={getattr(self, name)}" for name in self._given() if name in ("cot", "garbler", "batch")]
        return ":".join([self.protocol, *([",".join(words)] if words else [])])

    def at(self, number: int) -> ReluConfig:
        """That of a layer: this one, whatever its number."""
        return self

    @property
    def squares(self) -> ReluConfig:
        """What says by which transfers squares are computed."""
        return self

    def _given(self) -> list[str]:
        """The settings that differ from their defaults."""
        return [one.name for one in fields(self)[1:] if getattr(self, one.name) != one.default]

    @classmethod
    def parse(cls, text: str) -> ReluConfig:
        """The inverse of ``str``.

        Raises:
            ValueError: with the text, if it is not such a word.
        """
        protocol, colon, rest = text.partition(":")
        if colon and not all(rest.split(",")):
            raise ValueError(
                f"{text!r}: a setting is missing behind the colon or a comma; {protocol} alone is a word too"
            )
        settings: dict[str, object] = {"protocol": protocol}

        def put(name: str, value: object) -> None:
            if (other := settings.setdefault(name, value)) != value:
                raise ValueError(f"{text!r} gives {name} as {other} and as {value}; give it once")

        exact = protocol == "ot" and rest.split(",")[0] == "exact"  # ot is so unless another word leaves bits out
        for word in filter(None, rest.split(",")[exact:]):  # one empty word where there is no colon
            name, _, value = word.partition("=")
            if name in ("drop", "batch") and value.isdecimal():
                put(name, int(value))
            elif (name == "garbler" and value in ROLES) or (name == "cot" and value in COTS):
                put(name, value)
            elif word in MODES:
                put("mode", word)
            elif word in CARRIES:
                put("carry", word)
            elif word == "window":
                put("window", True)
            elif word in REPLACED:
                raise ValueError(f"{text!r}: {word!r} is now called {REPLACED[word]!r}")
            else:
                raise ValueError(
                    f"{text!r}: unknown setting {word!r}; there are window, drop=BITS, {', '.join(MODES)}, "
                    f"{', '.join(CARRIES)}, cot=NAME, garbler=client, batch=COUNT"
                )
        if exact and (settings.get("window") or settings.get("drop")):
            raise ValueError(f"{text!r}: exact leaves no bits out; write it without exact, or without window and drop")
        return cls(**settings)  # pyright: ignore[reportArgumentType] - checked when it is made


GC_FULL = ReluConfig()
"""The default: the whole ReLU in the circuit, garbled by the server."""


@dataclass(frozen=True)
class Assignment:
    """Which config each layer with ReLUs or signs has, in the order of the program (``Program.nonlinear``).

    Its word names runs of layers: ``ot:tree@3+gc-sign@2`` is ``ot:tree`` for three layers and ``gc-sign`` for the two
    behind them.

    Attributes:
        configs: of the layers, not all alike.

    Raises:
        ValueError: if all are alike, which a config says alone, or they differ in what a run has once: who garbles, and
            what makes the transfers.
    """

    configs: tuple[ReluConfig, ...]

    def __post_init__(self) -> None:
        if len(set(self.configs)) < 2:
            raise ValueError(f"{self}: an assignment has layers that differ; the word of one config is for all layers")
        for name in ("garbler", "cot"):
            if len(values := {getattr(config, name) for config in self.configs if takes(config, name)}) > 1:
                raise ValueError(f"{self}: a run has one {name}, not {' and '.join(sorted(values))}")

    def __str__(self) -> str:
        return "+".join(f"{config}@{len([*layers])}" for config, layers in groupby(self.configs))

    def at(self, number: int) -> ReluConfig:
        """That of a layer, by its number from 0."""
        return self.configs[number]

    @property
    def garbler(self) -> Role:
        """Who garbles, if anybody does."""
        return next((config for config in self.configs if takes(config, "garbler")), GC_FULL).garbler

    @property
    def squares(self) -> ReluConfig:
        """What says by which transfers squares are computed: the first config of transfers, if there is one."""
        return next((config for config in self.configs if takes(config, "cot")), self.configs[0])

    @property
    def cot(self) -> str:
        """What makes the transfers."""
        return self.squares.cot


def takes(config: ReluConfig, setting: str) -> bool:
    """Whether the protocol of a config has such a setting."""
    return setting in SETTINGS[config.protocol]


def assigned(configs: Sequence[ReluConfig]) -> ReluConfig | Assignment:
    """Of all layers: one config where they are alike, an assignment elsewhere."""
    return Assignment(tuple(configs)) if len(set(configs)) > 1 else configs[0]


def check_layers(relu: ReluConfig | Assignment, count: int) -> None:
    """Refuse an assignment that is for another number of layers.

    Raises:
        ValueError: saying both numbers.
    """
    if isinstance(relu, Assignment) and len(relu.configs) != count:
        raise ValueError(f"{relu} is for {len(relu.configs)} layers with ReLUs or signs; this network has {count}")


def read_relus(text: str) -> ReluConfig | Assignment:
    """The inverse of ``str``.

    Raises:
        ValueError: with the text, if it is no word of either.
    """
    if "auto" in re.split("[:,]", text):
        raise ValueError(f"{text!r} is chosen by price before a run: `deepreshape cost --protocol auto` says the word")
    if "@" not in text:
        return ReluConfig.parse(text)
    configs: list[ReluConfig] = []
    for run in text.split("+"):
        word, _, count = run.rpartition("@")
        if not (count.isdecimal() and len(count) < 5 and 1 <= int(count) <= MOST_LAYERS - len(configs)):
            raise ValueError(
                f"{text!r}: {run!r} is to be WORD@COUNT, such as ot:tree@3, for {MOST_LAYERS} layers at most in all"
            )
        configs += [ReluConfig.parse(word)] * int(count)
    return Assignment(tuple(configs))


def with_setting(
    configs: Iterable[ReluConfig], setting: Literal["garbler", "cot"], value: str
) -> tuple[ReluConfig, ...]:
    """Configs with a setting that a run has once, wherever they take it and do not say another themselves.

    Raises:
        ValueError: if none takes it and ``value`` is not its default.
    """
    given = tuple(configs)
    default = getattr(GC_FULL, setting)
    if value == default:
        return given
    if not any(takes(config, setting) for config in given):
        raise ValueError(
            f"{given[0].protocol} takes no {setting}; its settings are {', '.join(SETTINGS[given[0].protocol])}"
        )
    return tuple(
        replace(config, **{setting: value})
        if takes(config, setting) and getattr(config, setting) == default
        else config
        for config in given
    )
