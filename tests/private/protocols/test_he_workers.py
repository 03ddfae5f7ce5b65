"""Several processes answer as one would: same places, same order, same lengths; and they end with their server."""

from __future__ import annotations

import numpy as np
import pytest
from support.convolutions import exact_product, random_case
from support.programs import random_inputs, random_program, run_both

from deepreshape.private.crypto.he.bfv import ClientKey, Responder
from deepreshape.private.crypto.he.packing import Convolution, Layout
from deepreshape.private.crypto.he.parameters import Parameters
from deepreshape.private.crypto.he.responses import EncodedWeights, respond
from deepreshape.private.errors import ProtocolError
from deepreshape.private.program import interpret as plain
from deepreshape.private.protocols import he_workers as workers
from deepreshape.private.protocols.choose import Protocols
from deepreshape.private.protocols.he_workers import Workers, worthwhile

PARAMETERS = Parameters(2**37, (60, 60), galois_keys=1)
LAYERS = [
    Layout(Convolution(2, 5, 5, 7, 3, 1, 1), PARAMETERS, 1, 5, 1, 1),  # seven tiles
    Layout(Convolution(2, 6, 6, 5, 3, 2, 1), PARAMETERS, 2, 2, 3, 2),  # bands, phases, and a last tile of one channel
    Layout(Convolution(3, 5, 5, 9, 3, 1, 1), PARAMETERS, 1, 3, 3, 2, 2),  # three responses, packed of two tiles or one
    Layout(Convolution.matrix(9, 4, 20), PARAMETERS, 1, 1, 9, 4),  # one tile, and weights that take more than 16 bits
]


@pytest.fixture(scope="module")
def key() -> ClientKey:
    return ClientKey(PARAMETERS)


def encrypted(key: ClientKey, layout: Layout, mask: np.ndarray) -> list[bytes]:
    return [key.encrypt(polynomial) for polynomial in layout.polynomials(mask)]


@pytest.mark.parametrize("count", [1, 3])
def test_together_they_answer_as_one_would(key: ClientKey, count: int) -> None:
    responder = Responder(PARAMETERS, key.public_key(), key.galois_keys())
    with Workers(count, responder) as several:
        for layout in LAYERS * 2:
            weights, mask = random_case(layout.layer, 2**37)
            sent = encrypted(key, layout, mask)
            responses, share = several.respond(EncodedWeights(layout, weights), sent)
            alone, _ = respond(responder, EncodedWeights(layout, weights), sent)
            assert [len(response) for response in responses] == [len(response) for response in alone]
            opened = share.copy()
            for response, (channels, rows) in zip(responses, layout.slices(), strict=True):
                plaintext = key.decrypt(response, layout.form, layout.positions(channels, rows))
                opened[channels, rows] += plaintext.reshape(opened[channels, rows].shape)
            assert np.array_equal(opened % 2**37, exact_product(layout.layer, weights, mask, 2**37))


def test_no_two_draw_the_same_masks(key: ClientKey) -> None:
    layout = LAYERS[0]
    zero = EncodedWeights(layout, np.zeros(layout.layer.weight_shape, np.int64))
    with Workers(3, Responder(PARAMETERS, key.public_key(), key.galois_keys())) as several:
        sent = encrypted(key, layout, np.zeros(layout.layer.input_shape, np.uint64))
        shares = [several.respond(zero, sent)[1] for _ in range(2)]
    assert len(np.unique(np.stack(shares))) == 2 * shares[0].size


def test_whole_runs_with_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PRODUCTS_EACH", 1)
    program = random_program(2)
    x = random_inputs(program, 1, 2)
    run = run_both(program, x[0], workers=2)
    assert np.array_equal(run.output, plain.run(program, x, client=run.client_shares, protocols=Protocols())[0])


def test_workers_end_with_their_pipes_and_a_dead_one_is_said(key: ClientKey) -> None:
    layout = LAYERS[0]
    weights, mask = random_case(layout.layer, 2**37)
    sent = encrypted(key, layout, mask)
    with Workers(3, Responder(PARAMETERS, key.public_key(), key.galois_keys())) as several:
        first, second = several._others
        first._jobs.close()  # as it is when the server's process dies
        assert first._process.wait(30) == 0
        second._process.kill()
        with pytest.raises(ProtocolError, match="a worker process has ended"):
            Workers.respond(several, EncodedWeights(layout, weights), sent)
    assert second._process.returncode is not None


def test_malformed_ciphertexts_are_refused_here(key: ClientKey) -> None:
    layout = LAYERS[0]
    weights, mask = random_case(layout.layer, 2**37)
    sent = encrypted(key, layout, mask)
    sent[-1] = b"\xff" * len(sent[-1])
    with (
        Workers(2, Responder(PARAMETERS, key.public_key(), key.galois_keys())) as several,
        pytest.raises(ProtocolError, match="not below its prime"),
    ):
        several.respond(EncodedWeights(layout, weights), sent)
    with Workers(2, Responder(PARAMETERS, key.public_key(), key.galois_keys())) as several:
        (worker,) = several._others
        worker.begin(EncodedWeights(layout, weights), sent, range(7))
        with pytest.raises(ProtocolError, match="a worker process has ended"):
            worker.finish(layout, range(7))


def test_small_work_is_worth_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [worthwhile(products, 4) for products in (0, 3999, 4000, 8000, 10**6)] == [1, 1, 2, 4, 4]
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert worthwhile(10**6) == 2
