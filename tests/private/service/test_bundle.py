"""A bundle on disk, and how an image becomes an input."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deepreshape.data import Dataset
from deepreshape.private.program.lower import lower
from deepreshape.private.service.bundle import Bundle, Facts

image = pytest.importorskip("PIL.Image")

DATA = Dataset.load("digits")
FACTS = Facts(tuple("0123456789"), (0.5,), (0.25,), "crop")
COLOR = Facts((), (0.5, 0.4, 0.3), (0.25, 0.25, 0.2), "crop")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(0)
    return Bundle.of(
        lower(nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 10)), DATA)
    )


def test_a_bundle_comes_back_in_two_parts(bundle: Bundle, tmp_path: Path):
    bundle.write(tmp_path)
    server, client = (Bundle.read(tmp_path, role) for role in ("server", "client"))
    assert server.program.weights
    assert not client.program.weights
    assert server.facts == client.facts == Facts(DATA.class_names, DATA.mean, DATA.std, "crop")
    assert stat.S_IMODE((tmp_path / "server.program").stat().st_mode) == 0o600
    (tmp_path / "server.program").write_bytes((tmp_path / "client.program").read_bytes())
    with pytest.raises(ValueError, match=r"server.program has no weights: it is a client's part"):
        Bundle.read(tmp_path, "server")
    with pytest.raises(ValueError, match=r"holds no client.program; `deepreshape private lower --out"):
        Bundle.read(tmp_path / "nowhere", "client")


class Several(nn.Module):
    """Ten logits, and the maps that they are made of."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, stride=2), nn.Linear(18, 10)

    def forward(self, x):
        maps = torch.relu(self.conv(x))
        return self.head(maps.flatten(1)), maps


def test_of_several_outputs_the_first_is_what_facts_are_of(tmp_path: Path):
    torch.manual_seed(0)
    several = Bundle.of(lower(Several(), DATA))
    several.write(tmp_path)
    assert len(several.program.outputs) == 2
    for role in ("server", "client"):
        assert Bundle.read(tmp_path, role).facts == Facts(DATA.class_names, DATA.mean, DATA.std, "crop")


def test_facts_that_do_not_fit_the_program_are_refused(bundle: Bundle, tmp_path: Path):
    bundle.write(tmp_path)
    (tmp_path / "client.json").write_text(json.dumps({"class_names": ["a"], "mean": [0.5], "std": [0.5]}))
    with pytest.raises(ValueError, match=r"client.json is to hold class_names, mean and std, lists of 10, 1 and 1"):
        Bundle.read(tmp_path, "client")


def test_an_image_is_normalised_as_the_data_set_does_it(bundle: Bundle):
    pixels = DATA.test.images[3]
    for form in (pixels, pixels.numpy(), pixels[0].numpy(), pixels.movedim(0, -1).numpy()):
        x, done = bundle.facts.input_of(form, (1, 8, 8))
        assert np.allclose(x, DATA.normalize(pixels).numpy(), atol=1e-6)
        assert not done


def test_images_are_converted_as_training_reads_them_and_it_says_so(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    for name in ("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.fromarray(pixels).save(tmp_path / name)
    photo = tmp_path / "a" / "1.png"
    data = Dataset.from_folder(tmp_path, side=8, mean=COLOR.mean, std=COLOR.std)
    x, done = COLOR.input_of(photo, (3, 8, 8))
    assert np.allclose(x, data.normalize(data.train.images[0]).numpy(), atol=1e-6)
    assert done == "scaled and cropped from 20x30 to 8x8"
    grey, done = FACTS.input_of(photo, (1, 30, 20))
    assert (grey.shape, done) == ((1, 30, 20), "from RGB to L")
    with pytest.raises(ValueError, match="20x30 pixels, the network takes 8x8, and the program's facts do not say how"):
        Facts((), COLOR.mean, COLOR.std).input_of(photo, (3, 8, 8))


def test_a_picture_of_more_than_8_bits_is_refused_and_not_clipped(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((8, 8), 5000, np.uint16)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"its pixels have more than 8 bits \(mode I;16\); scale them to 8 bits first"):
        FACTS.input_of(tmp_path / "wide.png", (1, 8, 8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((1, 4, 4), np.float32),
            r"float32 of shape \(1, 4, 4\) does not fit",
        ),
        (np.full((1, 8, 8), 200.0), "values up to 200, which are not normalised"),
        (np.full((1, 8, 8), np.nan), "not normalised"),
        (np.zeros((3, 8, 8), np.uint8), r"an image of shape \(3, 8, 8\) does not fit"),
        (Path("/nowhere.npy"), "nowhere.npy"),
    ],
)
def test_what_is_no_input_is_one_line(given: object, message: str):
    with pytest.raises((ValueError, OSError), match=message):
        FACTS.input_of(given, (1, 8, 8))
    with pytest.raises(ValueError, match="no mean and std for 1 channels"):
        Facts().input_of(np.zeros((1, 8, 8), np.uint8), (1, 8, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["\x1b]0;title\x07", *"123456789"]}, r"a class name is '.x1b\]0;title.x07'"),
        ({"class_names": ["\x9b2J", *"123456789"]}, "use text of up to 200 printable characters"),
        ({"class_names": ["a\nb", *"123456789"]}, "printable"),
        ({"class_names": ["a" * 201, *"123456789"]}, "printable"),
        ({"class_names": [["a"], *"123456789"]}, "printable"),
        ({"resize": "\x1b[2J"}, "'crop' or nothing is known"),
        ({"std": [0.0]}, "is to hold"),
        ({"std": [5e-324]}, "is to hold"),
        ({"std": [1e-38]}, "is to hold"),
        ({"std": [1e39]}, "is to hold"),
        ({"std": [float("nan")]}, "is to hold"),
        ({"mean": [-1e39]}, "is to hold"),
        ({"mean": [1e999]}, "is to hold"),
        ({"mean": [10**400]}, "is to hold"),
        ({"mean": 7}, "is to hold"),
    ],
)
def test_facts_from_a_stranger_are_held_to_their_form_before_any_inference(
    change: dict, message: str, bundle: Bundle, tmp_path: Path
):
    bundle.write(tmp_path)
    facts = json.loads((tmp_path / "client.json").read_text()) | change
    (tmp_path / "client.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=message) as refusal:
        Bundle.read(tmp_path, "client")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", '{"mean": NaN}', " " * (1 << 22) + "{}", "\ud800"])
def test_facts_that_are_no_facts_are_refused(text: str, bundle: Bundle, tmp_path: Path):
    bundle.write(tmp_path)
    (tmp_path / "client.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="is to hold class_names"):
        Bundle.read(tmp_path, "client")


def test_a_secret_program_replaces_a_world_readable_one(bundle: Bundle, tmp_path: Path):
    (tmp_path / "server.program").write_bytes(b"old")
    (tmp_path / "server.program").chmod(0o644)
    bundle.write(tmp_path)
    assert stat.S_IMODE((tmp_path / "server.program").stat().st_mode) == 0o600
