"""How ReLUs are computed: the public choice that both parties agree on, and that the plain interpreter follows.

Written as one word, with its settings behind a colon: ``gc-full``, ``gc-sign``, ``gc-sign:calibrated``,
``gc-stochastic:drop=12,pos-zero``, ``gc-stochastic:calibrated,neg-pass``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from deepreshape.private.arith.drelu import MODES, Mode, Parity, Sign, Window, Wrap
from deepreshape.private.arith.ring import Field, Ring
from deepreshape.private.arith.truncation import Division
from deepreshape.private.program.ops import ProgramError, Relu

Protocol = Literal["gc-full", "gc-sign", "gc-stochastic"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True)
class Variant:
    """How ReLUs are computed.

    Attributes:
        protocol: ``"gc-full"``, the whole ReLU in the circuit; ``"gc-sign"``, its exact sign; ``"gc-stochastic"``,
            Circa's sign, which may be wrong for small values.
        drop: low bits that the sign test of gc-stochastic leaves out.
        calibrated: take the bits that the sign tests look at from the program, layer by layer: both ends of each window
            for gc-stochastic, the upper end for gc-sign.
        mode: which small values gc-stochastic is wrong about.
    """

    protocol: Protocol = "gc-full"
    drop: int = 0
    calibrated: bool = False
    mode: Mode = "pos-zero"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS or self.mode not in MODES or self.drop < 0:
            raise ValueError(
                f"no ReLU protocol {self.protocol!r} dropping {self.drop} bits in mode {self.mode!r}; "
                f"protocols are {', '.join(PROTOCOLS)}, modes {' and '.join(MODES)}"
            )
        stochastic = self.protocol == "gc-stochastic"
        if self.drop and not stochastic:
            raise ValueError(f"{self.protocol} drops no bits; gc-stochastic does")
        if self.mode != "pos-zero" and not stochastic:
            raise ValueError(f"{self.protocol} is wrong about no value, so that it has no mode {self.mode}")
        if self.calibrated and (self.drop or self.protocol == "gc-full"):
            raise ValueError(
                "calibrated bits are for gc-sign and gc-stochastic, and take the place of a number to drop"
            )

    def __str__(self) -> str:
        if self.protocol == "gc-full":
            return self.protocol
        words = ["calibrated"] if self.calibrated else []
        if self.protocol == "gc-stochastic":
            words += [*([] if self.calibrated else [f"drop={self.drop}"]), self.mode]
        return ":".join([self.protocol, *([",".join(words)] if words else [])])

    @classmethod
    def parse(cls, text: str) -> Variant:
        """The inverse of ``str``; what is left out has its default.

        Raises:
            ValueError: with the text, if it is none.
        """
        protocol, _, rest = text.partition(":")
        settings: dict[str, object] = {"protocol": protocol}
        for word in filter(None, rest.split(",")):
            name, _, value = word.partition("=")
            if name == "drop" and value.isdecimal():
                settings["drop"] = int(value)
            elif word in MODES:
                settings["mode"] = word
            elif word == "calibrated":
                settings["calibrated"] = True
            else:
                raise ValueError(
                    f"{text!r}: {word!r} is no setting; known are drop=BITS, calibrated, {', '.join(MODES)}"
                )
        return cls(**settings)  # pyright: ignore[reportArgumentType] - checked when it is made

    def sign(self, modulus: Ring | Field, op: Relu) -> Sign | None:
        """The sign test of one layer; None for gc-full.

        Raises:
            ProgramError: naming the layer, if too few bits are left.
        """
        if self.protocol == "gc-full":
            return None
        exact = self.protocol == "gc-sign"
        low = 0 if exact else op.low if self.calibrated else self.drop
        try:
            if isinstance(modulus, Field):
                return Parity(modulus) if exact else Wrap(modulus, low, self.mode)
            high = op.high if self.calibrated and op.high else modulus.bits
            return Window(modulus, low, high, "pos-zero" if exact else self.mode)
        except ValueError as error:
            raise ProgramError(f"{op.name}: {error}") from None

    def division(self, modulus: Ring | Field, op: Relu) -> Division | None:
        """How the layer rounds; None for gc-full, which rounds down."""
        sign = self.sign(modulus, op)
        return sign and Division(modulus, op.shift, sign.passed)

    def room(self, modulus: Ring | Field, op: Relu) -> int:
        """The largest absolute value of the layer's input for which its output is as good as its variant promises."""
        sign, division = self.sign(modulus, op), self.division(modulus, op)
        if sign is None or division is None:
            return (modulus.order - 1) // 2
        return min(sign.room, division.room)


EXACT = Variant()
"""The whole ReLU in the circuit."""
