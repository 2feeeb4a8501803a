"""The middle slice of an image as a small picture, as a radiologist expects to see it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.image import imsave
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from client_app.imaging import voxels
from client_app.imaging.header import Affine, Kind
from client_app.imaging.image import Image
from client_app.imaging.set_aside import Reason, Unfit, silenced

EDGE = 112  # pixels of the longer side
_LEAST_EDGE = 8
_WINDOW = (1.0, 99.0)  # percentiles shown black and white
# Slices thinner than this share of one another's spacing count as alike: no plane stands out.
_ALIKE = 0.9


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a PNG data URI, or why there is none; `plane` says how it lies."""

    uri: str = ""
    width: int = 0
    height: int = 0
    plane: str = ""
    failure: str = ""


def thumbnail(image: Image) -> Thumbnail:
    """The middle slice in millimetres' proportions; never raises for what a file holds.

    Axial: anterior on top. Coronal and sagittal: superior on top. The patient's right is at the left
    of the picture; in sagittal ones anterior is. A radiograph is shown as it was stored.
    """
    try:
        with silenced():
            picture, spacing, plane = middle_slice(image)
            return _picture(picture, spacing, plane)
    except Unfit as unfit:
        return Thumbnail(failure=str(unfit))
    except Exception as error:
        # The text of a reader's exception may quote the file; its type cannot.
        return Thumbnail(failure=f"{Reason.LOAD_FAILED}: {type(error).__name__}")


def middle_slice(image: Image) -> tuple[NDArray[np.float32], tuple[float, float], str]:
    """(rows, columns) ready to look at, mm between rows and between columns, and the plane's name.

    Raises:
        Unfit: the pixels cannot be had.
    """
    if image.affine is None:
        shown = np.asarray(voxels.read_image(image)[0], dtype=np.float32)
        down, across = image.pixel_spacing or (1.0, 1.0)
        return shown, (float(down), float(across)), "projection"
    image = _only_the_middle(image)
    volume = np.asarray(voxels.read_image(image)[0], dtype=np.float32)
    volume = volume.reshape(volume.shape[:3] + (1,) * (3 - volume.ndim))
    affine = np.asarray(image.affine)
    return _radiological(volume, affine, _through(image))


def _only_the_middle(image: Image) -> Image:
    """Of a series, the middle plane alone: no need to read the others."""
    if image.kind is not Kind.PLANES or len(image.planes) < 2:
        return image
    middle = len(image.planes) // 2
    file, frame = image.planes[middle]
    affine = np.asarray(image.affine, dtype=np.float64).copy()
    affine[:3, 3] += middle * affine[:3, 2]
    rows: Affine = tuple(tuple(map(float, row)) for row in affine)
    return replace(
        image,
        files=(image.files[file],),
        planes=((0, frame),),
        shape=(*image.shape[:2], 1),
        affine=rows,
    )


def _through(image: Image) -> int:
    """The voxel axis that leads from slice to slice.

    A series says it. In NIfTI it is the one with by far the largest voxels, or else the one that
    runs most nearly from feet to head.
    """
    if image.kind is not Kind.NIFTI:
        return 2
    axes = np.asarray(image.affine)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    coarsest = int(lengths.argmax())
    if np.partition(lengths, 1)[1] < _ALIKE * lengths[coarsest]:
        return coarsest
    return int(np.flatnonzero(io_orientation(np.asarray(image.affine))[:, 0] == 2)[0])


def _radiological(
    volume: NDArray[np.float32], affine: NDArray[Any], through: int
) -> tuple[NDArray[np.float32], tuple[float, float], str]:
    """The middle slice across an axis, turned by quarters and mirrored as its plane asks for.

    Rows run along the later of the plane's two axes in R, A, S, columns along the earlier one, both
    from their positive end: anterior or superior on top, and right (or anterior) at the left.
    """
    orientation = io_orientation(affine)  # for each voxel axis its world axis, and its direction
    picture = volume.take(volume.shape[through] // 2, axis=through)
    kept = [axis for axis in range(3) if axis != through]
    if orientation[kept[0], 0] < orientation[kept[1], 0]:
        picture, kept = picture.T, kept[::-1]
    for position, axis in enumerate(kept):
        if orientation[axis, 1] > 0:
            picture = np.flip(picture, axis=position)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    name = ("sagittal", "coronal", "axial")[int(orientation[through, 0])]
    return picture, (float(lengths[kept[0]]), float(lengths[kept[1]])), name


def _picture(picture: NDArray[np.float32], spacing: tuple[float, float], plane: str) -> Thumbnail:
    millimetres = np.array(picture.shape) * spacing
    if picture.ndim != 2 or 0 in picture.shape or not np.isfinite(millimetres).all():
        raise Unfit(Reason.LOAD_FAILED, f"a slice of shape {picture.shape}")
    finite = picture[np.isfinite(picture)]
    if not finite.size:
        raise Unfit(Reason.NOT_FINITE)
    low, high = (float(value) for value in np.percentile(finite, _WINDOW))
    sizes = np.maximum(np.rint(EDGE * millimetres / millimetres.max()), _LEAST_EDGE).astype(int)
    height, width = (int(size) for size in sizes)
    # numpy 2: torch wants positive strides
    clean = np.nan_to_num(picture, nan=low, posinf=high, neginf=low).clip(low, high)
    small = interpolate(
        torch.from_numpy(np.ascontiguousarray(clean))[None, None],
        (height, width),
        mode="bilinear",
        antialias=True,
    )
    file = io.BytesIO()
    imsave(
        file,
        small[0, 0].numpy(),
        vmin=low,
        vmax=high if high > low else low + 1,
        cmap="gray",
        format="png",
        metadata={"Software": ""},
        pil_kwargs={"optimize": True},
    )
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Thumbnail(uri, width, height, plane)
