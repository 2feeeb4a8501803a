"""The stored values of frames of one DICOM file, read only after what they claim was checked.

The header is held against the file's length and a fixed limit, the compressed streams against the
header (`codestream`).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from client_app.imaging import codestream
from client_app.imaging.set_aside import Reason, Unfit
from federation.nifti import LARGEST_VOXELS

# What the values' meaning depends on; nothing else of a header is parsed.
_TAGS = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue",
    "DoubleFloatPixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]
_KEYWORDS = {
    (0x7FE0, 0x0008): "FloatPixelData",
    (0x7FE0, 0x0009): "DoubleFloatPixelData",
    (0x7FE0, 0x0010): "PixelData",
}
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM = 0xE000FFFE
_PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_DEFLATED_FRAMES = UID("1.2.840.10008.1.2.8.1")  # newer than pydicom 3.0


def read_frames(path: Path, numbers: Sequence[int]) -> Iterator[tuple[NDArray[Any], Dataset]]:
    """Stored values (rows, columns) of some frames of a file, in the order asked for.

    Bits above BitsStored are cleared, signs are extended; nothing else is applied. Each comes with
    the elements of the header that give values their meaning (always the same object). The file is
    opened once, and of uncompressed frames only those asked for are read.

    Args:
        numbers: of frames, from 0.

    Raises:
        Unfit: colours, an unknown compression, a frame that the file does not hold or that claims
            another size than the header, or more than `LARGEST_VOXELS` pixels.
        Exception: whatever a decoder raises on a damaged frame.
    """
    with path.open("rb") as raw:
        file = _inflated(path, raw)
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=_TAGS)
        syntax = _transfer_syntax(header)
        _check(header)
        options = as_pixel_options(header, transfer_syntax_uid=syntax)
        options["pixel_keyword"], options["pixel_vr"], length = _element(file, header)
        for number in numbers:
            if not 0 <= number < options["number_of_frames"]:
                raise Unfit(Reason.LOAD_FAILED, f"no frame {number:,}")
            read = _plain if syntax in _PLAIN else _compressed
            yield read(file, syntax, options, number, length), header


def _inflated(path: Path, raw: BinaryIO) -> BinaryIO:
    """The file itself; of one in Deflated Explicit VR the inflated data set, if it is not a bomb."""
    try:
        meta = read_file_meta_info(path)
    except Exception:  # without preamble or group 2: never deflated
        return raw
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return raw
    # Preamble and prefix, the element that says how long group 2 is, and group 2 (PS3.10, 7.1).
    raw.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
    return io.BytesIO(_inflate(raw.read(), 8 * LARGEST_VOXELS))


def _inflate(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    result = inflater.decompress(data, limit)
    if inflater.unconsumed_tail:
        raise Unfit(Reason.TOO_LARGE, f"it inflates to more than {limit:,} bytes")
    return result


def _transfer_syntax(header: pydicom.FileDataset) -> UID:
    """What the file says, or what its first element looked like if it says nothing."""
    if syntax := header.file_meta.get("TransferSyntaxUID"):
        return UID(syntax)
    implicit, little = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _check(header: Dataset) -> None:
    # int() before anything is said: of a damaged header "one number" may be all pixels.
    samples = int(header.get("SamplesPerPixel", 1))
    if samples != 1 or header.get("PhotometricInterpretation") not in (
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        raise Unfit(Reason.COLOUR, f"{samples} samples a pixel")
    rows, columns = int(header.Rows), int(header.Columns)
    if min(rows, columns) < 1:
        raise Unfit(Reason.NOT_AN_IMAGE, "no rows or no columns")
    if rows * columns > LARGEST_VOXELS:
        raise Unfit(Reason.TOO_LARGE, f"{rows:,} × {columns:,} pixels")
    if "BitsStored" in header and "HighBit" in header:
        stored, high = int(header.BitsStored), int(header.HighBit)
        if high != stored - 1:
            # Retired with ACR-NEMA; pydicom takes the low bits, which would be other numbers.
            raise Unfit(Reason.NOT_SUPPORTED, f"high bit {high} of {stored} bits stored")


def _element(file: BinaryIO, header: pydicom.FileDataset) -> tuple[str, str, int]:
    """Keyword, VR and bytes of the pixel data element; leaves the file where its value starts."""
    implicit, little = header.original_encoding
    order = "<" if little else ">"
    start = file.read(8 if implicit else 12)
    if len(start) < (8 if implicit else 12):
        raise Unfit(Reason.TRUNCATED, "it ends before the pixel data")
    group, element = struct.unpack(f"{order}HH", start[:4])
    if (group, element) not in _KEYWORDS:
        raise Unfit(Reason.NOT_AN_IMAGE, "it holds no pixel data")
    (length,) = struct.unpack(f"{order}L", start[-4:])
    present = _remaining(file)
    if length != _UNDEFINED_LENGTH and present < length:
        raise Unfit(Reason.TRUNCATED, f"{present:,} of {length:,} bytes of pixel data")
    vr = "OW" if implicit else start[4:6].decode("ascii")
    return _KEYWORDS[group, element], vr, present if length == _UNDEFINED_LENGTH else length


def _remaining(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def _plain(
    file: BinaryIO, syntax: UID, options: dict[str, Any], number: int, length: int
) -> NDArray[Any]:
    needed = (number + 1) * options["rows"] * options["columns"] * options["bits_allocated"] // 8
    if needed > length:
        raise Unfit(Reason.TRUNCATED, f"{length:,} of {needed:,} bytes of pixel data")
    start = file.tell()
    stored, _ = get_decoder(syntax).as_array(file, index=number, **options)
    file.seek(start)
    return stored


def _compressed(
    file: BinaryIO, syntax: UID, options: dict[str, Any], number: int, length: int
) -> NDArray[Any]:
    frames, rows, columns = options["number_of_frames"], options["rows"], options["columns"]
    # The Basic Offset Table has four bytes a frame (PS3.5 A.4), and a frame takes an item's start.
    tag, table = struct.unpack("<LL", file.read(8))
    file.seek(-8, io.SEEK_CUR)
    if tag != _ITEM or table > 4 * frames or 8 * frames > length:
        raise Unfit(Reason.CORRUPT, f"no sound table of {frames:,} compressed frames")
    extended = options.get("extended_offsets")
    frame = get_frame(file, number, number_of_frames=frames, extended_offsets=extended)
    size = -(-rows * columns * options["bits_allocated"] // 8)
    if len(frame) > 2 * size + (1 << 16):
        raise Unfit(Reason.CORRUPT, f"{len(frame):,} compressed bytes for {size:,} plain ones")
    frame = codestream.checked(frame, syntax, rows, columns)
    options = {**options, "number_of_frames": 1, "extended_offsets": None}
    if syntax == _DEFLATED_FRAMES:
        plain = io.BytesIO(_inflate(frame, size + 1))
        options["transfer_syntax_uid"] = ExplicitVRLittleEndian
        return _plain(plain, ExplicitVRLittleEndian, options, 0, _remaining(plain))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Unfit(Reason.COMPRESSION_UNKNOWN, _name(syntax)) from None
    options["decoding_plugin"] = _plug_in(syntax)
    twelve_bits = syntax == JPEGExtended12Bit and options["bits_stored"] > 8  # nothing free has it
    if twelve_bits or options["decoding_plugin"] not in decoder.available_plugins:
        raise Unfit(Reason.COMPRESSION_UNKNOWN, _name(syntax))
    if syntax == RLELossless and options["bits_allocated"] == 1:  # bytes of eight pixels each
        bits = {"rows": 1, "columns": size, "bits_allocated": 8, "bits_stored": 8}
        packed = _decoded(decoder, frame, {**options, **bits})
        return np.unpackbits(packed, bitorder="little")[: rows * columns].reshape(rows, columns)
    return _decoded(decoder, frame, options)


def _plug_in(syntax: UID) -> str:
    """One decoder for each compression, so that a damaged frame meets no second one.

    GDCM decodes only what nothing else does: on damaged frames it may end the process.
    """
    if syntax in JPEG2000TransferSyntaxes or syntax == RLELossless:
        return "pylibjpeg"
    if syntax in JPEGLSTransferSyntaxes:
        return "pyjpegls"
    return "pillow" if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) else "gdcm"


def _decoded(decoder: Decoder, frame: bytes, options: dict[str, Any]) -> NDArray[Any]:
    try:
        return decoder.as_array(encapsulate([frame]), index=0, **options)[0]
    except BaseException as error:
        # What a plug-in written in Rust raises on a damaged frame is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise Unfit(Reason.CORRUPT, "a compressed frame is damaged") from None


def _name(syntax: UID) -> str:
    return syntax.name if syntax.is_valid and not syntax.is_private else "unknown"
