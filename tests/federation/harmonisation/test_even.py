"""Deterministic steps after a task's load: against NumPy, OpenCV and scanners that were planted."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scipy import stats

from federation.harmonisation import clahe
from federation.harmonisation._tissue import tissue
from tests.federation.harmonisation.images import (
    Array,
    hippocampus_item,
    radiograph,
    radiograph_item,
    task,
    volume,
)

EVEN = ("z_score", "percentile", "histogram")
GREY = (-2.0, 2.0)


def loaded(values: Array, *chosen: str, **options: Any) -> Array:
    if values.ndim == 2:
        item = task("chest_xray", *chosen, **options).load(radiograph_item(values))
    else:
        item = task("hippocampus", *chosen, **options).load(hippocampus_item(values))
    assert item["image"].dtype == torch.float32
    return np.asarray(item["image"][0], dtype=np.float64)


def test_tissue_is_without_padding_and_air() -> None:
    values = np.zeros((6, 7))
    values[1:5, 2:6] = np.arange(1, 17).reshape(4, 4)
    values[1, 2:4] = 1  # air within the box
    found = tissue(values)
    expected = np.zeros((6, 7), dtype=bool)
    expected[1:5, 2:6] = True
    expected[1, 2:4] = False
    assert np.array_equal(found, expected)
    assert np.array_equal(tissue(np.exp(values / 5)), expected)  # whatever rises with it
    grey_frame = values + 0.0
    grey_frame[values == 0] = 7.0  # a task may pad with a grey in the middle
    assert np.array_equal(tissue(grey_frame), expected)


def test_padding_of_a_radiograph_counts_nowhere() -> None:
    """A narrow image is padded to a square; what is done to it is what is done to it alone."""
    narrow = radiograph(shape=(64, 40))
    image = loaded(narrow, "z_score")
    own = image[:, 12:52]
    inside = own[own > own.min()]
    assert inside.mean() == pytest.approx(0, abs=1e-5)
    assert inside.std() == pytest.approx(1, abs=1e-5)
    assert np.unique(image[:, :12]).size == np.unique(image[:, 52:]).size == 1


def test_z_score_by_numpy() -> None:
    values, _ = volume()
    before, after = loaded(values), loaded(values, "z_score")
    mask = tissue(before)
    assert 0.3 < mask.mean() < 1  # the patch is larger than the phantom
    expected = stats.zscore(before[mask])
    assert np.allclose(after[mask], expected, atol=1e-5)


def test_percentile_by_numpy() -> None:
    values, _ = volume()
    before = loaded(values)
    inside = np.sort(before[tissue(before)])
    after = loaded(values, "percentile", low=5.0, high=90.0, scale=[10.0, 20.0])
    low, high = (inside[round(share * (inside.size - 1))] for share in (0.05, 0.9))
    expected = 10 + 10 * (before.clip(low, high) - low) / (high - low)
    assert np.allclose(after, expected, atol=0.02)
    assert (after.min(), after.max()) == (10, 20)


@pytest.mark.parametrize("reference", ["normal", "uniform"])
def test_histogram_is_the_reference(reference: str) -> None:
    values, _ = volume()
    after = loaded(values, "histogram", reference=reference, landmarks=33)
    inside = after[tissue(loaded(values))]
    shares = np.linspace(0.05, 0.95, 19)
    expected = stats.norm.ppf(shares) if reference == "normal" else -2 + 4 * shares
    # between two landmarks the phantom's own peaks bend it
    assert np.allclose(np.quantile(inside, shares), expected, atol=0.1)


def affine(values: Array) -> Array:
    return 37.0 * values + 900.0


def gamma(values: Array) -> Array:
    return np.asarray(5.0 * values**0.6)


@pytest.mark.parametrize("image", [volume()[0], radiograph()], ids=["volume", "radiograph"])
@pytest.mark.parametrize(
    ("chosen", "scanner", "most"),
    [(name, affine, 2e-3) for name in EVEN] + [("histogram", gamma, 0.06)],
)
def test_a_planted_scanner_is_gone(
    image: Array, chosen: str, scanner: Callable[[Array], Array], most: float
) -> None:
    """Largest root mean square difference over the range of ±2, against the same image unharmed."""

    def apart(*names: str) -> float:
        one, other = loaded(image, *names), loaded(scanner(image), *names)
        return float(np.sqrt(np.mean((one - other) ** 2)))

    assert apart(chosen) < most
    if scanner is gamma:
        assert apart("z_score") > 1.5 * apart(chosen)  # what is linear cannot do it


@pytest.mark.parametrize(("tiles", "clip"), [(1, 1.5), (1, 4.0), (8, 2.0), (8, 4.0), (8, 40.0)])
def test_clahe_by_opencv(tiles: int, clip: float) -> None:
    """OpenCV rounds its maps, and puts what is left over a multiple of 256 into the dark bins."""
    levels = np.rint(255 * np.clip(radiograph(shape=(1024, 768)) / 2.4, 0, 1)).astype(np.uint8)
    peer = cv2.createCLAHE(clipLimit=clip, tileGridSize=(tiles, tiles)).apply(levels)
    mine = clahe._interpolated(
        levels.astype(np.int64),
        np.ones(levels.shape, dtype=bool),
        clahe.Options(clip=clip, tiles=tiles),
    )
    apart = np.abs(255 * mine - peer)
    assert apart.mean() < 1.0
    assert tiles > 1 or apart.max() < 0.6
    assert np.abs(levels.astype(float) - peer).mean() > 15


def test_clahe_leaves_padding_and_lifts_contrast() -> None:
    faint = radiograph(shape=(64, 40))
    faint[:32] = 1.5 + 0.1 * (faint[:32] - 1.5)  # the upper half is hardly exposed
    before, after = loaded(faint), loaded(faint, "clahe")
    assert np.array_equal(before[:, :12], after[:, :12])
    assert after.min() >= before.min() and after.max() <= before.max()
    contrast = [image[4:28, 12:52].std() / image[36:60, 12:52].std() for image in (before, after)]
    assert contrast[1] > 1.5 * contrast[0]


def test_air_of_a_mammogram_stays_air() -> None:
    breast = np.zeros((80, 60))
    rows, columns = np.mgrid[:80, :60]
    inside = ((rows - 40) / 35) ** 2 + (columns / 40) ** 2 < 1
    breast[inside] = (200 + 100 * np.sin(rows / 3) * np.cos(columns / 4))[inside]
    for chosen in ("percentile", "clahe"):
        image = task("mammography", chosen).load(radiograph_item(breast))["image"]
        assert image.min() == 0 and image.max() > 0.99
        assert 0.2 < (image == 0).float().mean() < 0.6
    # what the random part brings in from beyond the edges is air as well, wherever air now lies
    made = task("mammography", "z_score")
    image = made.load(radiograph_item(breast))["image"]
    assert image.min() < -1
    for _ in range(5):
        shown = made.augment({"image": image, "label": torch.tensor(0)})["image"]
        assert shown[0, :, -1].mean() < -1


@pytest.mark.parametrize("chosen", [*EVEN, "clahe", "n4"])
@pytest.mark.parametrize("what", ["constant", "zero", "nan", "infinite"])
def test_images_with_nothing_in_them_are_refused(chosen: str, what: str) -> None:
    flat = chosen == "clahe"
    values = np.full((64, 64) if flat else (32, 40, 32), 3.0)
    if what == "zero":
        values[:] = 0
    elif what != "constant":
        values = radiograph() if flat else volume()[0]
        values.flat[7] = np.nan if what == "nan" else np.inf
    with pytest.raises(ValueError, match=r"finite|empty"):
        loaded(values, chosen)


def test_chains_run_in_the_order_of_the_choice_and_pickle() -> None:
    values = radiograph()
    once = loaded(values, "clahe", "percentile")
    assert not np.allclose(once, loaded(values, "percentile", "clahe"), atol=1e-3)
    assert (once.min(), once.max()) == GREY
    again = pickle.loads(pickle.dumps(task("chest_xray", "clahe", "percentile").load))
    assert np.array_equal(np.asarray(again(radiograph_item(values))["image"][0]), once)
