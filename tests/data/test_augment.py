import torch

from deepreshape.data import augment
from deepreshape.data.augment import VOID, draw_moves


def test_augmentation_only_moves_mirrors_and_blanks_pixels():
    images = torch.arange(2 * 64, dtype=torch.uint8).view(2, 1, 8, 8) + 1
    same = augment(images, torch.Generator().manual_seed(0), crop=0, flip=False, cutout=0)
    assert torch.equal(same, images)
    moved = augment(images, torch.Generator().manual_seed(0), crop=2, flip=True, cutout=0)
    assert moved.shape == images.shape
    assert all(set(moved[at].unique().tolist()) <= set(images[at].unique().tolist()) for at in range(2))
    mirrored = [augment(images, torch.Generator().manual_seed(seed), crop=0, flip=True, cutout=0) for seed in range(8)]
    assert all(
        torch.equal(out[at], images[at]) or torch.equal(out[at], images[at].flip(2))
        for out in mirrored
        for at in (0, 1)
    )
    assert any(not torch.equal(out, images) for out in mirrored)
    blanked = augment(images, torch.Generator().manual_seed(1), crop=0, flip=False, cutout=4)
    assert 0 < int((blanked[0] == 0).sum()) <= 16


def test_maps_of_labels_move_with_their_images():
    labels = torch.arange(3 * 36).view(3, 6, 6) % 7
    moves = draw_moves((3, 6, 6), torch.Generator().manual_seed(3), crop=2, flip=True, cutout=0)
    assert torch.equal(moves.maps(labels), moves.images(labels[:, None])[:, 0])
    assert not torch.equal(moves.maps(labels), labels)
    blanked = draw_moves((3, 6, 6), torch.Generator().manual_seed(3), crop=0, flip=False, cutout=3)
    out = blanked.maps(labels)
    assert torch.equal(out == VOID, blanked.images(torch.ones(3, 1, 6, 6))[:, 0] == 0)
    assert torch.equal(out[out != VOID], labels[out != VOID])
