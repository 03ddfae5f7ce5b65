"""CKKS between two processes over TLS: one upload of keys, then one ciphertext up and one down."""

from pathlib import Path

import numpy as np
import pytest
from support.ckks import INPUT_SHAPE, ServedCircuit, computed, served_circuit, single

from deepreshape.engines.ckks import wire
from deepreshape.engines.ckks.circuit import compiled
from deepreshape.engines.ckks.exchange import upload_bytes
from deepreshape.engines.ckks.remote import MOST_CIPHERTEXTS, Remote, _agreement, read_client, write_client
from deepreshape.engines.ckks.scheme import Holder, Scheme
from deepreshape.private.errors import ConfigurationMismatchError, ConnectionLostError, PeerAbortedError, ProtocolError
from deepreshape.private.service.bundle import Facts
from deepreshape.private.transport.channel import Frame
from deepreshape.private.transport.handshake import client_session

CIRCUIT = compiled(single(), INPUT_SHAPE)
PUBLIC = CIRCUIT.public
EACH = wire.key_bytes(Scheme(PUBLIC.parameters))
IMAGES = np.random.default_rng(5).normal(size=(2, *INPUT_SHAPE))
WANTED = np.stack([computed(single(), image) for image in IMAGES])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with served_circuit(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def holder() -> Holder:
    return Holder(Scheme(PUBLIC.parameters))


class CutError(Exception):
    """In place of a cut line."""


def test_keys_go_up_once_and_a_cut_upload_goes_on(server: ServedCircuit, holder: Holder):
    remote = server.remote("alice")

    def cut(done: int, _: int) -> None:
        if done >= 2 * EACH:
            raise CutError

    with pytest.raises(CutError):
        remote.predict(holder, list(IMAGES), cut)
    assert "alice" in server.line()
    told: list[tuple[int, int]] = []
    replies = remote.predict(holder, list(IMAGES), lambda *at: told.append(at))
    left = upload_bytes(PUBLIC) - 2 * EACH
    assert told[0] == (0, left)
    assert told[-1] == (left, left)
    assert replies.sent["keys"] == left
    assert np.abs(replies.outputs - WANTED).max() < 0.01
    again = remote.predict(holder, list(IMAGES))
    assert again.sent == {
        "keys": 0,
        "up": 2 * wire.fresh_bytes(holder.scheme),
        "down": 2 * wire.answer_bytes(holder.scheme),
    }
    assert np.abs(again.outputs - WANTED).max() < 0.01
    assert [server.line().rpartition(": ")[2] for _ in range(2)] == ["answered 2 queries"] * 2


def test_keys_are_one_clients_and_go_when_it_says_so(server: ServedCircuit, holder: Holder):
    bob, carol = server.remote("bob"), server.remote("carol")
    assert bob.predict(holder, []).sent["keys"] == upload_bytes(PUBLIC)
    assert bob.predict(holder, []).sent["keys"] == 0
    assert carol.predict(holder, []).sent["keys"] == upload_bytes(PUBLIC)
    carol.forget()
    assert bob.predict(holder, []).sent["keys"] == 0
    assert carol.predict(holder, []).sent["keys"] == upload_bytes(PUBLIC)
    for _ in range(6):
        server.line()


def test_another_network_is_refused_before_a_key_is_sent(server: ServedCircuit):
    other = compiled(single(1), INPUT_SHAPE).public
    with pytest.raises(ConfigurationMismatchError, match="program digest") as refused:
        server.remote("dave", other).predict(Holder(Scheme(other.parameters)), list(IMAGES))
    assert refused.value.differing == {"program digest"}
    assert "program digest" in server.line()


def send_ones(remote: Remote, nbytes: int) -> None:
    channel = remote.endpoint.connect(remote.host, remote.port)
    with client_session(channel, _agreement(PUBLIC)):
        channel.send(Frame.READY, b"\x01")
        channel.receive(Frame.READY, len(PUBLIC.key_names))
        channel.send(Frame.CIPHERTEXTS, b"\xff" * nbytes)
        channel.receive(Frame.CIPHERTEXTS, wire.answer_bytes(Scheme(PUBLIC.parameters)))


@pytest.mark.parametrize("spoiled", ["key", "ciphertext"])
def test_bytes_that_are_none_end_the_session_and_not_the_server(server: ServedCircuit, holder: Holder, spoiled: str):
    remote = server.remote(f"eve-{spoiled}")
    if spoiled == "ciphertext":
        remote.predict(holder, [])
        server.line()
    with pytest.raises(ProtocolError):
        send_ones(remote, EACH if spoiled == "key" else wire.fresh_bytes(holder.scheme))
    assert "a residue that is not below its prime" in server.line()
    assert remote.predict(holder, list(IMAGES)).sent["keys"] == (upload_bytes(PUBLIC) if spoiled == "key" else 0)
    server.line()


def test_a_full_shelf_refuses_before_a_key_is_sent(tmp_path: Path, holder: Holder):
    with served_circuit(tmp_path, most=upload_bytes(PUBLIC) - 1) as running:
        with pytest.raises(PeerAbortedError):
            running.remote("alice").predict(holder, list(IMAGES))
        assert "over the cap" in running.line()
        assert not list((tmp_path / "shelf").glob("*/*/*"))


def test_uploads_leave_nothing_behind_in_the_quotas(tmp_path: Path, holder: Holder):
    """A session that takes keys and then answers is two things to the caps, and both are over with it."""
    with served_circuit(tmp_path, batches_each=1) as running:
        remote = running.remote("alice")
        for _ in range(2):
            assert remote.predict(holder, [IMAGES[0]]).sent["keys"] == upload_bytes(PUBLIC)
            assert running.line().endswith("answered a query")
            remote.forget()
            running.line()


def test_more_ciphertexts_than_a_client_may_ask_for_are_refused_before_one_is_computed(tmp_path: Path, holder: Holder):
    with served_circuit(tmp_path, queries_hour_each=2) as running:
        remote = running.remote("alice")
        with pytest.raises((PeerAbortedError, ConnectionLostError)):
            remote.predict(holder, [*IMAGES, IMAGES[0]])
        assert running.line().endswith("it has reached the cap of 2 queries in an hour (queries_hour_each)")
        replies = remote.predict(holder, list(IMAGES))  # nothing was counted, and the keys are there
        assert replies.sent["keys"] == 0
        assert np.abs(replies.outputs - WANTED).max() < 0.01


def test_what_clients_get_is_read_again_or_refused(tmp_path: Path):
    facts = Facts(("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)
    path = write_client(tmp_path, PUBLIC, facts)
    assert read_client(path) == (PUBLIC, facts)
    for content in ("", "{}", "[]", '{"circuit": [], "facts": {}}', path.read_text().replace('"a"', "7")):
        path.write_text(content)
        with pytest.raises(ValueError, match="not what `private fhe lower` makes for clients"):
            read_client(path)
    with pytest.raises(ValueError, match="no such file"):
        read_client(tmp_path / "none.json")


def test_too_many_images_for_a_session_are_refused_here(holder: Holder, tmp_path: Path):
    nobody = Remote(None, "", 0, PUBLIC)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=f"a session takes {MOST_CIPHERTEXTS}"):
        nobody.predict(holder, [IMAGES[0]] * (MOST_CIPHERTEXTS * PUBLIC.batch + 1))
