"""What travels between hospitals and coordinator in a sum under masks, as bytes.

    table   version (1 byte) · kind (1 byte) · number of hospitals (uint16)
            for each, sorted by name: length of its name (1 byte) · name (ASCII) · its record

The records of one kind have one length. `join` puts parts behind their lengths (uint32) where a letter
has several. All numbers are big-endian. One content has one spelling; what is not spelt so is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from federation.messages import Reason
from federation.roster import MOST_MEMBERS, NAME
from federation.secure_aggregation import sealing, shamir
from federation.secure_aggregation.keys import (
    KEY_BYTES,
    LARGEST_SIZE,
    SIGNATURE_BYTES,
    Advert,
    ProtocolError,
)
from federation.secure_aggregation.opening import Opening
from federation.secure_aggregation.sealing import SealingAdvert
from federation.secure_aggregation.sharing import SEALED_BYTES

_VERSION = 1
_HEAD_BYTES = 4
_SIZE_BYTES = 8
_LONGEST_NAME = 41  # as `federation.roster.NAME` allows

_OF_SEED, _OF_MASK_KEY = b"\x01", b"\x02"

Record = TypeVar("Record")


@dataclass(frozen=True)
class _Kind:
    """A table's: its number and how long a record is."""

    number: int
    record: int


_ADVERTS = _Kind(1, _SIZE_BYTES + 3 * KEY_BYTES + SIGNATURE_BYTES)
_SEALED = _Kind(2, SEALED_BYTES)
_NAMES = _Kind(3, 0)
_SIGNATURES = _Kind(4, SIGNATURE_BYTES)
_OPENING = _Kind(5, 1 + shamir.SHARE_BYTES)
_SEALING = _Kind(6, sealing.ADVERT_BYTES)
_BOXES = _Kind(7, sealing.SEALED_KEY_BYTES)


def advert_to_bytes(advert: Advert) -> bytes:
    return adverts_to_bytes([advert])


def advert_from_bytes(content: bytes) -> Advert:
    """Raises ProtocolError: MALFORMED, as all of these do; here also: not one alone."""
    adverts = adverts_from_bytes(content)
    if len(adverts) != 1:
        raise ProtocolError(Reason.MALFORMED)
    return adverts[0]


def adverts_to_bytes(adverts: Iterable[Advert]) -> bytes:
    """Raises ValueError: two of one hospital."""
    listed = list(adverts)
    records = {
        one.hospital: one.size.to_bytes(_SIZE_BYTES)
        + one.mask_key
        + one.seal_key
        + one.seed_commitment
        + one.signature
        for one in listed
    }
    if len(records) != len(listed):
        raise ValueError("two adverts of one hospital")
    return _table(_ADVERTS, records)


def adverts_from_bytes(content: bytes) -> tuple[Advert, ...]:
    """Sorted by hospital; nothing of them is verified yet."""

    def advert(name: str, record: bytes) -> Advert:
        size, rest = int.from_bytes(record[:_SIZE_BYTES]), record[_SIZE_BYTES:]
        if not 0 < size < LARGEST_SIZE:
            raise ProtocolError(Reason.MALFORMED)
        ends = range(KEY_BYTES, 4 * KEY_BYTES, KEY_BYTES)
        mask_key, seal_key, seed_commitment = (rest[end - KEY_BYTES : end] for end in ends)
        return Advert(name, size, mask_key, seal_key, seed_commitment, rest[3 * KEY_BYTES :])

    return tuple(_parsed(_ADVERTS, content, advert).values())


def sealed_to_bytes(sealed: Mapping[str, bytes]) -> bytes:
    """Sealed shares, by receiver or by sender."""
    return _table(_SEALED, sealed)


def sealed_from_bytes(content: bytes) -> dict[str, bytes]:
    return _parsed(_SEALED, content, _as_it_is)


def names_to_bytes(names: Iterable[str]) -> bytes:
    """A survivor list."""
    return _table(_NAMES, dict.fromkeys(names, b""))


def names_from_bytes(content: bytes) -> tuple[str, ...]:
    return tuple(_parsed(_NAMES, content, _as_it_is))


def signatures_to_bytes(signatures: Mapping[str, bytes]) -> bytes:
    return _table(_SIGNATURES, signatures)


def signatures_from_bytes(content: bytes) -> dict[str, bytes]:
    return _parsed(_SIGNATURES, content, _as_it_is)


