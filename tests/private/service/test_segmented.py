"""A class for each pixel, privately: the client upsamples, and the picture holds the classes."""

import io
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import deepreshape as dr
from deepreshape.data.class_maps import as_class_map
from deepreshape.data.dataset import Split
from deepreshape.data.shapes import draw_shapes
from deepreshape.models import architecture_for, build
from deepreshape.private.service.bundle import Bundle, Facts, facts_of
from deepreshape.private.service.predict import Client
from deepreshape.private.service.segmented import SegmentedImage, class_maps, largest_places
from deepreshape.private.transport.certificates import create_authority, issue

SERVE = """
import sys
from deepreshape import Server
server = Server(sys.argv[1], keys=sys.argv[2], address="127.0.0.1:0", relu="ot")
print(server.address, flush=True)
server.run(2)
"""


def data() -> dr.Dataset:
    images, maps = draw_shapes(16, np.random.default_rng(0), side=16)
    few = Split(images, maps)
    return replace(dr.Dataset.load("shapes"), name="few", train=few, validation=few, test=few)


DATA = data()


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    model = build(architecture_for("resnet20-m2-phi1.1.1-r4-seg", DATA), seed=0)
    with torch.no_grad():
        model.train()(DATA.normalize(DATA.train.images[:]))  # pyright: ignore[reportArgumentType]
    return model.eval()


@pytest.fixture(scope="module")
def bundle(network: torch.nn.Module) -> Bundle:
    return Bundle.of(dr.lower(network, DATA))


@pytest.mark.parametrize(
    ("old", "new"), [((3, 4), (24, 32)), ((12, 15), (96, 120)), ((5, 3), (7, 11)), ((4, 4), (4, 4))]
)
def test_upsampling_is_that_of_training(old: tuple[int, int], new: tuple[int, int]):
    logits = torch.randn(2, 5, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs = interpolate(logits, size=list(new), mode="bilinear", align_corners=False)
    assert np.array_equal(class_maps(logits.numpy(), new), theirs.argmax(1).numpy())


def test_places_of_maps_and_of_classes():
    outputs = np.arange(24).reshape(1, 4, 2, 3)
    assert np.array_equal(largest_places(outputs), np.full((1, 2, 3), 3))
    assert np.array_equal(largest_places(outputs.reshape(1, 24, 1, 1)), [23])


def test_a_private_map_equals_the_plain_one_and_its_picture_holds_it(
    bundle: Bundle, network: torch.nn.Module, tmp_path: Path
):
    image = DATA.test.images[1]
    answer = dr.segment_private(bundle, image, relu="ot")
    assert answer.agree
    with torch.no_grad():
        logits = network(DATA.normalize(image[None]))
    assert np.allclose(answer.logits, logits[0].numpy(), atol=0.1)
    sure = interpolate(logits, size=[16, 16], mode="bilinear").topk(2, dim=1).values
    clear = ((sure[:, 0] - sure[:, 1])[0] > 0.2).numpy()
    plain = class_maps(logits.double().numpy(), (16, 16))[0]
    assert clear.any()
    assert np.array_equal(answer.classes[clear], plain[clear])
    assert sum(share for _, share in answer.shares) == pytest.approx(1)
    answer.save(tmp_path / "answer.png")
    with Image.open(tmp_path / "answer.png") as picture:
        assert np.array_equal(as_class_map(picture, "it", (16, 16), 4).numpy(), answer.classes)
        painted = np.array(picture.convert("RGB"))
    for number, colour in enumerate(DATA.colours):
        assert (painted[answer.classes == number] == colour).all()
    assert {name for name, *_ in answer.legend()} == {DATA.class_names[number] for number in np.unique(answer.classes)}
    with pytest.raises(ValueError, match="gives a class for each pixel, and no class of the image; segment it"):
        dr.run_private(bundle, image)


def test_a_client_segments_at_a_server(bundle: Bundle, network: torch.nn.Module, tmp_path: Path):
    bundle.write(tmp_path / "bundle")
    assert Bundle.read(tmp_path / "bundle", "client").facts == bundle.facts
    create_authority(tmp_path / "keys")
    issue(tmp_path / "keys", "server", "server")
    issue(tmp_path / "keys", "client", "client")
    command = [sys.executable, "-c", SERVE, str(tmp_path / "bundle"), str(tmp_path / "keys")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert isinstance(server.stdout, io.TextIOBase)
            address, keys = server.stdout.readline().strip(), tmp_path / "keys"
            client = Client(tmp_path / "bundle", keys=keys, address=address, relu="ot")
            with pytest.raises(ValueError, match="segment it"):
                client.predict(DATA.test.images[2].numpy())
            answer = client.segment(DATA.test.images[2].numpy())
        finally:
            server.send_signal(signal.SIGINT)
    with torch.no_grad():
        logits = network(DATA.normalize(DATA.test.images[2][None]))[0].numpy()
    assert np.allclose(answer.logits, logits, atol=0.1)
    assert np.array_equal(answer.classes, class_maps(answer.logits[None], (16, 16))[0])
    assert set(answer.bytes) == {"online"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"upsample": [16, 1 << 20]}, "upsample is .*no height and width"),
        ({"upsample": [16]}, "upsample is"),
        ({"upsample": ["16", 16]}, "upsample is"),
        ({"upsample": [True, 16]}, "upsample is"),
        ({"colours": [[0, 0, 0]] * 3}, "there are 4 classes, and colours"),
        ({"colours": [[0, 0, 256]] * 4}, "colours are red, green and blue"),
        ({"colours": [[0, 0]] * 4}, "colours are red, green and blue"),
        ({"class_names": ["a"] * 256}, "facts of 256 classes"),
    ],
)
def test_facts_that_cannot_be_are_refused(given: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        facts_of(given, 1, 4, maps=True)
    assert facts_of({"upsample": [16, 16]}, 1, 4, maps=True).upsample == (16, 16)
    with pytest.raises(ValueError, match="upsample is"):
        facts_of({"upsample": [16, 16]}, 1, 4)


def test_colours_where_the_facts_have_none_differ():
    facts = Facts()
    assert len({facts.colour(number) for number in range(256)}) == 256
    with pytest.raises(ValueError, match="256 colours, and there are 300 classes"):
        SegmentedImage.of(np.zeros((300, 2, 2)), Facts(upsample=(4, 4)), seconds={}, bytes={}, agree=None).save("never")
