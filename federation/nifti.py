"""NIfTI headers (nifti.nimh.nih.gov): shape and geometry, without voxels and without PyTorch.

Whoever looks at a million headers starts many processes, and importing PyTorch takes each seconds.
"""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from numpy.typing import NDArray

LARGEST_VOXELS = 1 << 30
"""Elements of one image; as float32 they take 4 GiB. A whole-body CT has a third of it."""

_GZIP = b"\x1f\x8b"
# Extensions stand between header and voxels; real ones are kilobytes.
LARGEST_OFFSET = 64 << 20
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unsaid, metre, millimetre, micrometre


@contextlib.contextmanager
def open_nifti(path: str | Path) -> Iterator[tuple[BinaryIO, nibabel.Nifti1Header]]:
    """The file, decompressed if it is compressed (by its content, not its name), and its header.

    Extensions are not read: no image needs them, and a hostile one claims gigabytes.

    Raises:
        ValueError: not one file of NIfTI-1 or -2.
        nibabel.spatialimages.HeaderDataError: a header that contradicts itself.
    """
    with Path(path).open("rb") as raw, contextlib.ExitStack() as stack:
        compressed = raw.read(2) == _GZIP
        raw.seek(0)
        file: Any = stack.enter_context(gzip.open(raw)) if compressed else raw
        start = file.read(540)
        if start[344:348] == b"n+1\0":
            header = nibabel.Nifti1Header(start[:348])
        elif start[4:12] == b"n+2\0\r\n\x1a\n" and len(start) == 540:
            header = nibabel.Nifti2Header(start)
        else:
            raise ValueError("a file is no single file of NIfTI-1 or NIfTI-2")
        if not len(header.binaryblock) <= header.get_data_offset() <= LARGEST_OFFSET:
            raise ValueError("a file's voxels start before or far behind its header")
        yield file, header


def nifti_shape(header: nibabel.Nifti1Header) -> tuple[int, ...]:
    """The lengths of the axes; trailing ones beyond the third are dropped if they are one."""
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def nifti_affine(header: nibabel.Nifti1Header) -> NDArray[np.float64]:
    """(4, 4) voxel indices to RAS+ mm: the sform where there is one, else the qform.

    The header's unit of length is honoured (`xyzt_units`). With neither form left and right are
    unknown, and nibabel's guess is not taken.

    Raises:
        ValueError: neither form, an affine that cannot be inverted, or an unknown unit.
    """
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        raise ValueError("a header has neither sform nor qform: left and right are unknown")
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        raise ValueError("a header has an unknown unit of length")
    scale = np.diag([_MM_PER_UNIT[unit]] * 3 + [1.0])
    affine = scale @ np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise ValueError("the affine from voxels to millimetres cannot be inverted")
    return cast(NDArray[np.float64], affine)
