"""A ReLU by oblivious transfer: what it computes bit for bit, what it sends and keeps, and what each party sees."""

import hashlib
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support.two_parties import fixed

from deepreshape.private.arith.drelu import Parity, Sign, Window, Wrap
from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, Field, Ring, Words
from deepreshape.private.arith.rng import Randomness
from deepreshape.private.crypto.backend import using
from deepreshape.private.crypto.backend.numpy import Reference
from deepreshape.private.crypto.bit_fields import packed_bytes, unpack
from deepreshape.private.crypto.labels import Context, Delta, permute_bits, pick
from deepreshape.private.errors import ProtocolError
from deepreshape.private.protocols.transfers import multiplexer, sign_conversion, sign_value, transfer_relu
from deepreshape.private.protocols.transfers.transfer_relu import ChainRelu, Online, TransferRelu, TreeRelu

U = np.uint64
CONTEXT = Context(b"session", "layer", 0)


def transfers(count: int, delta: Delta, rng: Randomness) -> tuple[Words, Words]:
    """Ideal ones: labels q of zero, and r for random choices."""
    q = rng.labels(count)
    q[:, 0] &= ~U(1 << 63)
    return q, pick(q, delta.words, rng.bytes(count) & np.uint8(1))


def online(
    relu: TransferRelu, client: Online, server: Online, spoil: int | None = None
) -> tuple[list[np.ndarray], Words]:
    """The messages of both parties' online steps, of which one may be spoiled, and the server's share of the output."""
    messages: list[np.ndarray] = []
    steps = {"client": client, "server": server}
    given = {role: next(step) for role, step in steps.items()}
    for number, (sender, _) in enumerate(relu.messages):
        receiver = "client" if sender == "server" else "server"
        message = given[sender]
        assert message is not None
        assert given[receiver] is None
        messages.append(np.full_like(message, 255) if number == spoil else message)
        given[sender] = next(steps[sender], None)
        try:
            given[receiver] = steps[receiver].send(messages[-1])
        except StopIteration as end:
            return messages, end.value
    raise AssertionError("the server has no output after the last turn")


class Run:
    """Both parties on shares ``client`` and ``server`` (n,), with ideal transfers."""

    def __init__(self, relu: TransferRelu, client: Words, server: Words, mask: Words, spoil: int | None = None) -> None:
        rng, count = fixed(1), len(client)
        there, back = Delta(rng), Delta(rng)
        q, r = (labels.reshape(-1, count, 2) for labels in transfers(relu.transfers * count, there, rng))
        zero, chosen = (labels.reshape(-1, count, 2) for labels in transfers(relu.back * count, back, rng))
        self.offline, self.client_kept = relu.client_offline(client, mask, r, zero, back, CONTEXT, rng)
        offline = np.full_like(self.offline, 255) if spoil == -1 else self.offline
        self.server_kept = relu.server_offline(offline, q, there, chosen, CONTEXT, rng)
        steps = relu.client_online(self.client_kept, count), relu.server_online(self.server_kept, server)
        self.messages, self.output = online(relu, *steps, spoil)


def wanted(relu: TransferRelu, x: np.ndarray, client: Words) -> np.ndarray:
    if relu.values:
        return np.where(x > 0, 1, -1)
    modulus, sign = relu.modulus, relu.sign
    server = modulus.sub(modulus.encode(x), client)
    positive = sign.positive(sign.client_word(client), sign.server_word(server))
    return np.where(positive, relu.mux.truncation.rounded(x, client) if relu.shift else x, 0)


def room_of(relu: TransferRelu) -> int:
    return relu.sign.max_input if relu.values else min(relu.sign.max_input, relu.mux.truncation.max_input)


SMALL: list[Sign] = [
    Window(Ring(5), 0, 5),
    Window(Ring(5), 0, 2),
    Window(Ring(6), 1, 4, "pos-zero"),
    Window(Ring(6), 1, 4, "neg-pass"),
    Window(Ring(7), 2, 7, "neg-pass"),
    Parity(Field(31)),
    Wrap(Field(31), 1, "pos-zero"),
    Wrap(Field(61), 2, "neg-pass"),
    Wrap(Field(31), 0, "neg-pass"),
]


KINDS = [ChainRelu, TreeRelu]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("sign", SMALL, ids=str)
def test_every_value_and_share(sign: Sign, shift: int, kind: type[TransferRelu]):
    relu = kind(sign.modulus, shift, sign)
    room = room_of(relu)
    values, shares = np.arange(-room, room + 1), np.arange(sign.modulus.order, dtype=U)
    x, client = (np.repeat(side.ravel(), 4) for side in np.meshgrid(values, shares))
    mask = sign.modulus.random(len(x), fixed(2))
    run = Run(relu, client, sign.modulus.sub(sign.modulus.encode(x), client), mask)
    got = sign.modulus.decode(sign.modulus.add(run.output, mask))
    np.testing.assert_array_equal(got, wanted(relu, x, client))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("high", [2, 3, 6])
