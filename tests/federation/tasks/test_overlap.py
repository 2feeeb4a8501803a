"""Agreement of masks against SciPy's distances, closed forms and hand values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist

from federation.tasks._overlap import dice, hausdorff95, surface_dice

SPACING = (1.5, 1.0, 2.5)


def _blob(seed: int, shape: tuple[int, int, int] = (24, 26, 22)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 3)
    return np.asarray(smooth > np.percentile(smooth, 80))


def _surface(mask: np.ndarray) -> np.ndarray:
    """mm of the voxels with a neighbour by a face outside the mask."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask)) * np.array(SPACING)


def _tensors(*masks: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(mask.copy()) for mask in masks]


@pytest.mark.parametrize("seed", range(4))
def test_hausdorff95_is_that_of_all_pairs(seed: int) -> None:
    one, other = _blob(seed), np.roll(_blob(seed), (2, 1, 0), (0, 1, 2)) | _blob(seed + 10)
    pairs = cdist(_surface(one), _surface(other))
    expected = max(np.percentile(pairs.min(axis=a), 95) for a in (0, 1))
    assert hausdorff95(*_tensors(one, other), SPACING) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_dice_counts_voxels(seed: int) -> None:
    one, other = _blob(seed), _blob(seed + 1)
    expected = 2 * (one & other).sum() / (one.sum() + other.sum())
    assert dice(*_tensors(one, other)) == pytest.approx(expected)


def _box(size: int, start: int, shape: tuple[int, int, int] = (60, 40, 40)) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[start : start + size, 10:30, 10:30] = True
    return mask


def test_surface_dice_of_boxes_is_the_share_of_near_faces() -> None:
    """Boxes of 20 mm; one is longer by `d` mm at one end. What is beyond 2 mm: its end face and the
    strip of its sides from 2 mm off on."""
    spacing = (1.0, 1.0, 1.0)
    assert surface_dice(_box(20, 10), _box(20, 10), spacing) == 1.0
    assert surface_dice(_box(22, 10), _box(20, 10), spacing) == pytest.approx(1, abs=0.005)
    longer = 8
    far = 20 * 20 + 4 * 20 * (longer - 2)  # the shorter box's end lies 0 mm from the longer's sides
    inner = 0  # all but the middle of its end face, which is 8 mm from the sides and from the end
    inner += (20 - 2 * 2) ** 2
    whole = 6 * 400 + (2 * 400 + 4 * 20 * (20 + longer))
    measured = surface_dice(_box(20 + longer, 10), _box(20, 10), spacing)
    assert measured == pytest.approx(1 - (far + inner) / whole, abs=0.03)


def test_surface_dice_knows_millimetres() -> None:
    one, other = _box(20, 10), _box(20, 12)  # moved by two voxels
    assert surface_dice(one, other, (0.5, 1, 1)) == pytest.approx(1, abs=0.005)
    assert surface_dice(one, other, (3.0, 1, 1)) < 0.9
    assert surface_dice(one, other, (3.0, 1, 1), tolerance=6.5) == pytest.approx(1, abs=0.005)


def test_a_tumour_at_the_images_edge_has_a_closed_surface() -> None:
    inside, at_edge = _box(20, 10), _box(20, 0)
    answer = torch.zeros_like(inside)
    shrunk = (answer.clone(), answer.clone())
    shrunk[0][14:26, 14:26, 14:26] = True
    shrunk[1][4:16, 14:26, 14:26] = True
    for measure in (hausdorff95, surface_dice):
        assert measure(shrunk[0], inside, SPACING) == pytest.approx(
            measure(shrunk[1], at_edge, SPACING)
        )


def test_empty_masks() -> None:
    nothing, box = torch.zeros(60, 40, 40, dtype=torch.bool), _box(5, 5)
    for said, true in ((nothing, box), (box, nothing)):
        assert dice(said, true) == surface_dice(said, true, SPACING) == 0
        assert math.isnan(hausdorff95(said, true, SPACING))
    assert math.isnan(dice(nothing, nothing))
    assert math.isnan(surface_dice(nothing, nothing, SPACING))
    assert math.isnan(hausdorff95(nothing, nothing, SPACING))
