"""From an `Image` to its voxels, and from a `Mask` to classes on the voxels of its image."""

from __future__ import annotations

import itertools
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy.ndimage import affine_transform

from client_app.imaging.frames import read_frames
from client_app.imaging.header import Kind
from client_app.imaging.image import Image, Mask
from client_app.imaging.masks import segmentation, structure_set
from client_app.imaging.set_aside import Reason, Unfit
from federation.nifti import LARGEST_VOXELS
from federation.pixels import (
    NotFinite,
    TooLarge,
    brightness,
    modality_values,
    padding,
    radiograph_affine,
    read_nifti,
)

_SAME_PLACE = 1e-3  # mm between the corners of one grid written twice
_OUTSIDE = 255  # no class index reaches it
_BORDER = 1e-5  # voxels


def read_image(image: Image) -> MetaTensor:
    """Voxels, float32, (1, *image.shape), with the affine of `Task.load`'s contract in float64.

    Series and NIfTI hold what the scanner measured (HU, Bq/ml, arbitrary units of MR) after the
    modality transform of each frame; the window for display is not applied, nor are real world
    values, and MONOCHROME1 does not turn a volume. Padding (PixelPaddingValue) in a series takes the
    volume's lowest other value, so that it is neither a tissue nor an outlier. Radiographs: see
    `federation.pixels.brightness`; without known pixel spacing their affine is the identity.

    Memory is the result, and one frame at a time beside it; nothing is allocated for more than
    `LARGEST_VOXELS` (4 GiB).

    Raises:
        Unfit: damaged, cut short, too large, of an unknown compression, not finite, or no longer
            what the index saw.
    """
    if math.prod(image.shape) > LARGEST_VOXELS:
        raise Unfit(Reason.TOO_LARGE, f"shape {image.shape}")
    with _failures():
        if image.kind is Kind.RADIOGRAPH:
            return _read_radiograph(image)
        if image.kind is Kind.NIFTI:
            return _checked(read_nifti(image.files[0]), image)
        return _read_planes(image)


def read_mask(mask: Mask, image: Image) -> MetaTensor:
    """Class indices, uint8, (1, *image.shape), on the voxels of `image`.

    A NIfTI mask on another grid than its image is brought onto it: a voxel takes the class that the
    mask has at its centre (nearest neighbour, in mm), and what lies outside of the mask's grid is
    background. For DICOM masks see `masks.segmentation` and `masks.structure_set`.

    Raises:
        Unfit: what `read_image` raises; of NIfTI masks values that are no class index, grids that do
            not meet, or a mask of whose foreground nothing is left on the image's grid.
    """
    if image.affine is None:
        raise Unfit(Reason.NO_GEOMETRY, "a mask needs an image with an affine")
    if math.prod(image.shape) > LARGEST_VOXELS:
        raise Unfit(Reason.TOO_LARGE, f"shape {image.shape}")
    affine = np.array(image.affine, dtype=np.float64)
    with _failures():
        if mask.kind is Kind.MASK:
            classes = _read_nifti_mask(mask.file, image.shape, affine)
        else:
            reader = segmentation if mask.kind is Kind.SEGMENTATION else structure_set
            classes = reader.read(mask.file, mask.classes, shape=image.shape, affine=affine)
    return MetaTensor(torch.from_numpy(classes)[None], affine=torch.from_numpy(affine))


def _read_radiograph(image: Image) -> MetaTensor:
    ((stored, header),) = read_frames(image.files[0], [0])
    _check_shape(stored, image.shape)
    pixels = torch.from_numpy(brightness(stored, header))[None]
    return MetaTensor(pixels, affine=radiograph_affine(image.pixel_spacing))


def _read_planes(image: Image) -> MetaTensor:
    columns, rows, slices = image.shape
    # Column first in memory, so that planes are written in one piece.
    voxels = np.empty((columns, rows, slices), dtype=np.float32, order="F")
    wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for position, (file, number) in enumerate(image.planes):
        wanted[file].append((number, position))
    padded = False
    for file, planes in wanted.items():
        for plane, position in _planes(image, image.files[file], sorted(planes)):
            voxels[:, :, position] = plane.T
            padded = padded or bool(np.isnan(plane).any())
    if padded:
        lowest = np.fmin.reduce(voxels, axis=None)
        if np.isnan(lowest):
            raise Unfit(Reason.LOAD_FAILED, "nothing but padding")
        voxels[np.isnan(voxels)] = lowest
    return MetaTensor(torch.from_numpy(voxels)[None], affine=torch.tensor(image.affine).double())


