"""The carry tree: right for all small words and many wide ones, and what either party sees is uniform."""

from typing import Literal

import numpy as np
import pytest
from support.two_parties import fixed

from deepreshape.private.arith.ring import Bits, Words
from deepreshape.private.protocols.transfers.carry_tree import Tree, Walk, planes, unpacked

U = np.uint64


class Coins:
    """Planes of random bits, or of all values of so many bits."""

    def __init__(self, count: int, hidden: int | None = None) -> None:
        self.count, self._rng, self._at = count, fixed(count % 200), 0
        self._cases = None if hidden is None else np.arange(count, dtype=U)

    def known(self, number: int) -> Bits:
        """Planes that stay the same for every case, where all cases are enumerated; else random."""
        if self._cases is None:
            return self.hidden(number)
        bits = self._rng.bytes(number) & np.uint8(1)
        return np.stack([np.full(-(-self.count // 8), 255 * bit, np.uint8) for bit in bits]) if number else self._none

    def hidden(self, number: int) -> Bits:
        size = -(-self.count // 8)
        if self._cases is None or not number:
            return self._rng.bytes(number * size).reshape(number, size)
        self._at += number
        return planes(self._cases >> U(self._at - number), number)

    @property
    def _none(self) -> Bits:
        return np.empty((0, -(-self.count // 8)), np.uint8)


Repeated = Literal["", "pad", "triple"]
"""What is used for two messages: a plane of a hash for two rows, a triple for two ANDs."""


def run(
    tree: Tree, a: Words, b: Words, watcher_coins: Coins, other_coins: Coins, seen_by: str = "", repeated: Repeated = ""
) -> tuple[Words, list[Bits]]:
    """The carry, and all planes that the client or the server sees.

    Pads and triples are ideal: ``watcher_coins`` makes what the watching party knows of them, ``other_coins`` the rest.
    """
    a_planes, b_planes, rows = planes(a, tree.bits), planes(b, tree.bits), len(tree.row_bits)
    if seen_by == "server":  # it knows both pads
        zero, one = watcher_coins.known(rows), watcher_coins.known(rows)
        own_pads = zero ^ ((zero ^ one) & a_planes[tree.row_bits])
    else:
        own_pads, others, chosen = watcher_coins.known(rows), other_coins.hidden(rows), a_planes[tree.row_bits]
        zero, one = own_pads ^ ((own_pads ^ others) & chosen), own_pads ^ ((own_pads ^ others) & ~chosen)
    triples: list[list[Bits]] = [[], []]
    watching = 1 if seen_by == "server" else 0
    for width in tree.ands:
        share = [watcher_coins.known(1 + 2 * width), None]
        alpha, beta = other_coins.hidden(1), other_coins.hidden(width)
        product = (share[0][:1] ^ alpha) & (share[0][1 : 1 + width] ^ beta)
        share[1] = np.concatenate([alpha, beta, product ^ share[0][1 + width :]])
        triples[watching].append(share[0])
        triples[1 - watching].append(share[1])
    client_triples, server_triples = (np.concatenate(part) if part else watcher_coins.known(0) for part in triples)
    if repeated == "pad":
        for pads in (zero, one, own_pads):
            pads[1] = pads[0]
    if repeated == "triple":
        for part in (client_triples, server_triples):
            part[3:6] = part[:3]
    sent, server_shares = tree.send(b_planes, zero, one)
    server = Walk(tree, server_shares, server_triples, False)
    client = Walk(tree, tree.receive(a_planes, sent, own_pads), client_triples, True)
    seen = {"client": [sent], "server": []}
    for level in range(len(tree.levels)):
        up, down = client.open(), server.open()
        assert len(up) == len(down) == tree.opened(level)
        seen["client"].append(down)
        seen["server"].append(up)
        client.close(down)
        server.close(up)
    return unpacked(client.carry ^ server.carry, len(a)), seen.get(seen_by, [])


@pytest.mark.parametrize("carry_in", [False, True])
@pytest.mark.parametrize("bits", range(1, 7))
def test_all_words_of_few_bits(bits: int, carry_in: bool):
    a, b = (np.repeat(side, 8) for side in divmod(np.arange(4**bits, dtype=U), U(1 << bits)))
    got, _ = run(Tree(bits, carry_in), a, b, Coins(len(a)), Coins(len(a)))
    np.testing.assert_array_equal(got, (a + b + U(carry_in)) >> U(bits))


@pytest.mark.parametrize("carry_in", [False, True])
@pytest.mark.parametrize("bits", [7, 13, 23, 31, 36, 41, 59])
def test_wide_words(bits: int, carry_in: bool):
    rng, most = fixed(bits), U((1 << bits) - 1)
    a, b = rng.words(4000) & most, rng.words(4000) & most
    b[:500] = most - a[:500]
    b[500:1000] = (most - a[500:1000] + U(1)) & most
    b[1000:1200], a[1100:1300] = most, most
    got, _ = run(Tree(bits, carry_in), a, b, Coins(4000), Coins(4000))
    np.testing.assert_array_equal(got, ((a + b + U(carry_in)) >> U(bits)) & U(1))


def test_bits_of_an_exact_sign_of_37_bits():
    tree = Tree(36)
    assert (len(tree.row_bits), len(tree.ands), len(tree.levels)) == (88, 17, 5)
    assert sum(2 * tree.opened(level) for level in range(5)) == 92


def views(tree: Tree, a: int, b: int, party: str, repeated: Repeated = "") -> list[int]:
    """How often a party sees each of all views, over all that it does not know."""
    hidden = sum(1 + width for width in tree.ands) + (len(tree.row_bits) if party == "client" else 0)
    words = [np.full(1 << hidden, word, U) for word in (a, b)]
    coins = Coins(1 << hidden, hidden), Coins(1 << hidden, hidden)
    _, seen = run(tree, *words, *coins, party, repeated)
    planes_seen = [plane for part in seen for plane in part]
    view = np.zeros(1 << hidden, U)
    for at, plane in enumerate(planes_seen):
        view |= unpacked(plane, 1 << hidden) << U(at)
    return np.bincount(view.astype(np.int64), minlength=1 << len(planes_seen)).tolist()


@pytest.mark.parametrize("carry_in", [False, True])
@pytest.mark.parametrize(
    ("bits", "party"), [(1, "client"), (2, "client"), (3, "client"), (4, "client"), (3, "server"), (4, "server")]
)
def test_what_either_party_sees_is_uniform(bits: int, party: str, carry_in: bool):
    for a in range(1 << bits):
        for b in range(1 << bits):
            assert len(set(views(Tree(bits, carry_in), a, b, party))) == 1


@pytest.mark.parametrize("party", ["client", "server"])
def test_what_either_party_sees_is_uniform_over_two_levels(party: str):
    for a, b in ((0, 0), (0, 21), (10, 21), (21, 10), (31, 31)):
        assert len(set(views(Tree(5), a, b, party))) == 1


@pytest.mark.parametrize(
    ("bits", "party", "repeated"), [(2, "client", "pad"), (5, "client", "triple"), (5, "server", "triple")]
)
def test_a_pad_or_a_triple_that_is_used_twice_would_show_the_others_word(bits: int, party: str, repeated: Repeated):
    known = 0 if party == "client" else 21 % (1 << bits)
    words = [(known, other) if party == "client" else (other, known) for other in range(1 << bits)]
    seen = [views(Tree(bits), a, b, party, repeated) for a, b in words]
    assert any(other != seen[0] for other in seen[1:])


@pytest.mark.parametrize("carry_in", [False, True])
def test_a_pair_is_what_two_single_bits_and_an_and_would_be(carry_in: bool):
    """The formulas of the module, against generate and propagate as they are defined."""
    cases = np.arange(1 << 12, dtype=U)
    bits = [cases >> U(at) & U(1) for at in range(12)]
    a, b, pads = bits[0] | bits[1] << U(1), bits[2] | bits[3] << U(1), bits[4:]
    for first in (0, 2):  # the lowest pair, and one above it, which has a p
        tree = Tree(first + 2, carry_in)
        rows = tree.row_bits
        a_planes, b_planes = planes(a << U(first), first + 2), planes(b << U(first), first + 2)
        zero = np.stack([planes(pads[(3 * at + first) % 8], 1)[0] for at in range(len(rows))])
        one = np.stack([planes(pads[(3 * at + 1) % 8], 1)[0] for at in range(len(rows))])
        sent, server = tree.send(b_planes, zero, one)
        client = tree.receive(a_planes, sent, zero ^ ((zero ^ one) & a_planes[rows]))
        (ours, through), (theirs, other) = server[-1], client[-1]
        total = a + b + U(carry_in and not first)
        np.testing.assert_array_equal(unpacked(ours ^ theirs, 1 << 12), total >> U(2))
        assert (through is None) == (other is None) == (not first)
        if through is not None and other is not None:
            np.testing.assert_array_equal(unpacked(through ^ other, 1 << 12), (a ^ b) == U(3))
