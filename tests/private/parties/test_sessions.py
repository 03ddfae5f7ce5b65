"""A client and a server with certificates, stores and sockets: batches are made, used once, and missed with words."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support.programs import ONE_RELU as PROGRAM
from support.programs import ONE_SQUARE, TWO_RELUS, random_inputs

from deepreshape.private.errors import (
    ConfigurationMismatchError,
    LostBatchError,
    PeerAbortedError,
    ProtocolError,
    SpentError,
    StoreError,
)
from deepreshape.private.parties import sessions as party
from deepreshape.private.parties.plan import Plan
from deepreshape.private.parties.server import Model
from deepreshape.private.parties.sessions import Admit, InferenceClient, Work, serve
from deepreshape.private.parties.store import Store
from deepreshape.private.program import interpret as plain
from deepreshape.private.program.encoding import digest
from deepreshape.private.program.relu_config import ReluConfig, read_relus
from deepreshape.private.transport.certificates import create_authority, issue
from deepreshape.private.transport.handshake import Agreement, client_session
from deepreshape.private.transport.tls import Endpoint, listen


@dataclass
class Pair:
    client: InferenceClient
    endpoint: Endpoint
    door: socket.socket
    model: Model | list[Model]
    store: Store
    threads: ThreadPoolExecutor

    def served(self, admit: Admit | None = None) -> Future[int]:
        """Serve one session."""
        return self.threads.submit(
            lambda: serve(self.endpoint.accept(self.door.accept()[0]), self.model, self.store, admit),
        )


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    create_authority(tmp_path)
    plan = Plan(PROGRAM)
    with listen("127.0.0.1", 0) as door, ThreadPoolExecutor(1) as threads:
        client_endpoint = Endpoint(issue(tmp_path, "client", "c"))
        client = InferenceClient(client_endpoint, "127.0.0.1", door.getsockname()[1], plan, Store(tmp_path / "client"))
        server_endpoint = Endpoint(issue(tmp_path, "server", "s"))
        yield Pair(client, server_endpoint, door, Model(PROGRAM, plan), Store(tmp_path / "server"), threads)
        with suppress(OSError):  # who still waits for a session that never comes
            door.shutdown(socket.SHUT_RDWR)


def test_batches_are_made_ahead_and_used_once(pair: Pair) -> None:
    x = random_inputs(PROGRAM, 1, 1)
    batches = []
    for _ in range(2):
        served = pair.served()
        told: list[tuple[int, int]] = []
        batches.append(pair.client.prepare(progress=lambda *now: told.append(now)))  # noqa: B023
        assert served.result() > 0
        done, total = zip(*told, strict=True)
        assert set(total) == {pair.client.plan.offline_bytes()} == {done[-1]}
        assert list(done) == sorted(done)
    assert batches[0].batch != batches[1].batch
    with pytest.raises(ValueError, match=r"reaches 18\.125"):  # nothing is used up
        pair.client.infer(x[0] + 200)
    for _ in range(2):
        served = pair.served()
        answer = pair.client.infer(x[0])
        assert served.result() == 0
        assert np.array_equal(answer.output, plain.run(PROGRAM, x)[0])
    two = pair.served(), pair.served()  # none is left: one is made on the way
    assert np.array_equal(pair.client.infer(x[0]).output, plain.run(PROGRAM, x)[0])
    assert two[0].result() > two[1].result() == 0


def test_several_batches_take_one_session_and_what_is_stored_outlives_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = pair.served()
    batches = list(pair.client.prepare_several(3))
    assert served.result() > 0
    assert len({one.batch for one in batches}) == 3
    booked = [row for (layer, _), row in batches[-1].ledger.traffic.items() if layer]
    assert sum(row.sent + row.received for row in booked) == pair.client.plan.offline_bytes(3)
    x = random_inputs(PROGRAM, 1, 1)
    for one in reversed(batches):
        served = pair.served()
        assert np.array_equal(pair.client.infer(x[0], one.batch).output, plain.run(PROGRAM, x)[0])
        assert served.result() == 0

    monkeypatch.setattr(party, "MOST", 2)  # now in two sessions, of which the second is never served
    pair.served()
    several = pair.client.prepare_several(3)
    kept = [next(several).batch, next(several).batch]
    pair.door.close()
    with pytest.raises(ProtocolError):
        next(several)
    assert {path.name for path in (pair.client.store.folder / "fresh").iterdir()} == set(kept)


@pytest.mark.parametrize("count", [0, 17, True, "2"])
def test_a_server_agrees_to_a_sensible_number_of_batches(pair: Pair, count: object) -> None:
    served = pair.served()
    plan = pair.client.plan
    parameters = {**plan.agreed, "batches": count, "layouts": plan.laid_out}
    agreement = Agreement(digest(PROGRAM), parameters)  # type: ignore[arg-type]
    with (
        pytest.raises(ProtocolError, match="parameter batches"),
        client_session(pair.client.endpoint.connect("127.0.0.1", pair.client.port), agreement),
    ):
        pass
    with pytest.raises(ProtocolError, match="parameter batches"):
        served.result()


def test_parties_that_lay_layers_out_otherwise_part_before_they_wait(pair: Pair, monkeypatch) -> None:
    served = pair.served()
    newer, other = Plan(PROGRAM), 64 * "0"
    monkeypatch.setitem(newer.__dict__, "laid_out", other)
    pair.client = replace(pair.client, plan=newer)
    with pytest.raises(ProtocolError, match=f"parameter layouts {other} here"):
        pair.client.prepare()
    with pytest.raises(ProtocolError, match=f"parameter layouts .*{other} there"):
        served.result()


def test_a_batch_that_only_the_client_has_is_refused_and_destroyed(pair: Pair, tmp_path: Path) -> None:
    batches = []
    for _ in range(2):
        served = pair.served()
        batches.append(pair.client.prepare().batch)
        served.result()
    pair.store = Store(tmp_path / "another")
    served = pair.served()
    with pytest.raises(LostBatchError, match=f"the server has no batch {batches[0][:16]}"):
        pair.client.infer(random_inputs(PROGRAM, 1, 1)[0], batches[0])
    with pytest.raises(ProtocolError, match="offline batch"):
        served.result()
    pair.store = Store(tmp_path / "server")
    for lost in (True, False):  # the half that is left at the server is never used, whoever asks
        served = pair.served()
        with pytest.raises(SpentError) if lost else nullcontext():
            pair.client.infer(random_inputs(PROGRAM, 1, 1)[0], batches[0] if lost else batches[1])
        with pytest.raises(ProtocolError) if lost else nullcontext():
            served.result()
    served = pair.served()
    with pytest.raises(SpentError):
        pair.client.infer(random_inputs(PROGRAM, 1, 1)[0], batches[1])
    with pytest.raises(ProtocolError):
        served.result()


def test_two_queries_at_once_use_a_batch_each(pair: Pair) -> None:
    """The second is asked and answered while the first has chosen its batch, and neither party has claimed it."""
    for _ in range(2):
        served = pair.served()
        pair.client.prepare()
        served.result()
    x = random_inputs(PROGRAM, 2, 1)
    wanted = plain.run(PROGRAM, x)
    second: list[party.Answer] = []
    with ThreadPoolExecutor(1) as other:

        def ask_meanwhile(work: Work, _: int) -> None:
            assert work == "query"
            served = replace(pair, threads=other).served()
            second.append(pair.client.infer(x[1]))
            assert served.result() == 0

        served = pair.served(ask_meanwhile)
        first = pair.client.infer(x[0])
        assert served.result() == 0
    assert np.array_equal(first.output, wanted[0])
    assert np.array_equal(second[0].output, wanted[1])
    assert first.lost == second[0].lost == ()
    assert not [*(pair.client.store.folder / "fresh").iterdir(), *(pair.store.folder / "fresh").iterdir()]


@pytest.mark.parametrize("where", ["client", "server"])
@pytest.mark.parametrize("what", ["stream", "manifest", "key"])
def test_a_damaged_batch_is_left_and_the_next_one_used(pair: Pair, tmp_path: Path, what: str, where: str) -> None:
    batches = []
    for _ in range(2):
        served = pair.served()
        batches.append(pair.client.prepare().batch)
        served.result()
    folder = tmp_path / where / "fresh" / batches[0]
    if what == "stream":
        damaged = max(folder.glob("*.stream"), key=lambda path: path.stat().st_size)
        content = bytearray(damaged.read_bytes())
        content[10] ^= 1
        damaged.write_bytes(content)
    elif what == "manifest":
        (folder / "manifest.json").write_bytes(b"{}")
    else:
        (tmp_path / where / "keys" / f"{batches[0]}.key").write_bytes(b"short")
    seen = what == "stream" or where == "server"  # else the client takes the other one at once
    served = [pair.served() for _ in range(1 + seen)]
    x = random_inputs(PROGRAM, 1, 1)
    answer = pair.client.infer(x[0])
    assert np.array_equal(answer.output, plain.run(PROGRAM, x)[0])
    assert served[-1].result() == 0
    if seen:
        (why,) = answer.lost
        words = {"client": "is damaged or missing", "server": "server 's' has a damaged half of this batch"}
        assert (words[where] if what == "stream" else f"the server has no batch {batches[0][:16]}") in why
        with pytest.raises(ProtocolError) as caught:
            served[0].result()
        assert (type(caught.value) is LostBatchError) == (what == "stream" and where == "server")
    assert [*(tmp_path / "client" / "fresh").iterdir()] == ([] if seen else [folder])


def test_a_session_that_is_not_admitted_uses_nothing_up(pair: Pair) -> None:
    asked: list[tuple[Work, int]] = []

    def refuse(work: Work, count: int) -> None:
        asked.append((work, count))
        raise ProtocolError("enough")

    served = pair.served()
    batch = pair.client.prepare().batch
    served.result()
    x = random_inputs(PROGRAM, 1, 1)[0]
    for act in (lambda: list(pair.client.prepare_several(3)), lambda: pair.client.infer(x, batch)):
        served = pair.served(refuse)
        with pytest.raises(PeerAbortedError):
            act()
        with pytest.raises(ProtocolError, match="enough"):
            served.result()
    assert asked == [("prepare", 3), ("query", 1)]
    served = pair.served()
    pair.client.infer(x, batch)
    assert served.result() == 0


def test_only_what_can_go_on_is_put_up_for_admission(pair: Pair, tmp_path: Path) -> None:
    served = pair.served(pytest.fail)
    other = replace(pair.client, plan=Plan(PROGRAM, ReluConfig(garbler="client")))
    with pytest.raises(ConfigurationMismatchError, match="garbler"):
        other.prepare()
    with pytest.raises(ConfigurationMismatchError, match="garbler"):
        served.result()


def test_of_several_models_the_one_that_the_client_names_is_served(pair: Pair) -> None:
    programs = (PROGRAM, TWO_RELUS)
    several = replace(pair, model=[Model(each, Plan(each)) for each in programs])
    clients = [replace(pair.client, plan=Plan(each)) for each in programs]
    for client in clients:
        served = several.served()
        client.prepare()
        assert served.result() > 0
    for client, program in reversed(list(zip(clients, programs, strict=True))):  # each finds the batch of its program
        x = random_inputs(program, 1, 1)[0]
        served = several.served()
        assert np.array_equal(client.infer(x).output, plain.run(program, x[None])[0])
        assert served.result() == 0
    served = several.served()
    with pytest.raises(ConfigurationMismatchError, match="program"):
        replace(pair.client, plan=Plan(ONE_SQUARE.public())).prepare()
    with pytest.raises(ConfigurationMismatchError, match="program"):
        served.result()


def test_an_assignment_binds_both_parties_and_their_batches(pair: Pair) -> None:
    """A mixed list is agreed as a whole, and a batch that was made under another one is not used."""
    first, second = (Plan(TWO_RELUS, read_relus(word)) for word in ("ot:tree@1+gc-sign@1", "gc-sign@1+ot:tree@1"))
    ours = replace(pair.client, plan=first)
    pair = replace(pair, model=Model(TWO_RELUS, first))
    served = pair.served()
    batch = ours.prepare().batch
    served.result()
    other, x = replace(ours, plan=second), random_inputs(TWO_RELUS, 1, 1)[0]
    served = pair.served()
    line = r'parameter relu "gc-sign@1\+ot:tree@1" here, "ot:tree@1\+gc-sign@1" there$'
    with pytest.raises(ConfigurationMismatchError, match=line):
        other.prepare()
    with pytest.raises(ConfigurationMismatchError):
        served.result()
    pair = replace(pair, model=Model(TWO_RELUS, second))  # the server went over to it, and has the batch still
    served = pair.served()
    with pytest.raises(StoreError, match="was made for another parameters"):
        other.infer(x, batch)
    with pytest.raises(ProtocolError):
        served.result()
    served = pair.served()
    channel = ours.endpoint.connect("127.0.0.1", ours.port)
    with (
        pytest.raises(ConfigurationMismatchError, match="offline batch"),
        client_session(channel, Agreement(digest(TWO_RELUS), second.agreed, batch)),
    ):
        pass
    with pytest.raises(ConfigurationMismatchError):
        served.result()
