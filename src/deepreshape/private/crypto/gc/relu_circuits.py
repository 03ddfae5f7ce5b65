"""The circuits that are garbled: the whole ReLU of two shares, or its sign alone.

The ReLU is that of DELPHI (Mishra et al., USENIX Security 2020): add the two input shares, keep the sum where it is not
negative, drop the low bits (truncation costs nothing: wires are left out), add a blind. The sign is that of
``arith/drelu.py``: a carry over the two parties' words, and few XORs.
"""

from __future__ import annotations

from functools import lru_cache

from deepreshape.private.arith.drelu import Parity, Sign, Window, Wrap
from deepreshape.private.arith.ring import Modulus, Ring
from deepreshape.private.crypto.circuit import Builder, Circuit


def relu_circuit(modulus: Modulus, shift: int) -> Circuit:
    """The shared ReLU: (max(x, 0) >> shift) + blind, for x = the garbler's share + the evaluator's.

    Inputs are (garbler, "share"), (garbler, "blind") and (evaluator, "share"), in this order, each below the modulus;
    the output is one word. All are ``modulus.bits`` wide. Which party garbles is not the circuit's concern.

    Raises:
        ValueError: unless 0 <= shift <= modulus.bits - 2.
    """
    if isinstance(modulus, Ring):
        return _relu_ring(modulus.bits, shift)
    return _relu_field(modulus.order, shift)


@lru_cache
def _relu_ring(bits: int, shift: int) -> Circuit:
    """:func:`relu_circuit` over Z_{2^bits}: 3 (bits - 1) - shift ANDs.

    Two carry chains of bits - 1, and bits - 1 - shift selections: the top bit of a ReLU is zero.
    """
    build, share, other, blind = _relu_inputs(bits, shift)
    x = build.add(share, other, carry_out=False)
    positive = build.not_(x[-1])
    kept = [build.and_(wire, positive) for wire in x[shift:-1]]
    return build.build(build.add(blind, kept, carry_out=False))


@lru_cache
def _relu_field(prime: int, shift: int) -> Circuit:
    """:func:`relu_circuit` over Z_p for an n-bit odd prime: 8n - 3 - shift - z ANDs.

    z, the trailing zeros of (p + 1) / 2, is 0 for p = 1 mod 4, as the primes of the literature are, whose 8n - 3 has
    shift 0.
    """
    bits = prime.bit_length()
    build, share, other, blind = _relu_inputs(bits, shift)
    x = build.add_mod(share, other, prime)
    negative, _ = build.at_least(x, (prime + 1) // 2)
    positive = build.not_(negative)
    kept = [build.and_(wire, positive) for wire in x[shift:]]
    return build.build(build.add_mod(blind, kept, prime))


def relu_and_gates(modulus: Modulus, shift: int) -> int:
    """AND gates of :func:`relu_circuit`, by formula."""
    if isinstance(modulus, Ring):
        return 3 * (modulus.bits - 1) - shift
    half = (modulus.order + 1) // 2
    return 8 * modulus.bits - 3 - shift - ((half & -half).bit_length() - 1)


def _relu_inputs(bits: int, shift: int) -> tuple[Builder, list[int], list[int], list[int]]:
    if not 0 <= shift <= bits - 2:
        raise ValueError(f"cannot drop {shift} bits of a ReLU of {bits}; the shift must be 0 to {bits - 2}")
    build = Builder()
    share = build.input("garbler", "share", bits)
    blind = build.input("garbler", "blind", bits)
    other = build.input("evaluator", "share", bits)
    return build, share, other, blind


@lru_cache
def sign_circuit(sign: Sign, half: bool) -> Circuit:
    """The garbler's and the evaluator's word to whether x counts as positive; ``sign.compared_bits`` ANDs.

    With ``half`` there is one more bit of the evaluator's, which is an output too: only its labels are of use.
    """
    build = Builder()
    one = build.input("garbler", "share", sign.width)
    other = build.input("evaluator", "share", sign.width)
    through = build.input("evaluator", "half", 1) if half else []
    return build.build([_positive(build, sign, one, other), *through])


def _positive(build: Builder, sign: Sign, one: list[int], other: list[int]) -> int:
    """The wire of ``sign.positive`` of two words."""
    match sign:
        case Window():
            top = build.xor(build.xor(one[-1], other[-1]), build.carry(one[:-1], other[:-1]))
            return build.not_(top)
        case Parity():
            return build.xor(build.xor(one[0], other[0]), build.carry(one, other))
        case Wrap():
            return build.carry(one, other, carry_in=sign.mode == "neg-pass")
