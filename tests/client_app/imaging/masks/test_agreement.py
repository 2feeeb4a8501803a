"""One mask as NIfTI, SEG and RTSTRUCT gives one and the same voxels on the image's grid."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from client_app.imaging.masks import segmentation, structure_set
from tests.client_app.imaging.masks.series import Series, ct_series

WRITTEN_BY = {"names": ("tumour", "hippocampus"), "algorithm": "Test", "version": "1.0"}
CLASSES = ((0,), (1,))

angle = st.floats(-0.8, 0.8)


@st.composite
def series(draw: st.DrawFn) -> Series:
    """Oblique, tilted, anisotropic, of any small shape, classic or enhanced.

    highdicom 0.28.2 packs binary frames of less than eight pixels wrongly; no image has such.
    """
    return ct_series(
        draw(st.tuples(st.integers(3, 14), st.integers(3, 14), st.integers(1, 5))),
        spacing=draw(st.tuples(st.floats(0.3, 3.0), st.floats(0.3, 3.0), st.floats(0.5, 6.0))),
        angles=draw(st.tuples(angle, angle, angle)),
        tilt=draw(st.sampled_from([0.0, 0.0, 0.3, -0.4])),
        origin=draw(st.tuples(*[st.floats(-400, 400)] * 3)),
        enhanced=draw(st.booleans()),
    )


@st.composite
def mask_of(draw: st.DrawFn, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Blobs with holes, noise (single voxels and corners that touch), or all of it to the border."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, (1.5, 1.5, 0))
    kind = draw(st.sampled_from(["blobs", "rings", "noise", "full", "voxel", "empty"]))
    mask = np.zeros(shape, dtype=np.uint8)
    if kind == "blobs":
        mask[smooth > 0], mask[smooth > 0.3] = 1, 2  # the second is a hole in the first
    elif kind == "rings":
        mask[np.abs(smooth) < 0.1] = 1
    elif kind == "noise":
        mask = rng.integers(0, 3, shape, dtype=np.uint8)
    elif kind == "full":
        mask[:] = 1
    elif kind == "voxel":
        mask[tuple(rng.integers(0, shape))] = 2
    return mask


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_the_formats_give_the_same_voxels(data: st.DataObject) -> None:
    """Written and read back, whatever the orientation, tilt, spacing and topology."""
    image = data.draw(series())
    mask = data.draw(mask_of(image.shape))
    grid = {"shape": image.shape, "affine": image.affine}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), folder / "mask.nii")
        from_nifti = np.asarray(nibabel.load(folder / "mask.nii").dataobj)
        seg = segmentation.write(mask, image.datasets, **WRITTEN_BY)
        seg.save_as(folder / "seg.dcm", enforce_file_format=True)
        from_seg = segmentation.read(folder / "seg.dcm", CLASSES, **grid)
        rtstruct = structure_set.write(mask, image.datasets, **WRITTEN_BY)
        rtstruct.save_as(folder / "rt.dcm", enforce_file_format=True)
        from_rtstruct = structure_set.read(folder / "rt.dcm", CLASSES, **grid)
    np.testing.assert_array_equal(from_nifti, mask)
    np.testing.assert_array_equal(from_seg, mask)
    np.testing.assert_array_equal(from_rtstruct, mask)


@pytest.mark.parametrize("enhanced", [False, True])
def test_slices_in_another_order_than_the_files(tmp_path: Path, enhanced: bool) -> None:
    """`planes` says where each slice is, as of an image whose files lie the other way round."""
    image = ct_series(enhanced=enhanced, angles=(0.2, -0.3, 0.1))
    mask = np.random.default_rng(1).integers(0, 3, image.shape, dtype=np.uint8)
    count = image.shape[2]
    planes = [(0, n) if enhanced else (n, 0) for n in reversed(range(count))]
    affine = image.affine.copy()
    affine[:3, 3] += (count - 1) * affine[:3, 2]
    affine[:3, 2] *= -1
    for module, name in ((segmentation, "seg.dcm"), (structure_set, "rt.dcm")):
        written = module.write(mask, image.datasets, planes=planes, **WRITTEN_BY)
        written.save_as(tmp_path / name, enforce_file_format=True)
        back = module.read(tmp_path / name, CLASSES, shape=image.shape, affine=affine)
        np.testing.assert_array_equal(back, mask)
