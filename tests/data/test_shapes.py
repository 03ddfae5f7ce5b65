import numpy as np
import torch

from deepreshape.data import Dataset
from deepreshape.data.augment import VOID
from deepreshape.data.shapes import draw_shapes


def test_shapes_follow_from_their_seed():
    images, maps = draw_shapes(4, np.random.default_rng(3))
    assert torch.equal(images, draw_shapes(4, np.random.default_rng(3))[0])
    assert not torch.equal(images, draw_shapes(4, np.random.default_rng(4))[0])
    assert (images.shape, maps.shape, images.dtype, maps.dtype) == (
        (4, 1, 48, 48),
        (4, 48, 48),
        torch.uint8,
        torch.uint8,
    )


def test_every_class_is_there_and_hard_images_have_smaller_and_paler_shapes():
    images, maps = draw_shapes(200, np.random.default_rng(0))
    assert maps.unique().tolist() == [0, 1, 2, 3, VOID]

    def contrast(one: torch.Tensor, of: torch.Tensor) -> float:
        shape, ground = (one[(of > 0) & (of != VOID)].float(), one[of == 0].float())
        return float((shape.mean() - ground.mean()).abs() / ground.std())

    easy, hard = ([contrast(images[n, 0], maps[n]) for n in range(first, 200, 2)] for first in (0, 1))
    assert np.median(easy) > 2 * np.median(hard)
    areas = [float(((maps[first::2] > 0) & (maps[first::2] != VOID)).float().mean()) for first in (0, 1)]
    assert areas[0] > 1.5 * areas[1]


def test_the_data_set_has_maps_and_no_image_twice():
    data = Dataset.load("shapes")
    assert data.maps
    assert (data.shape, data.class_names[0]) == ((1, 48, 48), "ground")
    everything = torch.cat([split.images[:] for split in (data.train, data.validation, data.test)]).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything) == 1400
