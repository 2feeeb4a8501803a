"""What one file's numbers mean: radiographs (DICOM) and volumes (NIfTI) as tensors.

Small on purpose: both the hospitals' readers and the coordinator's report on public images rest on
it. Series of DICOM slices are put together in `client_app.imaging.voxels`.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from federation.nifti import (
    LARGEST_OFFSET,
    LARGEST_VOXELS,
    nifti_affine,
    nifti_shape,
    open_nifti,
)


class TooLarge(ValueError):
    """An image of more than `LARGEST_VOXELS` voxels; nothing was allocated."""


class NotFinite(ValueError):
    """An image with NaN or infinite values."""


def read_radiograph(path: str | Path) -> MetaTensor:
    """One DICOM radiograph, float32, (1, rows, columns), see `radiograph` and `radiograph_affine`.

    Raises:
        ValueError: colours, several frames, or values that are not finite.
    """
    dataset = dcmread(path)
    spacing = dataset.get("ImagerPixelSpacing") or dataset.get("PixelSpacing")
    pixels = torch.from_numpy(radiograph(dataset))[None]
    return MetaTensor(pixels, affine=radiograph_affine(spacing and tuple(map(float, spacing))))


def radiograph_affine(spacing: tuple[float, float] | None) -> torch.Tensor:
    """(3, 3) float64, pixel (row, column) to mm on the detector; ones where no spacing is known."""
    return torch.diag(torch.tensor((*(spacing or (1.0, 1.0)), 1.0), dtype=torch.float64))


def radiograph(dataset: Dataset) -> NDArray[np.float32]:
    """Pixels (rows, columns) of one radiograph, in which denser tissue is always brighter.

    Raises:
        ValueError: colours, several frames, or values that are not finite.
    """
    stored = dataset.pixel_array
    interpretation = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if not interpretation.startswith("MONOCHROME") or stored.ndim != 2:
        raise ValueError(
            f"one greyscale frame is wanted, not {interpretation} of shape {stored.shape}"
        )
    return brightness(stored, dataset)


def brightness(stored: NDArray[Any], dataset: Dataset) -> NDArray[np.float32]:
    """Stored values of one greyscale frame to float32 in which denser tissue is always brighter.

    The modality transform (`modality_values`) is applied. The VOI window is not: it is what a
    workstation last showed, it differs by vendor, and percentiles do its work. MONOCHROME1, which
    shows its lowest value white, is mirrored within its own range: v becomes max + min - v, with
    maximum and minimum over all pixels but padding. Padding outside the collimator takes the darkest
    value of the rest; an image of nothing but padding keeps its values.

    Raises:
        ValueError: values that are not finite, or an unusable modality transform.
    """
    pixels = modality_values(stored, dataset)
    used = ~padding(stored, dataset)
    if not used.any():
        used[:] = True
    low, high = pixels[used].min(), pixels[used].max()
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        pixels = high + low - pixels
    pixels[~used] = low
    result = pixels.astype(np.float32)
    if not np.isfinite(result).all():
        raise NotFinite("a radiograph has values that are not finite")
    return result


def modality_values(stored: NDArray[Any], transform: Dataset) -> NDArray[np.float64]:
    """Stored values to what the machine measured: table, or slope and intercept (PS3.3 C.11.1).

    Args:
        transform: what holds ModalityLUTSequence, or RescaleSlope and RescaleIntercept: a dataset, or
            an item of PixelValueTransformationSequence (PS3.3 C.7.6.16.2.9). With neither the stored
            values stand for themselves.

    Raises:
        ValueError: a slope of zero, or a table that is shorter than its descriptor says.
    """
    if tables := transform.get("ModalityLUTSequence"):
        return _look_up(stored, tables[0])
    slope, intercept = transform.get("RescaleSlope"), transform.get("RescaleIntercept")
    slope = 1.0 if slope is None else float(slope)
    if slope == 0 or not math.isfinite(slope):
        raise ValueError("a rescale slope is zero or not finite")
    return stored.astype(np.float64) * slope + (0.0 if intercept is None else float(intercept))


def _look_up(stored: NDArray[Any], table: Dataset) -> NDArray[np.float64]:
    """Values below the first that is mapped take the table's first entry, those above its last."""
    entries, first, _ = (int(number) for number in table.LUTDescriptor)
    entries = entries or 1 << 16
    first = first - (1 << 16) if stored.dtype.kind == "i" and first >= 1 << 15 else first
    data = table.LUTData
    if isinstance(data, bytes):
        # Not the descriptor's depth: writers say 12, or 16 of bytes. The length tells.
        order = "<" if table.original_encoding[1] in (True, None) else ">"
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else f"{order}u2")
    values = np.atleast_1d(np.asarray(data, dtype=np.float64))
    if len(values) < entries:
        raise ValueError(f"a modality table has {len(values)} entries and says {entries}")
    return values[np.clip(stored.astype(np.int64) - first, 0, entries - 1)]


def padding(stored: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_]:
    """Where stored values lie between PixelPaddingValue and PixelPaddingRangeLimit, if given.

    PS3.3 C.7.5.1.1.2; of float pixel data FloatPixelPaddingValue and its limit, C.7.6.24 and 25.
    Writers that give -2000 as 63536 or the other way round are understood.
    """
    kind = {4: "Float", 8: "DoubleFloat"}[stored.itemsize] if stored.dtype.kind == "f" else ""
    value = dataset.get(f"{kind}PixelPaddingValue")
    limit = dataset.get(f"{kind}PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    number = float if kind else int
    ends = np.array([number(value), number(value if limit is None else limit)])
    low, high = sorted(ends.astype(stored.dtype))
    return cast(NDArray[np.bool_], (stored >= low) & (stored <= high))


def read_nifti(path: str | Path) -> MetaTensor:
    """One volume of a NIfTI-1 or -2 file, float32, (1, i, j, k), with its affine to RAS+ in mm.

    Stored values are multiplied by scl_slope and shifted by scl_inter. Trailing axes of length one
    are dropped. A compressed file is read to its end, so that its checksum is verified.

    Not MONAI's LoadImage: it tries every other reader on a file that this one refuses, and keeps the
    path in what it returns.

    Raises:
        TooLarge, NotFinite: see there.
        ValueError: not NIfTI, no geometry, not one volume, or not of real numbers.
        OSError, EOFError, zlib.error: the file is cut short or damaged.
    """
    with open_nifti(path) as (file, header):
        shape = nifti_shape(header)
        if len(shape) != 3:
            raise ValueError(f"a file has shape {shape}: one 3-D volume is wanted")
        if math.prod(shape) > LARGEST_VOXELS:
            raise TooLarge(f"a file has shape {shape}")
        if header.get_data_dtype().kind not in "iuf":
            raise ValueError("a file holds colours or complex numbers: real ones are wanted")
        affine = nifti_affine(header)
        # Without memory map: the file may shrink while it is read.
        proxy = ArrayProxy(file, header, mmap=False)
        with np.errstate(over="ignore", invalid="ignore"):
            voxels = np.asarray(proxy, dtype=np.float32)
        _verify_checksum(file)
    if not np.isfinite(voxels).all():
        raise NotFinite("a file has values that are not finite")
    return MetaTensor(torch.from_numpy(voxels.reshape(1, *shape)), affine=torch.from_numpy(affine))


def _verify_checksum(file: BinaryIO) -> None:
    """gzip compares its checksum at the end of the file; what may follow the voxels is bounded."""
    if isinstance(file, gzip.GzipFile):
        for _ in range(LARGEST_OFFSET >> 20):
            if not file.read(1 << 20):
                return
