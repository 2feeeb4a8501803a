"""One series of the index to its volumes, and to what of it makes none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client_app.imaging import series
from client_app.imaging.attributes import UNKNOWN
from client_app.imaging.header import Header
from client_app.imaging.record import header_of
from client_app.imaging.set_aside import Reason

# What is grouped at once is held in memory, some 2 kB a plane. The longest real series, classic
# files of functional MR, have some ten thousand.
LARGEST = 100_000


@dataclass(frozen=True)
class Member:
    """A usable file of a series. `number` is the index's name for it; see `Record` for the rest."""

    number: int
    patient: str
    study: str
    instance: str
    frame: str
    kind: str
    content: str


@dataclass(frozen=True)
class Volume:
    """Files that make one volume; or, where `reason` is not empty, that do not, and why.

    Attributes:
        files: numbers, in the order in which their planes come first; never empty.
        content: JSON of what `Image` says beyond this.
    """

    files: tuple[int, ...]
    patient: str = ""
    study: str = ""
    reason: str = ""
    detail: str = ""
    content: str = ""


def volumes(members: Sequence[Member]) -> list[Volume]:
    """The volumes of one series, given its files in the order of their paths.

    Of files that hold the same instance the first is taken. Every file is in some volume, or in one
    with a reason.
    """
    people = {member.patient for member in members}
    if len(people) > 1:
        detail = f"the files of its series name {len(people)} patients"
        return [_left_out(members, Reason.PATIENT_CONFLICT, detail)]
    members, copies = _without_copies(members)
    found = [
        _left_out([copy], Reason.DUPLICATE, "another file holds the same image") for copy in copies
    ]
    headers = [header_of(member.kind, json.loads(member.content)) for member in members]
    planes = sum(len(header.planes) for header in headers)
    if planes > LARGEST:
        return [*found, too_large(members, planes)]
    try:
        stacks, rejected = series.group(headers)
    except Exception as error:  # its text may quote the files
        return [*found, _left_out(members, Reason.CORRUPT, type(error).__name__)]
    used: set[int] = set()
    for stack in stacks:
        positions = _once(position for position, _ in stack.planes)
        used.update(positions)
        found.append(
            _volume([members[p] for p in positions], [headers[p] for p in positions], stack)
        )
    for item in rejected:
        positions = _once(position for position, _ in item.planes)
        used.update(positions)
        found.append(_left_out([members[p] for p in positions], item.reason, item.detail))
    forgotten = [member for position, member in enumerate(members) if position not in used]
    if forgotten:
        found.append(
            _left_out(forgotten, Reason.NO_GEOMETRY, "it has no plane that could be placed")
        )
    return found


def too_large(members: Sequence[Member], planes: int) -> Volume:
    return _left_out(members, Reason.TOO_LARGE, f"its series has {planes:,} planes or more")


def _volume(members: Sequence[Member], headers: Sequence[Header], stack: series.Stack) -> Volume:
    place = {position: order for order, position in enumerate(_once(p for p, _ in stack.planes))}
    content: dict[str, Any] = {
        "shape": stack.shape,
        "affine": stack.affine,
        "planes": [(place[position], number) for position, number in stack.planes],
        "tiles": headers[0].tiles,
        "modality": headers[0].modality,
        "frame": members[0].frame,
        "attributes": _agreed([header.attributes for header in headers]),
        "note": stack.note,
    }
    return Volume(
        tuple(member.number for member in members),
        members[0].patient,
        members[0].study,
        content=json.dumps(content, separators=(",", ":"), allow_nan=False, default=_plain),
    )


def _left_out(members: Sequence[Member], reason: Reason, detail: str) -> Volume:
    if len(members) > 1:
        detail = f"{detail}, {len(members):,} files".removeprefix(", ")
    return Volume(tuple(member.number for member in members), reason=reason, detail=detail)


def _without_copies(members: Sequence[Member]) -> tuple[list[Member], list[Member]]:
    first: dict[str, Member] = {}
    for member in members:
        first.setdefault(member.instance or f"file {member.number}", member)
    kept = list(first.values())
    numbers = {member.number for member in kept}
    return kept, [member for member in members if member.number not in numbers]


def _agreed(attributes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The words that all files say; where they contradict each other nothing is known."""
    agreed = dict(attributes[0])
    for other in attributes[1:]:
        if other != attributes[0]:
            for name in agreed.keys() | other.keys():
                if agreed.get(name) != other.get(name):
                    agreed[name] = UNKNOWN
    return agreed


def _once(positions: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(positions))


def _plain(value: Any) -> Any:
    """A NumPy scalar or array as Python has it."""
    return value.tolist()
