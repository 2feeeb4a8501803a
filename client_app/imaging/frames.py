"""The stored values of frames of one DICOM file, decoded only after what they claim was checked.

A decoder believes the compressed stream: a hundred bytes that claim 60,000 × 60,000 pixels make it
take gigabytes. So size and components of each stream are read first and compared with the header,
and the header with the file's length and with a fixed limit.
"""

from __future__ import annotations

import io
import re
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
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from client_app.imaging.set_aside import Reason, Unfit
from federation.pixels import LARGEST_VOXELS

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
# Markers of JPEG: the start of a scan, and the frame headers of all its processes and of JPEG-LS.
_SCAN = 0xDA
_FRAMES = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_END_OF_STREAM = b"\xff\xd9"  # EOI and EOC alike
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
    if _claimed_size(frame, syntax) not in (None, (rows, columns, 1)):
        raise Unfit(Reason.CORRUPT, "a compressed frame has another size than its header says")
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

    GDCM decodes only what nothing else does: on damaged JPEG-LS it ends the process.
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


def _claimed_size(frame: bytes, syntax: UID) -> tuple[int, int, int] | None:
    """(rows, columns, components) that a compressed stream claims; none where streams claim none.

    Raises:
        Unfit: a stream of JPEG, JPEG-LS or JPEG 2000 without sound start, or without its end:
            decoders invent what is missing, or search for it long.
    """
    jpeg_2000 = syntax in JPEG2000TransferSyntaxes  # HTJ2K among them
    if not jpeg_2000 and syntax not in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
        return None
    if not frame.rstrip(b"\0\xff").endswith(_END_OF_STREAM):  # padded with either
        raise Unfit(Reason.TRUNCATED, "a compressed frame has no end")
    try:
        return (
            _size_of_jpeg_2000(frame)
            if jpeg_2000
            else _size_of_jpeg(frame, lossless=syntax in (JPEGLossless, JPEGLosslessSV1))
        )
    except (struct.error, ValueError, LookupError):
        raise Unfit(Reason.CORRUPT, "a compressed frame has no sound start") from None


def _size_of_jpeg_2000(frame: bytes) -> tuple[int, int, int]:
    """SIZ follows the start of the codestream (ISO/IEC 15444-1 A.5.1), bare or in a JP2 file's box."""
    start = 0
    while frame[start : start + 2] != b"\xff\x4f":
        length, kind = struct.unpack_from(">L4s", frame, start)  # of a box, I.4
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", frame, start + 8)
            head = 16
        start += head if kind == b"jp2c" else max(length, head)
    width, height, left, top = struct.unpack_from(">4L", frame, start + 8)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    return height - top, width - left, components


def _size_of_jpeg(frame: bytes, *, lossless: bool) -> tuple[int, int, int]:
    """From the frame header among the segments before the first scan: SOF0 to SOF15
    (ISO/IEC 10918-1 B.2.2) or SOF55 (ISO/IEC 14495-1 C.2.2).

    Args:
        lossless: whether it must be a stream that GDCM decodes, see `_check_lossless`.
    """
    if frame[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    position = 2
    segments: dict[int, bytes] = {}
    while _SCAN not in segments:
        while frame[position : position + 2] == b"\xff\xff":  # fill byte
            position += 1
        start, marker, length = struct.unpack_from(">BBH", frame, position)
        if start != 0xFF or length < 2 or (marker in segments and marker in _FRAMES):
            raise ValueError("no marker, or two frame headers")
        segments[marker] = segments.get(marker, b"") + frame[position + 4 : position + 2 + length]
        position += 2 + length
    (marker,) = segments.keys() & _FRAMES  # or ValueError
    if lossless:
        _check_lossless(segments, frame[position:])
    rows, columns, components = struct.unpack_from(">HHB", segments[marker], 1)
    return rows, columns, components


def _check_lossless(segments: dict[int, bytes], scan: bytes) -> None:
    """One component of 2 to 16 bits, sound Huffman tables, one scan and nothing behind it.

    On streams that are otherwise GDCM may end the process. ISO/IEC 10918-1 B.2.2 to B.2.4, H.1.2.
    """
    header = segments[0xC3]
    components, _, predictor, end = struct.unpack_from("BBxBB", segments[_SCAN])
    ends = re.search(rb"\xff[^\0\xff\xd0-\xd7]", scan)
    sound = 2 <= header[0] <= 16 and components == 1 and 1 <= predictor <= 7 and end == 0
    if not sound or ends is None or len(scan) - ends.end() > 16:
        raise ValueError("not one lossless scan")
    tables = segments[0xC4]
    while tables:
        codes = tables[1:17]
        symbols, tables = tables[17 : 17 + sum(codes)], tables[17 + sum(codes) :]
        room = sum(count << (16 - bits) for bits, count in enumerate(codes, 1))
        if not symbols or len(symbols) < sum(codes) or max(symbols) > 16 or room > 1 << 16:
            raise ValueError("no Huffman table")
