"""The geometry in the header of one NIfTI file. Whose it is, `layouts` knows."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

from client_app.imaging.header import Header, Kind
from client_app.imaging.set_aside import Reason, Unfit
from federation.nifti import LARGEST_VOXELS, nifti_affine, nifti_shape, open_nifti

_SUFFIXES = (".nii", ".nii.gz")
# No deflate stream grows more than this when it is inflated (zlib, technical details).
_LARGEST_RATIO = 1032


def read_header(path: Path) -> Header:
    """Kind NIFTI, shape and affine of a NIfTI-1 or -2 file, compressed or not.

    Voxels are not read, with one exception: where the last bytes of a compressed file do not give
    the length that its header asks for, it is inflated once to see whether it is cut short.

    Raises:
        Unfit: not NIfTI, no usable affine, colours, or shorter than its header says.
        Exception: whatever nibabel raises on a header that is broken in ways of its own.
    """
    if not path.name.lower().endswith(_SUFFIXES):
        raise Unfit(Reason.NOT_NIFTI)
    size = path.stat().st_size
    if size == 0:
        raise Unfit(Reason.EMPTY)
    try:
        with open_nifti(path) as (file, header):
            shape, dtype = nifti_shape(header), header.get_data_dtype()
            if len(shape) < 2 or min(shape) < 1:
                raise Unfit(Reason.NOT_AN_IMAGE, f"shape {shape}")
            if dtype.kind not in "iuf":
                reason = Reason.NOT_SUPPORTED if dtype.kind == "c" else Reason.COLOUR
                raise Unfit(reason, "voxels are no real numbers")
            # A file of several volumes may be larger than one image may be.
            if math.prod(shape[:3]) > LARGEST_VOXELS:
                raise Unfit(Reason.TOO_LARGE, f"shape {shape}")
            needed = int(header.get_data_offset()) + math.prod(shape) * dtype.itemsize
            _check_complete(file, size, needed)
            try:
                affine = nifti_affine(header)
            except ValueError as error:  # our own words
                raise Unfit(Reason.NO_GEOMETRY, str(error)) from None
    except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise Unfit(Reason.CORRUPT, f"no sound NIfTI header: {type(error).__name__}") from None
    rows = tuple(tuple(float(number) for number in row) for row in affine)
    return Header(kind=Kind.NIFTI, shape=shape, affine=rows)


def _check_complete(file: BinaryIO, size: int, needed: int) -> None:
    """Are there as many bytes as header and voxels take?

    gzip ends with the length of what it holds, modulo 2**32 (RFC 1952, section 2.3.1). Where that is
    another, the file is cut short, or in several parts, or longer than it must be: it is inflated.
    """
    if not isinstance(file, gzip.GzipFile):
        if size < needed:
            raise Unfit(Reason.TRUNCATED, f"{size:,} of {needed:,} bytes")
        return
    if needed > size * _LARGEST_RATIO:
        raise Unfit(Reason.TRUNCATED, f"{size:,} bytes cannot hold {needed:,}")
    with Path(file.name).open("rb") as raw:
        raw.seek(-4, 2)
        length = int.from_bytes(raw.read(4), "little")
    if length == needed % (1 << 32):
        return
    try:
        while file.tell() < needed and file.read(1 << 20):
            pass
    except EOFError:
        pass
    if file.tell() < needed:
        raise Unfit(Reason.TRUNCATED, f"{file.tell():,} of {needed:,} bytes")
