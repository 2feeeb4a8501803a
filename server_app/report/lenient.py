"""JSON values as what they should be, or nothing: whoever reads a run's records passes over the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any


def as_mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def as_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def as_texts(value: object) -> tuple[str, ...]:
    return tuple(text for item in as_list(value) if (text := as_text(item)) is not None)


def as_number(value: object) -> float | None:
    """A finite number, or None: NaN and infinity are nothing that can be shown or drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def as_numbers(value: object) -> dict[str, float]:
    pairs = ((name, as_number(item)) for name, item in as_mapping(value).items())
    return {name: number for name, number in pairs if number is not None}


def as_intervals(value: object) -> dict[str, tuple[float, float]]:
    """Pairs of finite numbers, low and high."""
    found = {name: tuple(map(as_number, as_list(item))) for name, item in as_mapping(value).items()}
    return {
        name: (pair[0], pair[1])
        for name, pair in found.items()
        if len(pair) == 2 and pair[0] is not None and pair[1] is not None
    }


def as_whole(value: object) -> int | None:
    number = as_number(value)
    return int(number) if number is not None and number == int(number) else None


def as_time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(as_text(value) or "")
    except ValueError:
        return None
