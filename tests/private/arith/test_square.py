"""Squares of shared values: exact distributions, the range's edge, and what each party sees, by enumeration."""

from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from deepreshape.private.arith.ring import Ring, Words
from deepreshape.private.arith.square import Squaring

RNG = np.random.default_rng(0)


def words(*values: np.ndarray | int) -> list[Words]:
    return [np.asarray(value, np.uint64) for value in values]


def every(shares: int, parts: int) -> tuple[Words, Words]:
    """All pairs of a client's share and a server's t."""
    first, second = np.meshgrid(*words(np.arange(shares), np.arange(parts)))
    return first.ravel(), second.ravel()


def squared(squaring: Squaring, client: Words, server: Words, secrets: dict[str, Words]) -> dict[str, Words]:
    """All that both parties compute, from u, t, rho, both Qs and r."""
    blind, part, rho = secrets["u"], secrets["t"], secrets["rho"]
    client_root, server_root = squaring.client_root(client), squaring.server_root(server)
    v = (client_root * blind - part) & np.uint64((1 << squaring.product) - 1)
    delta = squaring.delta(server_root, blind)
    share, half = squaring.server_square(server_root, part)
    d = half ^ rho.astype(np.uint8)
    coins = squaring.client_product(client_root, v, delta)
    client_square, low = squaring.client_square(client_root, coins)
    zero, one = (np.where(d == choice, secrets["q0"], secrets["q1"]) for choice in (0, 1))
    e, msg = squaring.answer(client_square, low, zero, one, secrets["r"])
    known = np.where(rho == 0, secrets["q0"], secrets["q1"])
    out = squaring.result(share, half, known, e, msg)
    return {"v": v, "delta": delta, "d": d, "e": e, "msg": msg, "known": known, "out": out, "coins": coins}


def drawn(squaring: Squaring, count: int) -> dict[str, Words]:
    sizes = {"u": squaring.product, "t": squaring.product, "rho": 1, "q0": squaring.message, "q1": squaring.message}
    return {
        name: RNG.integers(0, 1 << bits, count, np.uint64)
        for name, bits in (sizes | {"r": squaring.modulus.bits}).items()
    }


def opened(squaring: Squaring, result: dict[str, Words], r: Words) -> np.ndarray:
    return squaring.modulus.decode(squaring.modulus.add(result["out"], r))


def expected(squaring: Squaring, x: int) -> dict[int, Fraction]:
    """The distribution that the docstring promises."""
    chance = Fraction(x % (1 << squaring.before), 1 << squaring.before)
    values: Counter[int] = Counter()
    for z, first in (x >> squaring.before, 1 - chance), ((x >> squaring.before) + 1, chance):
        second = Fraction(z * z % (1 << squaring.after), 1 << squaring.after)
        values[z * z >> squaring.after] += first * (1 - second)  # pyright: ignore[reportArgumentType]
        values[(z * z >> squaring.after) + 1] += first * second  # pyright: ignore[reportArgumentType]
    return {value: chance for value, chance in values.items() if chance}  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(("bits", "before", "after"), [(8, 2, 2), (8, 0, 3), (8, 3, 0), (8, 1, 1), (9, 2, 3)])
def test_the_distribution_is_exact_over_all_shares(bits: int, before: int, after: int):
    squaring = Squaring(Ring(bits), before, after)
    client, part = (
        grid.ravel() for grid in np.meshgrid(*words(np.arange(1 << bits), np.arange(1 << squaring.product)))
    )
    for x in range(-squaring.limit, squaring.limit + 1):
        secrets = drawn(squaring, client.size) | {"t": part}
        server = squaring.modulus.sub(np.full_like(client, x % (1 << bits)), client)
        seen = squared(squaring, client, server, secrets)
        y = opened(squaring, seen, secrets["r"])
        assert np.array_equal(y, squaring.rounded(np.full(client.size, x), client, seen["coins"]))
        values, counts = np.unique(y, return_counts=True)
        shares = {int(value): Fraction(int(count), client.size) for value, count in zip(values, counts, strict=True)}
        assert shares == expected(squaring, x), x