def opening_to_bytes(opening: Opening) -> bytes:
    """Raises ValueError: both shares of one hospital."""
    if set(opening.seeds) & set(opening.mask_keys):
        raise ValueError("both shares of one hospital are never opened")
    records = {name: _OF_SEED + share for name, share in opening.seeds.items()}
    records |= {name: _OF_MASK_KEY + share for name, share in opening.mask_keys.items()}
    return _table(_OPENING, records)


def opening_from_bytes(content: bytes) -> Opening:
    def share(_: str, record: bytes) -> bytes:
        if record[:1] not in (_OF_SEED, _OF_MASK_KEY) or not shamir.is_share(record[1:]):
            raise ProtocolError(Reason.MALFORMED)
        return record

    records = _parsed(_OPENING, content, share)
    return Opening(
        {name: record[1:] for name, record in records.items() if record[:1] == _OF_SEED},
        {name: record[1:] for name, record in records.items() if record[:1] == _OF_MASK_KEY},
    )


def sealing_adverts_to_bytes(adverts: Mapping[str, SealingAdvert]) -> bytes:
    return _table(_SEALING, {name: advert.to_bytes() for name, advert in adverts.items()})


def sealing_adverts_from_bytes(content: bytes) -> dict[str, SealingAdvert]:
    """Nothing of them is verified yet."""
    return _parsed(_SEALING, content, lambda name, one: SealingAdvert.from_bytes(one, name))


def boxes_to_bytes(boxes: Mapping[str, bytes]) -> bytes:
    """The key of an encrypted run, sealed for each hospital that asked for it."""
    return _table(_BOXES, boxes)


def boxes_from_bytes(content: bytes) -> dict[str, bytes]:
    return _parsed(_BOXES, content, _as_it_is)


def join(*parts: bytes) -> bytes:
    """Several in one; a part may be empty."""
    return b"".join(len(part).to_bytes(4) + part for part in parts)


def split(content: bytes, count: int) -> tuple[bytes, ...]:
    """The `count` parts that `join` was given."""
    parts, rest = [], memoryview(content)
    for _ in range(count):
        size = int.from_bytes(rest[:4])
        if len(rest) < 4 + size:
            raise ProtocolError(Reason.MALFORMED)
        parts.append(bytes(rest[4 : 4 + size]))
        rest = rest[4 + size :]
    if len(rest):
        raise ProtocolError(Reason.MALFORMED)
    return tuple(parts)


def _table(kind: _Kind, records: Mapping[str, bytes]) -> bytes:
    parts = [bytes([_VERSION, kind.number]), len(records).to_bytes(2)]
    if len(records) > MOST_MEMBERS:
        raise ValueError(f"a letter is about at most {MOST_MEMBERS} hospitals")
    for name, record in sorted(records.items()):
        if not NAME.fullmatch(name) or len(record) != kind.record:
            raise ValueError("a record of another length, or a name that no roster holds")
        parts += [bytes([len(name)]), name.encode("ascii"), record]
    return b"".join(parts)


def _parsed(
    kind: _Kind, content: bytes, record: Callable[[str, bytes], Record]
) -> dict[str, Record]:
    """A table's records by name; what came is bounded first, and the memory with it."""
    largest = _HEAD_BYTES + MOST_MEMBERS * (1 + _LONGEST_NAME + kind.record)
    if len(content) > largest:
        raise ProtocolError(Reason.TOO_LARGE)
    count = int.from_bytes(content[2:_HEAD_BYTES])
    head = bytes([_VERSION, kind.number])
    if len(content) < _HEAD_BYTES or content[:2] != head or count > MOST_MEMBERS:
        raise ProtocolError(Reason.MALFORMED)
    found: dict[str, Record] = {}
    place, last = _HEAD_BYTES, ""
    for _ in range(count):
        end = place + 1 + int.from_bytes(content[place : place + 1])
        name = content[place + 1 : end].decode("ascii", errors="replace")
        place = end + kind.record
        # sorted, so that none is there twice
        if place > len(content) or not NAME.fullmatch(name) or name <= last:
            raise ProtocolError(Reason.MALFORMED)
        found[name], last = record(name, content[end:place]), name
    if place != len(content):
        raise ProtocolError(Reason.MALFORMED)
    return found


def _as_it_is(_: str, record: bytes) -> bytes:
    return record