def test_every_sign_of_every_value_and_share(high: int, kind: type[TransferRelu]):
    relu = kind(Ring(6), 0, Window(Ring(6), 0, high), values=True)
    room = room_of(relu)
    x, client = (np.repeat(side.ravel(), 4) for side in np.meshgrid(np.arange(-room, room + 1), np.arange(64, dtype=U)))
    mask = Ring(6).random(len(x), fixed(2))
    run = Run(relu, client, Ring(6).sub(Ring(6).encode(x), client), mask)
    np.testing.assert_array_equal(Ring(6).decode(Ring(6).add(run.output, mask)), wanted(relu, x, client))


WIDE: list[tuple[Sign, int]] = [
    (Window(Ring(37), 6, 14), 12),
    (Window(Ring(37), 0, 14), 12),
    (Window(Ring(37), 12, 37, "neg-pass"), 12),
    (Window(Ring(37), 0, 37), 12),
    (Window(Ring(60), 0, 60), 20),
    (Parity(Field(CIRCA_PRIME)), 12),
    (Wrap(Field(CIRCA_PRIME), 12), 12),
    (Wrap(Field(DELPHI_PRIME), 10, "neg-pass"), 12),
]


def spread(relu: ChainRelu, count: int) -> np.ndarray:
    """Values in range: many near zero, the extremes, and powers of two beside which tests change their minds."""
    room = room_of(relu)
    draws = np.random.default_rng(3)
    edges = [power + step for power in (0, 1 << relu.shift, room - 1) for step in (-1, 0, 1)]
    x = np.concatenate([edges, np.negative(edges), draws.integers(1 - room, room, count)])
    x[20 : count // 2] = draws.integers(-5000, 5000, count // 2 - 20)
    return np.clip(x, 1 - room, room - 1)[:count]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sign", "shift"), WIDE, ids=str)
def test_wide_values_bytes_and_what_is_kept(sign: Sign, shift: int, kind: type[TransferRelu]):
    relu, count = kind(sign.modulus, shift, sign), 1001
    x = spread(relu, count)
    client, mask = (sign.modulus.random(count, fixed(seed)) for seed in (4, 5))
    server = sign.modulus.sub(sign.modulus.encode(x), client)
    run = Run(relu, client, server, mask)
    got = sign.modulus.decode(sign.modulus.add(run.output, mask))
    np.testing.assert_array_equal(got, wanted(relu, x, client))
    kept = [(run.client_kept, relu.client_widths), (run.server_kept, relu.server_widths)]
    sent = [(message, widths) for message, (_, widths) in zip(run.messages, relu.messages, strict=True)]
    for message, widths in [(run.offline, relu.offline_widths), *kept, *sent]:
        assert message.size == packed_bytes(widths, count)
    other = Run(relu, server, client, mask)  # other inputs, the same lengths
    assert [message.size for message in other.messages] == [message.size for message in run.messages]


BYTES: list[tuple[TransferRelu, float, float, float, int]] = [
    (ChainRelu(Ring(37), 12, Window(Ring(37), 6, 14)), 5.625, 17.0, 37.5, 2),
    (ChainRelu(Ring(37), 12, Window(Ring(37), 0, 14)), 6.375, 27.0, 58.25, 2),
    (ChainRelu(Ring(37), 12, Window(Ring(37), 0, 37)), 9.25, 108.25, 230.125, 2),
    (TreeRelu(Ring(37), 12, Window(Ring(37), 0, 37)), 9.25, 35.0, 85.875, 8),
    (TreeRelu(Ring(37), 12, Window(Ring(37), 0, 14)), 6.375, 19.875, 48.125, 6),
    (ChainRelu(Ring(37), 0, Window(Ring(37), 0, 11), values=True), 5.875, 13.625, 30.75, 2),
    (TreeRelu(Ring(37), 0, Window(Ring(37), 0, 11), values=True), 5.875, 10.0, 27.625, 6),
]


@pytest.mark.parametrize(("relu", "offline", "online", "kept", "messages"), BYTES, ids=str)
def test_bytes_of_a_relu(relu: TransferRelu, offline: float, online: float, kept: float, messages: int):
    assert sum(relu.offline_widths) / 8 == offline
    assert sum(sum(widths) for _, widths in relu.messages) / 8 == online
    assert (sum(relu.client_widths) + sum(relu.server_widths)) / 8 == kept
    assert len(relu.messages) == messages


GOLDEN: dict[type[TransferRelu], str] = {ChainRelu: "776e63572da68785", TreeRelu: "d61276397df04d90"}
"""Of all messages: a change to one is a change of the wire, which parties must agree on."""


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_send_the_same_bytes_and_these(kind: type[TransferRelu]):
    relu, x = kind(Ring(37), 12, Window(Ring(37), 6, 14)), np.arange(-500, 500)
    client, mask = (Ring(37).random(1000, fixed(seed)) for seed in (4, 5))
    server = Ring(37).sub(Ring(37).encode(x), client)
    runs = [Run(relu, client, server, mask)]
    with using(Reference()):
        runs.append(Run(relu, client, server, mask))
    digests = {hashlib.sha256(b"".join(map(bytes, [run.offline, *run.messages]))).hexdigest()[:16] for run in runs}
    assert digests == {GOLDEN[kind]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", ["offline", "first", "last"])
def test_what_is_no_element_is_refused(at: str, kind: type[TransferRelu]):
    relu, shares = kind(Field(31), 2, Parity(Field(31))), Field(31).random(8, fixed(1))
    sign = kind(Field(31), 0, Parity(Field(31)), values=True)
    spoil = {"offline": -1, "first": 0, "last": len(relu.messages) - 1}[at]
    if at != "first":  # of signs it has nothing but bits
        with pytest.raises(ProtocolError, match="not an element of"):
            Run(sign, shares, shares, shares, spoil)
    with pytest.raises(ProtocolError, match=r"not an element of Field\(prime=31\)"):
        Run(relu, shares, shares, shares, spoil)


def test_a_batch_is_prepared_once_under_one_delta():
    relu, rng = ChainRelu(Ring(8), 2, Window(Ring(8), 0, 8)), fixed(1)
    delta, shares = Delta(rng), Ring(8).random(4, rng)
    labels, zero = rng.labels(4 * relu.transfers).reshape(-1, 4, 2), rng.labels(4).reshape(1, 4, 2)
    offline, _ = relu.client_offline(shares, shares, labels, zero, delta, CONTEXT, rng)
    with pytest.raises(RuntimeError, match="before under this Delta"):
        relu.client_offline(shares, shares, labels, zero, delta, CONTEXT, rng)
    other = Delta(rng)
    relu.server_offline(offline, labels, other, zero, CONTEXT, rng)
    with pytest.raises(RuntimeError, match="before under this Delta"):
        relu.server_offline(offline, labels, other, zero, CONTEXT, rng)


class Coins:
    """All values of ``hidden`` bits at once, handed out some bits at a time; element i of an array is case i."""

    def __init__(self, hidden: int) -> None:
        self.cases, self._at = np.arange(1 << hidden, dtype=U), 0

    def __call__(self, bits: int) -> Words:
        self._at += bits
        return (self.cases >> U(self._at - bits)) & U((1 << bits) - 1)


class Drawn(Randomness):
    """Gives these bits."""

    def __init__(self, bits: Words) -> None:
        self._bits = bits

    def bytes(self, count: int) -> np.ndarray:
        return self._bits.astype(np.uint8)


class Views:
    """What one party sees over all that it does not know, with an ideal hash: a table by use, column and label."""

    def __init__(self, relu: ChainRelu, monkeypatch: pytest.MonkeyPatch) -> None:
        self.relu, self._patch = relu, monkeypatch
        self.table: dict[tuple[str, int, int], Words] = {}
        monkeypatch.setattr(transfer_relu, "_hashed", self._hashed)
        for module in (multiplexer, sign_conversion, sign_value):
            monkeypatch.setattr(module, "derive_blinds", self._blinds)

    def _hashed(self, labels: Words, context: Context, tweak: str, delta: Words | None = None) -> list[Words]:
        moved = labels if delta is None else labels ^ delta
        return [self._pair(("choices", column, 0), label) for column, label in enumerate(moved)]

    def _pair(self, use: tuple[str, int, int], labels: Words) -> Words:
        words = [self.table[(use[0], use[1], bit)] for bit in (0, 1)]
        chosen = np.where(permute_bits(labels) == 1, words[1], words[0])
        return np.stack([chosen & U(0xFFFFFFFF), chosen >> U(32)], axis=1)

    def _blinds(self, labels: Words, context: Context, tweak: str, modulus: object) -> Words:
        return np.where(permute_bits(labels) == 1, self.table[(tweak, 0, 1)], self.table[(tweak, 0, 0)])

    def labels(self, bits: Words) -> Words:
        """Labels of these permute bits."""
        words = np.zeros((len(bits), 2), U)
        words[:, 0] = bits << U(63)
        return words

    def client(self, x_client: int, x_server: int, seed: int, know_t: bool = False) -> np.ndarray:
        """Rows, M2 and M1, over the pads it did not choose, and t."""
        relu, rng = self.relu, fixed(seed)
        widths = {("choices", digit.first + bit): digit for digit in relu.carry.digits for bit in range(digit.bits)}
        sizes: dict[tuple[str, int], int] = {key: digit.length for key, digit in widths.items()}
        if not relu.values:
            sizes |= {(multiplexer.KAPPA, 0): relu.modulus.bits}
        if relu.shift:
            sizes |= {(multiplexer.HALF, 0): relu.mux.truncation.message.bits}
        halves = {key: digit.halves for key, digit in widths.items()}
        coins = Coins(sum(size * halves.get(key, 1) for key, size in sizes.items()) + 1)
        colours = [int(bit) & 1 for bit in rng.bytes(relu.transfers)]
        for number, (key, size) in enumerate(sizes.items()):
            for bit in (0, 1):
                parts = [int(rng.words(1)[0]) % (1 << size) for _ in range(2)]
                if bit != colours[number]:
                    parts = [coins(size) if half < halves.get(key, 1) else U(0) for half in range(2)]
                self.table[(*key, bit)] = (U(parts[0]) | U(parts[1]) << U(32)) + coins.cases * U(0)
        for tweak in (multiplexer.BACK, multiplexer.BACK_WRAP, sign_value.VALUE):
            for bit in (0, 1):
                self.table[(tweak, 0, bit)] = np.full_like(coins.cases, int(rng.words(1)[0]) % 2)
        choice = coins(1) & U(not know_t)
        nothing = np.zeros_like(coins.cases)
        run = self._run(coins, x_client, x_server, nothing, np.array(colours, U), choice, nothing)
        return self._counted(run.rows, relu.messages[0][1], len(coins.cases))

    def server(self, x_client: int, x_server: int, seed: int, spoiled_kappa: bool = False) -> np.ndarray:
        """All of the client's two messages, over its choices and bits, the pads that t did not choose, and r."""
        relu, rng = self.relu, fixed(seed)
        group = relu.mux.truncation.message.bits if relu.shift else 0
        coins = Coins(relu.transfers + 2 * relu.modulus.bits + group + relu.values)
        for column in range(relu.carry.bits):
            for bit in (0, 1):
                self.table[("choices", column, bit)] = coins.cases * U(0) + rng.words(1)[0]
        bits = {multiplexer.KAPPA: relu.modulus.bits, multiplexer.HALF: group}
        for tweak, size in bits.items():
            for bit in (0, 1):
                self.table[(tweak, 0, bit)] = coins.cases * U(0) + rng.words(1)[0] % U(1 << size)
        choice = int(rng.bytes(1)[0]) & 1
        back = {multiplexer.BACK: relu.modulus.bits, multiplexer.BACK_WRAP: group}
        for tweak, size in ({sign_value.VALUE: relu.modulus.bits} if relu.values else back).items():
            self.table[(tweak, 0, choice)] = coins.cases * U(0) + rng.words(1)[0] % U(1 << size)
            self.table[(tweak, 0, 1 - choice)] = coins(size)
        colours = np.stack([coins(1) for _ in range(relu.transfers)])
        if spoiled_kappa and not relu.values:
            colours[relu.carry.bits] = colours[0]
        mask = coins(relu.modulus.bits)
        kappa = coins(1) if relu.values else mask
        kappa = mask & U(1) if spoiled_kappa else kappa
        run = self._run(coins, x_client, x_server, mask, colours, np.full_like(coins.cases, choice), kappa)
        first = self._bits(run.offline, relu.offline_widths, len(coins.cases))
        last = self._bits(run.answer, relu.conversion.answer_widths, len(coins.cases))
        return np.bincount((first | last << U(sum(relu.offline_widths))).astype(np.int64))

    def _run(
        self, coins: Coins, x_client: int, x_server: int, mask: Words, colours: Words, choice: Words, kappa: Words
    ) -> "Parts":
        relu, ones = self.relu, np.ones_like(coins.cases)
        there, back = Delta(fixed(1)), Delta(fixed(2))
        for delta in (there, back):
            delta.words[:] = 1 << 63, 0
        count, zeros = len(ones), self.labels(ones * U(0))
        r = np.stack([self.labels(colour + ones * U(0)) for colour in colours])
        q = np.broadcast_to(zeros, r.shape).copy()
        parts = Parts()
        parts.offline, kept = relu.client_offline(ones * U(x_client), mask, r, zeros[None], back, CONTEXT, Drawn(kappa))
        chosen = self.labels(choice)[None]
        server = relu.server_offline(parts.offline, q, there, chosen, CONTEXT, fixed(3))  # no lambda is drawn here
        steps = relu.client_online(kept, count), relu.server_online(server, ones * U(x_server))
        (parts.rows, parts.answer), output = online(relu, *steps)
        output = relu.modulus.add(output, mask)
        x = relu.modulus.decode(relu.modulus.add(np.array([x_client], U), np.array([x_server], U)))
        if abs(int(x[0])) <= room_of(relu):
            assert set(relu.modulus.decode(output).tolist()) == set(wanted(relu, x, np.array([x_client], U)).tolist())
        return parts

    def _counted(self, message: np.ndarray, widths: list[int], count: int) -> np.ndarray:
        return np.bincount(self._bits(message, widths, count).astype(np.int64), minlength=1 << sum(widths))

    def _bits(self, message: np.ndarray, widths: list[int], count: int) -> Words:
        seen, at = np.zeros(count, U), 0
        for values, width in zip(unpack(message, widths, count), widths, strict=True):
            seen |= values << U(at)
            at += width
        return seen


class Parts:
    offline: np.ndarray
    rows: np.ndarray
    answer: np.ndarray


def relus() -> Iterator[ChainRelu]:
    for sign, shift in itertools.product([Window(Ring(3), 0, 2), Window(Ring(3), 0, 3), Window(Ring(4), 1, 3)], [0, 1]):
        if shift <= sign.modulus.bits - 3:
            yield ChainRelu(sign.modulus, shift, sign)
    yield ChainRelu(Ring(4), 1, Window(Ring(4), 1, 4, "neg-pass"))
    for high in (2, 3):
        yield ChainRelu(Ring(4), 0, Window(Ring(4), 0, high), values=True)


@pytest.mark.parametrize("relu", list(relus()), ids=str)
def test_what_the_client_sees_is_uniform(relu: ChainRelu, monkeypatch: pytest.MonkeyPatch):
    views = Views(relu, monkeypatch)
    for x_client in range(0, relu.modulus.order, 3):
        for x_server in range(relu.modulus.order)[:: 1 if relu.carry.bits == 1 else 5]:
            assert len(set(views.client(x_client, x_server, x_client + 1).tolist())) == 1


@pytest.mark.parametrize("relu", list(relus()), ids=str)
def test_what_the_server_sees_is_uniform(relu: ChainRelu, monkeypatch: pytest.MonkeyPatch):
    views = Views(relu, monkeypatch)
    for x_server in range(0, relu.modulus.order, 3):
        for x_client in range(relu.modulus.order)[::3]:
            seen = views.server(x_client, x_server, x_server + 1)
            assert seen.size == 1 << sum(relu.offline_widths) + sum(relu.conversion.answer_widths)
            assert len(set(seen.tolist())) == 1


Spoil = Callable[[Views], list[np.ndarray]]
CONTROLS: dict[str, Spoil] = {
    "t that the client knows": lambda views: [views.client(1, x, 1, know_t=True) for x in range(8)],
    "kappa of a corrected transfer, or of r": lambda views: [
        views.server(x, 1, 1, spoiled_kappa=True) for x in range(views.relu.modulus.order)
    ],
}


@pytest.mark.parametrize("values", [False, True], ids=["relu", "sign"])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_spoiled_protocol_would_show_it(name: str, values: bool, monkeypatch: pytest.MonkeyPatch):
    seen = CONTROLS[name](Views(ChainRelu(Ring(3), 0, Window(Ring(3), 0, 2), values), monkeypatch))
    assert any(other.tolist() != seen[0].tolist() for other in seen[1:])


def test_one_hash_for_both_messages_would_show_it(monkeypatch: pytest.MonkeyPatch):
    views = Views(ChainRelu(Ring(4), 1, Window(Ring(4), 1, 3)), monkeypatch)
    blinds = views._blinds

    def shared(labels: Words, context: Context, tweak: str, modulus: object) -> Words:
        if tweak != multiplexer.BACK_WRAP:
            return blinds(labels, context, tweak, modulus)
        return blinds(labels, context, multiplexer.BACK, modulus) & U(3)

    for module in (multiplexer, sign_conversion):
        monkeypatch.setattr(module, "derive_blinds", shared)
    seen = [views.server(x, 3, 1) for x in range(16)]
    assert any(other.tolist() != seen[0].tolist() for other in seen[1:])
