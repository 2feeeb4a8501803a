"""Whether the pixel data of a file is all there and can be decoded, without decoding it."""

from __future__ import annotations

import struct
from functools import cache
from typing import BinaryIO

from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from client_app.imaging.elements import Elements
from client_app.imaging.set_aside import Reason, Unfit

# Later than pydicom 3.0's dictionary.
_NAMES = {
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
LABEL_MAP, _DEFLATED_FRAMES = _NAMES
_PLAIN = frozenset(
    {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
)
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END_OF_SEQUENCE = 0xE000FFFE, 0xE0DDFFFE  # read as one little-endian number


def check_pixels(elements: Elements, file: BinaryIO, size: int, needed: int) -> None:
    """Is the pixel data there, as long as it says and as the header needs, and can it be decoded?

    Args:
        needed: bytes of uncompressed pixel data; 0 if that is left to whoever decodes them.
    """
    if not _is_decodable(elements.syntax):
        raise Unfit(Reason.COMPRESSION_UNKNOWN, name_of(elements.syntax, "transfer syntax"))
    deflated = elements.syntax == uid.DeflatedExplicitVRLittleEndian
    if elements.pixels is None:
        raise Unfit(Reason.TRUNCATED, "it ends before the pixel data")
    offset, length = elements.pixels
    if deflated:  # how long it really is shows when all of it is inflated
        return
    if length == _UNDEFINED:
        if elements.syntax in _PLAIN:
            raise Unfit(Reason.CORRUPT, "uncompressed pixel data of no stated length")
        _check_fragments(file, size, offset)
    elif size - offset < length:
        raise Unfit(Reason.TRUNCATED, f"{size - offset:,} of {length:,} bytes of pixel data")
    elif elements.syntax in _PLAIN and length < needed:
        raise Unfit(Reason.CORRUPT, f"{length:,} bytes of pixel data where {needed:,} are needed")


def _check_fragments(file: BinaryIO, size: int, position: int) -> None:
    """Compressed frames come in items, each with its length (PS3.5, A.4)."""
    fragments = -1  # the first item is the table of offsets
    while position + 8 <= size:
        file.seek(position)
        tag, length = struct.unpack("<LL", file.read(8))
        if tag != _ITEM or length == _UNDEFINED:
            break
        position += 8 + length
        fragments += 1
        if position > size:
            missing = position - size
            raise Unfit(Reason.TRUNCATED, f"its compressed pixel data lacks {missing:,} bytes")
    if fragments < 1:
        raise Unfit(Reason.TRUNCATED, "it ends before the first compressed frame")


@cache
def _is_decodable(syntax: str) -> bool:
    if syntax == _DEFLATED_FRAMES:
        return True
    try:
        return get_decoder(UID(syntax)).is_available
    except NotImplementedError:
        return False


def name_of(identifier: str, what: str) -> str:
    """The standard's name; what the standard does not know may say whose it is, and is not repeated."""
    if identifier in _NAMES:
        return _NAMES[identifier]
    name = UID(identifier).name  # the identifier itself if it has none
    return (
        name if name != identifier else f"{'a private or unknown' if identifier else 'no'} {what}"
    )