@pytest.mark.parametrize(("bits", "before", "after"), [(31, 7, 10), (37, 12, 9), (48, 12, 12), (62, 20, 11)])
def test_at_full_width_it_is_one_of_four_values(bits: int, before: int, after: int):
    squaring = Squaring(Ring(bits), before, after)
    x = RNG.integers(-squaring.limit, squaring.limit, 20_000, endpoint=True)
    x[:4] = squaring.limit, -squaring.limit, 0, 1
    client = RNG.integers(0, 1 << bits, x.size, np.uint64)
    secrets = drawn(squaring, x.size)
    server = squaring.modulus.sub(squaring.modulus.encode(x), client)
    seen = squared(squaring, client, server, secrets)
    y = opened(squaring, seen, secrets["r"])
    assert np.array_equal(y, squaring.rounded(x, client, seen["coins"]))
    for one, value in zip(x[:500].tolist(), y[:500].tolist(), strict=True):
        assert value in expected(squaring, one)


def test_right_up_to_the_limit_and_not_beyond():
    squaring = Squaring(Ring(9), 2, 2)
    client, part = every(512, 64)
    beyond = squaring.limit + 1
    for x, right in (squaring.limit, True), (-squaring.limit, True), (beyond, False), (-beyond, False):
        secrets = drawn(squaring, client.size) | {"t": part}
        server = squaring.modulus.sub(np.full_like(client, x % 512), client)
        y = opened(squaring, squared(squaring, client, server, secrets), secrets["r"])
        wrong = set(y.tolist()) - set(expected(squaring, x))
        assert (not wrong) == right
        assert {value + (1 << squaring.rest) for value in wrong} <= set(expected(squaring, x))
    with pytest.raises(OverflowError, match=f"{beyond} is beyond {squaring.limit}"):
        squaring.rounded(np.array([beyond]), *words([0], [0]))


def views(squaring: Squaring, *, short: bool = False) -> tuple[dict, dict]:
    """By input pair, how often each view of the client and of the server (without msg) occurs, over all randomness.

    ``short`` draws u from half of its range: what must not be done.
    """
    blinds = 1 << (squaring.product - short)
    ranges = range(blinds), range(1 << squaring.product), range(2), *[range(1 << squaring.message)] * 2
    grid = np.array(list(product(*ranges)), np.uint64).T
    secrets = dict(zip(("u", "t", "rho", "q0", "q1"), grid, strict=True))
    clients: dict[tuple[int, int], Counter] = {}
    servers: dict[tuple[int, int], Counter] = {}
    for client, server in product(range(1 << squaring.modulus.bits), repeat=2):
        client_share, server_share = words(np.full(grid.shape[1], client), np.full(grid.shape[1], server))
        # a fixed r for each pair of inputs: msg is then a function of the result and of the rest
        r = np.full(grid.shape[1], RNG.integers(1 << squaring.modulus.bits), np.uint64)
        seen = squared(squaring, client_share, server_share, secrets | {"r": r})
        client_view = zip(seen["v"], secrets["q0"], secrets["q1"], seen["delta"], seen["d"], strict=True)
        server_view = zip(secrets["u"], secrets["t"], secrets["rho"], seen["known"], seen["e"], strict=True)
        clients[client, server] = Counter((*map(int, view),) for view in client_view)
        servers[client, server] = Counter((*map(int, view),) for view in server_view)
    return clients, servers


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)])
def test_what_each_party_sees_is_uniform_whatever_the_other_holds(before: int, after: int):
    clients, servers = views(Squaring(Ring(4), before, after))
    for (client, _), view in clients.items():
        assert view == clients[client, 0]
        assert len(set(view.values())) == 1
    for (_, server), view in servers.items():
        assert view == servers[0, server]
        assert len(set(view.values())) == 1


def test_a_blind_of_one_bit_less_would_be_seen():
    clients, _ = views(Squaring(Ring(4), 0, 1), short=True)
    assert any(view != clients[client, 0] for (client, _), view in clients.items())


@pytest.mark.parametrize(("before", "after"), [(0, 0), (-1, 3), (3, -1), (3, 3)])
def test_shifts_that_leave_no_room_are_refused(before: int, after: int):
    with pytest.raises(ValueError, match=f"together 1 to 5, not {before} and {after}"):
        Squaring(Ring(8), before, after)
