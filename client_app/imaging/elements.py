"""The elements of a DICOM file up to its pixels, without reading what nobody asks for.

pydicom makes an object of every element, and inflates and allocates whatever a file claims. An index
reads millions of headers on a hostile disk: here elements are stepped over by their lengths (DICOM
PS3.5, chapter 7), values are read when they are asked for, and nothing is believed to be longer than
the file. Dictionary and character sets are pydicom's.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO, NamedTuple

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from client_app.imaging.set_aside import Reason, Unfit

LARGEST_INFLATED = 64 << 20  # bytes of a deflated data set that a header may take
LARGEST_VALUE = 64 << 20  # bytes of one value; functional groups of 20,000 frames take less
_GLANCE_INFLATED = 1 << 20
_PREAMBLE_BYTES = 128
# Without the preamble a file starts with its first group, 0002 or 0008, in either byte order.
_FIRST_GROUPS = (b"\x02\x00", b"\x00\x02", b"\x08\x00", b"\x00\x08")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_DEEPEST = 32  # sequences in one another; the standard's own need fewer than ten
_LONG = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_BINARY = {
    b"US": "H",
    b"SS": "h",
    b"UL": "L",
    b"SL": "l",
    b"FL": "f",
    b"FD": "d",
    b"UV": "Q",
    b"SV": "q",
}
_ESCAPE = 0x1B  # switches character sets, PS3.5 section 6.1.2.5.3


class _Place(NamedTuple):
    """Where a value lies in the file. `vr` is empty in implicit encoding."""

    vr: bytes
    offset: int
    length: int


class _Encoding(NamedTuple):
    implicit: bool
    order: str  # of struct
    characters: tuple[str, ...] = ()


class Elements:
    """One data set: the file's, or an item's of a sequence. Lives as long as its file is open.

    Elements are named by keyword, private ones by tag. What is absent is empty.

    Attributes:
        syntax: of the whole file, the transfer syntax it declares or looks like.
        storage_class: of the whole file, the SOP class that its file meta information names.
        pixels: where the pixel data lies: offset and stated length; none before they are reached.
        missing: bytes that an element claims beyond the end of the file.
        size: bytes that there are.
    """

    def __init__(self, file: BinaryIO, size: int, encoding: _Encoding) -> None:
        self.syntax = ""
        self.storage_class = ""
        self.pixels: tuple[int, int] | None = None
        self.missing = 0
        self.size = size
        self._file = file
        self._encoding = encoding
        self._places: dict[int, _Place] = {}

    def __contains__(self, name: str | int) -> bool:
        return _tag(name) in self._places

    def value(self, name: str | int) -> bytes:
        """The bytes as they are. Raises Unfit: more than `LARGEST_VALUE`."""
        place = self._places.get(_tag(name))
        if place is None or not place.length:
            return b""
        if place.length > LARGEST_VALUE:
            raise Unfit(Reason.TOO_LARGE, f"an element of its header has {place.length:,} bytes")
        self._file.seek(place.offset)
        return self._file.read(place.length)

    def text(self, name: str | int) -> str:
        """A value of text, decoded, without padding."""
        value = self.value(name)
        if value.isascii() and _ESCAPE not in value:
            return value.decode("ascii").strip(" \0")
        encodings = list(self._encoding.characters) or ["iso8859"]
        return decode_bytes(value, encodings, set()).strip(" \0")

    def words(self, name: str | int) -> tuple[str, ...]:
        """The values of a coded text."""
        text = self.text(name)
        return tuple(word.strip() for word in text.split("\\")) if text else ()

    def numbers(self, name: str | int) -> tuple[float, ...]:
        """The values of a number in text or binary. Raises ValueError: they are none."""
        place = self._places.get(_tag(name))
        if place is None:
            return ()
        vr = place.vr if place.vr not in (b"", b"UN") else _vr(_tag(name))
        if code := _BINARY.get(vr):
            value = self.value(name)
            count = len(value) // struct.calcsize(f"={code}")
            return tuple(
                map(float, struct.unpack_from(f"{self._encoding.order}{count}{code}", value))
            )
        return tuple(float(word) for word in self.words(name) if word)

    def number(self, name: str | int) -> float | None:
        """The first value, if it is a finite number."""
        try:
            first = self.numbers(name)[:1]
        except ValueError:
            return None
        return first[0] if first and math.isfinite(first[0]) else None

    def items(self, name: str | int) -> list[Elements]:
        """The items of a sequence, each a data set in memory."""
        place = self._places.get(_tag(name))
        if place is None:
            return []
        value = self.value(name)
        encoding = self._encoding
        if place.vr == b"UN":  # of unknown representation is what was implicit once, PS3.5 6.2.2
            encoding = _Encoding(True, "<", encoding.characters)
        return list(_items(io.BytesIO(value), len(value), encoding))

    def _take(self, tag: int, place: _Place) -> None:
        self._places[tag] = place
        if tag == 0x00080005:  # SpecificCharacterSet holds for all that follows
            characters = convert_encodings(list(self.words(tag)) or [""])
            self._encoding = self._encoding._replace(characters=tuple(characters))


def open_elements(file: BinaryIO, size: int) -> Elements:
    """The data set of a DICOM file, with or without preamble, up to its pixel data.

    Raises:
        Unfit: it does not start like DICOM, or is deflated and inflates beyond `LARGEST_INFLATED`.
        zlib.error: it is deflated, and broken.
    """
    start = file.read(_PREAMBLE_BYTES + 4)
    begin = len(start) if start[_PREAMBLE_BYTES:] == b"DICM" else 0
    if not begin and start[:2] not in _FIRST_GROUPS:
        raise Unfit(Reason.NOT_DICOM)
    meta = Elements(file, size, _Encoding(False, "<"))
    begin = _walk(meta, begin, only_group=2)
    syntax = meta.text("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        found = _inflated(file, begin)
    else:
        found = Elements(file, size, _encoding(file, begin, syntax))
        _walk(found, begin)
    found.syntax = syntax or _undeclared(found._encoding)
    found.storage_class = meta.text("MediaStorageSOPClassUID")
    return found


def _inflated(file: BinaryIO, begin: int) -> Elements:
    """A deflated data set (PS3.5, A.5), of which no more is inflated than the header needs."""
    for limit in (_GLANCE_INFLATED, LARGEST_INFLATED):
        file.seek(begin)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        # Deflating lengthens what cannot be compressed by five bytes in 16 KiB at most.
        plain = inflater.decompress(file.read(limit + (limit >> 10)), limit)
        found = Elements(io.BytesIO(plain), len(plain), _Encoding(False, "<"))
        _walk(found, 0)
        if found.pixels or len(plain) < limit:
            return found
    raise Unfit(Reason.TOO_LARGE, f"its header inflates to more than {LARGEST_INFLATED:,} bytes")


def _encoding(file: BinaryIO, begin: int, syntax: str) -> _Encoding:
    """As declared, except that two capitals where a VR would stand prove explicit encoding."""
    file.seek(begin)
    first = file.read(6)
    explicit = len(first) == 6 and _is_vr(first[4:])
    if syntax == ExplicitVRBigEndian:
        return _Encoding(False, ">")
    if not syntax and explicit and int.from_bytes(first[:2], "little") >= 0x0400:
        return _Encoding(False, ">")  # no header starts with such a group: its bytes are swapped
    return _Encoding(not explicit, "<")


def _undeclared(encoding: _Encoding) -> str:
    if encoding.implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if encoding.order == "<" else ExplicitVRBigEndian


def _is_vr(letters: bytes) -> bool:
    return letters.isalpha() and letters.isupper()


def _walk(
    found: Elements, position: int, *, only_group: int = 0, end: int | None = None, depth: int = 0
) -> int:
    """Note where each element lies; give the position after the last one.

    Ends at the pixel data, at the first element that is not of `only_group`, at the end
    of an item of undefined length, or where the file does.
    """
    file, size = found._file, found.size if end is None else end
    implicit, order, _ = found._encoding
    long = struct.Struct(f"{order}HHL").unpack
    short = struct.Struct(f"{order}HH2sH").unpack
    extended = struct.Struct(f"{order}L").unpack
    read, seek = file.read, file.seek
    seek(position)
    while position + 8 <= size:
        head = read(8)
        vr = b""
        if implicit or not _is_vr(head[4:6]):
            group, element, length = long(head)
            offset = position + 8
        else:
            group, element, vr, length = short(head)
            offset = position + 8
            if vr in _LONG:
                last = read(4)
                if len(last) < 4:
                    found.missing += 4
                    return size
                (length,) = extended(last)
                offset += 4
        tag = group << 16 | element
        if only_group and group != only_group:
            return position
        if tag == _END_OF_ITEM:
            return offset
        if tag in _PIXELS and not depth:
            found.pixels = offset, length
            return position
        if length == _UNDEFINED:
            after = _end_of_sequence(found, offset, size, vr, depth + 1)
            length = max(after - offset - 8, 0)
        else:
            after = offset + length
        if after > size:
            found.missing += after - size
            return size
        found._take(tag, _Place(vr, offset, length))
        position = after
        seek(position)
    if position < size and not depth and not only_group:
        found.missing += 8 - (size - position)
    return position


def _end_of_sequence(found: Elements, position: int, size: int, vr: bytes, depth: int) -> int:
    """Position after a sequence (or encapsulated fragments) of undefined length."""
    if depth > _DEEPEST:
        raise Unfit(Reason.CORRUPT, f"more than {_DEEPEST} sequences in one another")
    encoding = _Encoding(True, "<") if vr == b"UN" else found._encoding
    file = found._file
    unpack = struct.Struct(f"{encoding.order}HHL").unpack
    while position + 8 <= size:
        file.seek(position)
        group, element, length = unpack(file.read(8))
        position += 8
        tag = group << 16 | element
        if tag == _END_OF_SEQUENCE:
            return position
        if tag != _ITEM:
            raise Unfit(Reason.CORRUPT, "a sequence of its header has no sound end")
        if length != _UNDEFINED:
            position += length
            continue
        item = Elements(file, size, encoding)
        position = _walk(item, position, depth=depth)
        if item.missing:
            break
    return size + 8  # cut short


def _items(file: BinaryIO, size: int, encoding: _Encoding) -> Iterator[Elements]:
    """The items in the value of a sequence, whose delimiter has been taken off."""
    unpack = struct.Struct(f"{encoding.order}HHL").unpack
    position = 0
    while position + 8 <= size:
        file.seek(position)
        group, element, length = unpack(file.read(8))
        if group << 16 | element != _ITEM:
            return
        item = Elements(file, size, encoding)
        position += 8
        if length == _UNDEFINED:
            position = _walk(item, position, depth=1)
        else:
            _walk(item, position, end=min(position + length, size), depth=1)
            position += length
        yield item


@cache
def _tag(name: str | int) -> int:
    tag = name if isinstance(name, int) else tag_for_keyword(name)
    if tag is None:
        raise KeyError(name)
    return tag


@cache
def _vr(tag: int) -> bytes:
    try:
        return dictionary_VR(tag).encode()[
            :2
        ]  # of `US or SS` the first: no value asked for is signed
    except KeyError:
        return b"UN"