def _planes(
    image: Image, path: Path, planes: list[tuple[int, int]]
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """The planes (rows, columns) of one file, padding as NaN, each with its place in the volume.

    Args:
        planes: number of frame or tile, and place in the volume.
    """
    columns, rows, _ = image.shape
    if image.tiles:
        ((stored, header),) = read_frames(path, [0])
        mosaic = _values(stored, header, 0)
        if mosaic.shape[1] != image.tiles * columns or mosaic.shape[0] % rows:
            raise Unfit(Reason.LOAD_FAILED, f"a mosaic of {mosaic.shape} pixels")
        for number, position in planes:
            down, along = divmod(number, image.tiles)
            tile = mosaic[down * rows :, along * columns :][:rows, :columns]
            _check_shape(tile, (rows, columns))
            yield tile, position
        return
    frames = read_frames(path, [number for number, _ in planes])
    for (stored, header), (number, position) in zip(frames, planes, strict=True):
        _check_shape(stored, (rows, columns))
        yield _values(stored, header, number), position


def _values(stored: NDArray[Any], header: Dataset, number: int) -> NDArray[np.float32]:
    """What was measured, padding as NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = modality_values(stored, _transform(header, number)).astype(np.float32)
    unused = padding(stored, header)
    if not (np.isfinite(values) | unused).all():
        raise Unfit(Reason.NOT_FINITE, "a frame has NaN or infinite values")
    values[unused] = np.nan
    return values


def _transform(header: Dataset, number: int) -> Dataset:
    """What turns stored values of a frame into measured ones: its functional group, or the header.

    A functional group macro is either in each frame's item or in the shared one
    (PS3.3 C.7.6.16.1.1).
    """
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for item in (*frames[number : number + 1], *shared[:1]):
        if found := item.get("PixelValueTransformationSequence"):
            return cast(Dataset, found[0])
    return header


def _check_shape(frame: NDArray[Any], shape: tuple[int, ...]) -> None:
    if frame.shape != shape:
        raise Unfit(Reason.LOAD_FAILED, f"a frame of {frame.shape} pixels where {shape} are wanted")


def _checked(voxels: MetaTensor, image: Image) -> MetaTensor:
    """The file may have been replaced since it was indexed."""
    if tuple(voxels.shape[1:]) != image.shape:
        raise Unfit(Reason.LOAD_FAILED, "the file has another shape than when it was indexed")
    if image.affine is None or not _same_grid(
        image.shape, np.array(image.affine), voxels.affine.numpy()
    ):
        raise Unfit(Reason.LOAD_FAILED, "the file has another affine than when it was indexed")
    return voxels


def _read_nifti_mask(
    path: Path, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> NDArray[np.uint8]:
    mask = read_nifti(path)
    values, own = mask.numpy()[0], mask.affine.numpy()
    with np.errstate(invalid="ignore"):
        # A value outside of its range becomes another one.
        classes: NDArray[np.uint8] = values.astype(np.uint8)
    if not np.array_equal(classes, values) or classes.max() >= _OUTSIDE:
        raise Unfit(Reason.LABEL_UNKNOWN, "the mask has values that are no class index")
    if values.shape == shape and _same_grid(shape, own, affine):
        return classes
    # Voxel of the image to voxel of the mask, by way of millimetres. A centre on the border of two
    # voxels belongs to the one with the higher index, whatever the last digit of an affine says.
    matrix = np.linalg.solve(own, affine)
    matrix[:3, 3] += _BORDER
    resampled = cast(
        NDArray[np.uint8],
        affine_transform(
            classes, matrix, output_shape=shape, order=0, mode="grid-constant", cval=_OUTSIDE
        ),
    )
    outside = resampled == _OUTSIDE
    if outside.all():
        raise Unfit(Reason.GEOMETRY_DIFFERS, "no voxel of the image lies in the mask's grid")
    resampled[outside] = 0
    if classes.any() and not resampled.any():
        raise Unfit(Reason.GEOMETRY_DIFFERS, "nothing of the mask is left on the image's voxels")
    return resampled


def _same_grid(
    shape: tuple[int, ...], one: NDArray[np.float64], other: NDArray[np.float64]
) -> bool:
    """Do voxels lie where the other affine puts them? The farthest apart are at a corner."""
    corners = np.array([(*c, 1) for c in itertools.product(*((0, length - 1) for length in shape))])
    apart = np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1)
    return bool(apart.max() <= _SAME_PLACE)


@contextmanager
def _failures() -> Iterator[None]:
    """What readers raise becomes `Unfit`; their words may quote the file, their types cannot."""
    try:
        yield
    except Unfit:
        raise
    except (FileNotFoundError, PermissionError):
        raise Unfit(Reason.UNREADABLE, "the file has gone since it was indexed") from None
    except TooLarge:
        raise Unfit(Reason.TOO_LARGE, "it claims more voxels than an image may have") from None
    except MemoryError:
        raise Unfit(Reason.TOO_LARGE, "this machine has not enough memory for it") from None
    except NotFinite:
        raise Unfit(Reason.NOT_FINITE, "it has NaN or infinite values") from None
    except EOFError:
        raise Unfit(Reason.TRUNCATED, "it ends inside its voxels") from None
    except zlib.error:
        raise Unfit(Reason.CORRUPT, "its compression is damaged") from None
    except Exception as error:
        raise Unfit(Reason.LOAD_FAILED, type(error).__name__) from None
