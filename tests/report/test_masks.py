import zlib
from base64 import b64decode
from xml.etree import ElementTree

import pytest
import torch

from deepreshape.report import picture_of_masks


def test_the_picture_of_masks_has_a_bar_and_a_map_for_each_layer():
    before = {name: torch.ones(2, 3, 4, dtype=torch.bool) for name in ("stem.act", "gone", "empty")}
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[:, 1, 2] = True
    svg = picture_of_masks(before, {"stem.act": mask, "empty": torch.zeros_like(mask)})
    root = ElementTree.fromstring(svg)  # noqa: S314 - made just above
    space = "{http://www.w3.org/2000/svg}"
    assert "3 of 72 ReLUs kept" in svg
    bars = [float(bar.get("width")) for bar in root.iter(f"{space}rect") if bar.get("fill")]
    assert bars == [35.0, 0.0, 0.0]
    (picture_,) = root.iter(f"{space}image")
    png = b64decode(picture_.get("href").partition(",")[2])
    pixels = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
    rows = [pixels[at * 17 + 1 : at * 17 + 17] for at in range(3)]
    assert [list(row[3::4]) for row in rows] == [[128, 0, 0, 0], [0, 0, 255, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(("shape", "opaque"), [((4,), [64]), ((4, 3), [191, 64, 64])])
def test_relus_behind_linear_layers_and_on_lines_have_a_map_of_one_row(shape: tuple[int, ...], opaque: list[int]):
    before = torch.ones(shape, dtype=torch.bool)
    after = torch.zeros(shape, dtype=torch.bool)
    after[0] = True
    if len(shape) == 2:
        after[1:3, 0] = True
    svg = picture_of_masks({"act": before}, {"act": after})
    (image,) = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}image")  # noqa: S314 - made just above
    png = b64decode(image.get("href", "").partition(",")[2])
    pixels = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
    assert list(pixels[4::4]) == opaque
