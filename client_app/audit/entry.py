"""One line of the audit log: a JSON object in its one canonical form, chained to the line before it.

    hash = SHA-256(previous hash, 32 bytes || canonical JSON of event, fields, sequence and time)

Canonical JSON has sorted keys, no spaces and ASCII alone, so that equal content has equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from client_app.private_file import printable

GENESIS = "0" * 64  # what the first line follows
LARGEST = 1 << 20  # bytes of a line

_LONGEST_TEXT = 200  # letters
_DEEPEST = 4  # lists and dicts in each other
_SHA256 = re.compile(r"[0-9a-f]{64}")

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]


class NotAnEntry(Exception):
    """What a line is instead, in words that follow `line N`."""


@dataclass(frozen=True)
class Entry:
    """A line of the log.

    Attributes:
        sequence: from 1, without gaps; so it is also the line's number.
        time: UTC, ISO 8601 with milliseconds.
        previous, hash: hex, of the line before this one and of this one.
    """

    sequence: int
    time: str
    event: str
    fields: dict[str, Value]
    previous: str
    hash: str

    @classmethod
    def after(cls, last: Entry | None, event: str, fields: dict[str, Value]) -> Entry:
        """The entry that follows `last`, made now."""
        sequence, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS)
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        digest = _digest(sequence, time, event, fields, previous)
        return cls(sequence, time, event, fields, previous, digest)

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """Raises NotAnEntry: no line that `line()` could have made, or its hash is not its content's."""
        damaged = NotAnEntry("is damaged or was altered: it is not an entry as they are written")
        try:
            content = json.loads(line)
            entry = cls(**content)
            whole = (
                type(entry.sequence) is int
                and isinstance(entry.time, str)
                and isinstance(entry.event, str)
                and isinstance(entry.fields, dict)
                and _SHA256.fullmatch(entry.previous)
                and _SHA256.fullmatch(entry.hash)
                and entry.line() == line
            )
        except (ValueError, TypeError, RecursionError):
            raise damaged from None
        if not whole:
            raise damaged
        if entry.hash != _digest(
            entry.sequence, entry.time, entry.event, entry.fields, entry.previous
        ):
            raise NotAnEntry("was altered: its hash is not the hash of what it says")
        return entry

    def follows(self, last: Entry | None) -> None:
        """Raises NotAnEntry: this is not the entry after `last`."""
        expected, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS)
        if self.sequence > expected:
            gap = self.sequence - expected
            raise NotAnEntry(f"is entry {self.sequence}: {gap} before it were taken out or moved")
        if self.sequence < expected:
            raise NotAnEntry(f"is entry {self.sequence}: it was repeated or moved, or one put in")
        if self.previous != previous:
            raise NotAnEntry("does not follow the line before it: one of the two was exchanged")

    def line(self) -> bytes:
        return canonical(vars(self)) + b"\n"


def canonical(content: Mapping[str, Any]) -> bytes:
    """Raises ValueError: a number that is not finite."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def bounded(value: object, depth: int = 0) -> Value:
    """A value as the log may hold it: long text is cut, what is not printable is escaped.

    Raises:
        TypeError: another type than text, int, float, bool, None, and lists and dicts of these.
        ValueError: a number that is not finite or beyond 64 bits, or too many lists in each other.
    """
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} lists or dicts in each other")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        if value.bit_length() > 64:
            raise ValueError("an integer of more than 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number that is not finite")
        return float(value)
    if isinstance(value, (list, tuple)):
        return [bounded(item, depth + 1) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        content = {_text(key): bounded(item, depth + 1) for key, item in value.items()}
        if len(content) != len(value):
            raise ValueError("two keys are one when they are cut to what the log may hold")
        return content
    raise TypeError(f"{type(value).__name__} is no type for the audit log")


def _text(text: str) -> str:
    shown = printable(text[: _LONGEST_TEXT + 1])
    return shown if len(shown) <= _LONGEST_TEXT else shown[: _LONGEST_TEXT - 1] + "…"


def _digest(sequence: int, time: str, event: str, fields: dict[str, Value], previous: str) -> str:
    content = {"sequence": sequence, "time": time, "event": event, "fields": fields}
    return hashlib.sha256(bytes.fromhex(previous) + canonical(content)).hexdigest()
