"""Compressed frames, looked at before a decoder is.

A decoder believes its stream: a hundred bytes that claim 60,000 × 60,000 pixels make it take
gigabytes, of a stream that ends early it makes an image of what there is, and GDCM ends the process
on some that it does not understand. So size, components and end of each stream are checked here.
"""

from __future__ import annotations

import re
import struct

from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from client_app.imaging.set_aside import Reason, Unfit

# Markers of JPEG (ISO/IEC 10918-1, table B.1): tables, restarts, the start of a scan, and the frame
# headers of its processes and of JPEG-LS (ISO/IEC 14495-1 C.1).
_TABLES, _LOSSLESS, _RESTARTS, _SCAN = 0xC4, 0xC3, 0xDD, 0xDA
_FRAMES = {0xF7, *range(0xC0, 0xD0)} - {_TABLES, 0xC8, 0xCC}
_START, _END = b"\xff\xd8", b"\xff\xd9"  # EOI, and EOC of JPEG 2000


def checked(frame: bytes, syntax: UID, rows: int, columns: int) -> bytes:
    """The stream to give to a decoder: it claims one component of `rows` × `columns` and has an end.

    Lossless JPEG comes back with nothing but the segments that decoding needs. Of compressions whose
    streams claim no size (RLE, deflate) nothing is checked.

    Raises:
        Unfit: another size than that, no sound start, or no end.
    """
    jpeg_2000 = syntax in JPEG2000TransferSyntaxes  # HTJ2K among them
    if not jpeg_2000 and syntax not in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
        return frame
    if not frame.rstrip(b"\0\xff").endswith(_END):  # padded with either
        raise Unfit(Reason.TRUNCATED, "a compressed frame has no end")
    try:
        size = _size_of_jpeg_2000(frame) if jpeg_2000 else _size_of_jpeg(frame)
        if syntax in (JPEGLossless, JPEGLosslessSV1):
            frame = _needed(frame)
    except (struct.error, ValueError, LookupError):
        raise Unfit(Reason.CORRUPT, "a compressed frame has no sound start") from None
    if size != (rows, columns, 1):
        raise Unfit(Reason.CORRUPT, "a compressed frame has another size than its header says")
    return frame


def _size_of_jpeg_2000(frame: bytes) -> tuple[int, int, int]:
    """(rows, columns, components) from SIZ, which follows the start of the codestream
    (ISO/IEC 15444-1 A.5.1), bare or in a JP2 file's box (I.4).
    """
    start = 0
    while frame[start : start + 2] != b"\xff\x4f":
        length, kind = struct.unpack_from(">L4s", frame, start)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", frame, start + 8)
            head = 16
        start += head if kind == b"jp2c" else max(length, head)
    width, height, left, top = struct.unpack_from(">4L", frame, start + 8)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    return height - top, width - left, components


def _size_of_jpeg(frame: bytes) -> tuple[int, int, int]:
    """(rows, columns, components) from the one frame header (ISO/IEC 10918-1 B.2.2)."""
    segments, _ = _segments(frame)
    (marker,) = segments.keys() & _FRAMES  # or ValueError
    rows, columns, components = struct.unpack_from(">HHB", segments[marker], 1)
    return rows, columns, components


def _segments(frame: bytes) -> tuple[dict[int, bytes], bytes]:
    """What stands in the segments up to the first scan's header, by marker; and all behind it."""
    if frame[:2] != _START:
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
    return segments, frame[position:]


def _needed(frame: bytes) -> bytes:
    """Lossless JPEG of one component without comments and applications' segments.

    GDCM ends the process on what libjpeg warns of in those, and in wrong headers: so depth, tables and
    scan are held against ISO/IEC 10918-1 B.2.2 to B.2.4 and H.1.2.
    """
    segments, scan = _segments(frame)
    header, tables = segments[_LOSSLESS], segments[_TABLES]
    components, chosen, predictor, last = struct.unpack_from("BBxBB", segments[_SCAN])
    sound = len(header) == 9 and header[0] in range(2, 17) and header[6] == chosen
    sound = sound and components == 1 and len(segments[_SCAN]) == 6
    if not sound or predictor not in range(1, 8) or last != 0:
        raise ValueError("no sound headers of a lossless scan")
    rest = tables
    while rest:
        codes = rest[1:17]
        symbols, rest = rest[17 : 17 + sum(codes)], rest[17 + sum(codes) :]
        room = sum(count << (16 - bits) for bits, count in enumerate(codes, 1))
        if not symbols or len(symbols) < sum(codes) or max(symbols) > 16 or room > 1 << 16:
            raise ValueError("no Huffman table")
    end = re.search(rb"\xff[^\0\xff\xd0-\xd7]", scan)
    if end is None or end.group() != _END or len(scan) - end.end() > 16:
        raise ValueError("more than one scan")
    kept = [_START]
    for marker in (_TABLES, _LOSSLESS, _RESTARTS, _SCAN):
        if marker in segments:
            content = segments[marker]
            kept.append(struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content)
    return b"".join([*kept, scan[: end.end()]])
