"""The carry chain: right for all small words and many wide ones, and what the client sees is uniform, whatever b is."""

from collections.abc import Callable

import numpy as np
import pytest
from support.two_parties import fixed

from deepreshape.private.arith.ring import Words
from deepreshape.private.protocols.transfers import carry_chain
from deepreshape.private.protocols.transfers.carry_chain import WIDEST, Chain

SPLITS = [(1,), (2,), (3,), (1, 1), (2, 1), (1, 2), (1, 1, 1)]
U = np.uint64


@pytest.fixture
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    monkeypatch.setattr(carry_chain, "_split", lambda bits, label: (0, request.param))
    return request.param


def own_hashes(word: Words, swaps: Words, zero: list[Words], one: list[Words]) -> list[Words]:
    """What the client's labels hash to: those that its word chooses."""
    bits = [((word ^ swaps) >> U(i)) & U(1) for i in range(len(zero))]
    return [np.where(bit[:, None], second, first) for bit, first, second in zip(bits, zero, one, strict=True)]


def carries(chain: Chain, a: Words, b: Words) -> tuple[Words, Words]:
    """What the client got, its blind taken off, and what the carry is."""
    rng, count = fixed(chain.bits), len(a)
    zero, one = ([rng.labels(count) for _ in range(chain.bits)] for _ in range(2))
    swaps, blind = rng.words(count) & U((1 << chain.bits) - 1), rng.words(count) & U(1)
    rows = chain.garble(chain.server_blinds(zero, one, swaps), b, blind, rng.words(count))
    for row, width in zip(rows, chain.row_widths, strict=True):
        assert width == 64 or int(row.max()) < 1 << width
    got = chain.walk(rows, a, chain.client_blinds(own_hashes(a, swaps, zero, one), a)) ^ blind
    return got, ((a + b + U(chain.carry_in)) >> U(chain.bits)) & U(1)


@pytest.mark.parametrize("carry_in", [False, True])
@pytest.mark.parametrize("split", [*SPLITS, (4,), (2, 2), (1, 3), (1, 1, 2)], indirect=True)
def test_all_words_of_few_bits(split: tuple[int, ...], carry_in: bool):
    bits = sum(split)
    a, b = (np.repeat(side, 20) for side in divmod(np.arange(4**bits, dtype=U), U(1 << bits)))
    got, wanted = carries(Chain(bits, carry_in), a, b)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("carry_in", [False, True])
@pytest.mark.parametrize("bits", [7, 9, 13, 24, 27, 28, 31, 36, 41, WIDEST])
def test_wide_words(bits: int, carry_in: bool):
    rng, most = fixed(bits), U((1 << bits) - 1)
    a, b = rng.words(4000) & most, rng.words(4000) & most
    b[:500] = most - a[:500]  # all digits propagate
    b[500:1000] = (most - a[500:1000] + U(1)) & most
    b[1000:1200], a[1100:1300] = most, most
    got, wanted = carries(Chain(bits, carry_in), a, b)
    np.testing.assert_array_equal(got, wanted)


def test_bits_of_rows():
    assert {bits: sum(Chain(bits).row_widths) for bits in (7, 9, 13, 24, 31, 36)} == {
        7: 37,
        9: 59,
        13: 117,
        24: 355,
        31: 575,
        36: 767,
    }
    assert [digit.bits for digit in Chain(13).digits] == [2, 1, 1, 1, 2, 2, 4]
    assert all(digit.length <= 64 for bits in range(1, WIDEST + 1) for digit in Chain(bits).digits)


@pytest.mark.parametrize("bits", [0, WIDEST + 1])
def test_no_chain_of_other_widths(bits: int):
    with pytest.raises(ValueError, match=f"1 to {WIDEST} bits, not {bits}"):
        Chain(bits)


Change = Callable[[dict[str, Words]], None]


def views(chain: Chain, a: int, b: int, blind: int | None = None) -> np.ndarray:
    """How often the client sees what, over all that it does not know: the other hashes, the blind, the lambdas."""
    halves = {digit.first + bit: digit for digit in chain.digits for bit in range(digit.bits)}
    hidden = sum(digit.length * digit.halves for digit in halves.values()) + 1 + max(0, len(chain.digits) - 2)
    coins, at = np.arange(1 << hidden, dtype=U), 0

    def take(width: int) -> Words:
        nonlocal at
        at += width
        return (coins >> U(at - width)) & U((1 << width) - 1)

    rng, known_hashes, others = fixed(9), list[Words](), list[Words]()
    for digit in halves.values():
        others.append(np.stack([take(digit.length) if half < digit.halves else take(0) for half in range(2)], axis=1))
        known_hashes.append(np.broadcast_to(rng.words(2), others[-1].shape))
    swaps = np.full_like(coins, int(rng.words(1)[0]) % (1 << chain.bits))
    chosen = [(a ^ int(swaps[0])) >> bit & 1 for bit in range(chain.bits)]
    zero = [(known, other)[bit] for known, other, bit in zip(known_hashes, others, chosen, strict=True)]
    one = [(other, known)[bit] for known, other, bit in zip(known_hashes, others, chosen, strict=True)]
    blinds = take(1) if blind is None else np.full_like(coins, blind)
    lambdas = take(max(0, len(chain.digits) - 2)) << U(1)
    rows = chain.garble(chain.server_blinds(zero, one, swaps), np.full_like(coins, b), blinds, lambdas)
    seen, place = np.zeros_like(coins), 0
    for row, width in zip(rows, chain.row_widths, strict=True):
        seen |= row << U(place)
        place += width
    return np.bincount(seen.astype(np.int64), minlength=1 << place)


@pytest.mark.parametrize("carry_in", [False, True])
@pytest.mark.parametrize("split", [(1,), (2,), (1, 1), (1, 1, 1)], indirect=True)
def test_what_the_client_sees_is_uniform(split: tuple[int, ...], carry_in: bool):
    chain = Chain(sum(split), carry_in)
    few = sum(split) < 3
    for a in range(1 << chain.bits) if few else (0, 5):
        for b in range(1 << chain.bits) if few else (2, 7):
            assert len(set(views(chain, a, b).tolist())) == 1


@pytest.mark.parametrize("split", [(2, 1), (1, 2)], indirect=True)
def test_what_the_client_sees_is_uniform_with_digits_of_several_widths(split: tuple[int, ...]):
    for b in (1, 6):
        assert len(set(views(Chain(3), 3, b).tolist())) == 1


@pytest.mark.parametrize("split", [(2,)], indirect=True)
def test_pads_that_share_their_bits_would_show_b(split: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    blinds = Chain.server_blinds

    def folded(self, zero, one, swaps):
        """As if every value took the same stretch of the hash."""
        ones = self.digits[0].ones
        return blinds(self, [(x & U(1)) * ones for x in zero], [(x & U(1)) * ones for x in one], swaps)

    monkeypatch.setattr(Chain, "server_blinds", folded)
    seen = [views(Chain(2), 1, b).tolist() for b in range(4)]
    assert any(other != seen[0] for other in seen[1:])


@pytest.mark.parametrize("split", [(1,), (1, 1)], indirect=True)
def test_a_blind_that_the_client_knows_would_show_b(split: tuple[int, ...]):
    seen = [views(Chain(sum(split)), 1, b, blind=0).tolist() for b in range(1 << sum(split))]
    assert any(other != seen[0] for other in seen[1:])
