"""The overview as one HTML file that needs nothing else: counts, bars, and thumbnails of images.

It shows patients' images, so it is for this hospital's eyes. What it does not hold: identifiers,
pseudonyms, hashes of them, and paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from jinja2 import Environment, StrictUndefined

from client_app.imaging.attributes import UNKNOWN
from client_app.imaging.image import Image
from client_app.imaging.pool import Lost, each
from client_app.imaging.set_aside import Reason
from client_app.overview.style import CSS
from client_app.overview.tally import UNSAID, Tally, spacing, spacing_bins
from client_app.overview.template import TEMPLATE
from client_app.overview.thumbnail import Thumbnail, thumbnail

MOST_BARS = 12
_MOST_WORKERS = 4
_PATIENCE = 60.0  # seconds for one picture
_LOST = f"{Reason.LOAD_FAILED}: the decoder crashed, or took more than {_PATIENCE:.0f} s"
_TITLES = {
    "modality": "Modality",
    "manufacturer": "Manufacturer",
    "model": "Model",
    "field_strength": "Field strength",
    "in_plane": "Pixel spacing in the plane",
    "between_slices": "Distance between slices",
    "age_band": "Age",
    "sex": "Sex",
    "kvp": "Tube voltage, kVp",
}
# Attributes with an order of their own; all others stand by how frequent they are.
_ORDERED = ("age_band", "field_strength", "kvp", "breast_density")


@dataclass(frozen=True)
class Bar:
    word: str
    count: int
    share: float  # of the longest bar


@dataclass(frozen=True)
class Chart:
    key: str
    title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Shown:
    """An image on the page: its picture and what is said of it."""

    number: int
    picture: Thumbnail
    lines: tuple[str, ...]

    @property
    def description(self) -> str:
        return ", ".join((f"Image {self.number}", *self.lines))


def render(tally: Tally, *, progress: Callable[[int, int], None] = lambda done, total: None) -> str:
    """The page as text. Whatever comes from a file is escaped.

    Args:
        progress: told how many of the pictures are made.
    """
    shown = [
        Shown(number, picture, describe(image))
        for number, (image, picture) in enumerate(
            zip(tally.examples, _pictures(tally.examples, progress), strict=True), start=1
        )
    ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["whole"] = lambda number: f"{number:,}"
    return environment.from_string(TEMPLATE).render(
        tally=tally,
        css=CSS,
        charts=charts(tally.series),
        shown=shown,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=_tiles(tally),
    )


def _pictures(images: Sequence[Image], progress: Callable[[int, int], None]) -> list[Thumbnail]:
    """In processes of their own: decoders are C libraries, and a damaged file may crash one."""
    pictures: dict[int, Thumbnail] = {}
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    if images:
        for position, made in each(thumbnail, images, workers=workers, limit=_PATIENCE):
            pictures[position] = Thumbnail(failure=_LOST) if isinstance(made, Lost) else made
            progress(len(pictures), len(images))
    return [pictures[position] for position in range(len(images))]


def charts(series: Mapping[str, Mapping[str, int]]) -> list[Chart]:
    """One for each attribute that some series has, those with a title of their own first."""
    names = [*_TITLES, *sorted(series.keys() - _TITLES.keys())]
    return [_chart(name, series[name]) for name in names if series.get(name)]


def _chart(name: str, counts: Mapping[str, int]) -> Chart:
    words = list(counts)
    if name in ("in_plane", "between_slices"):
        words = [word for word in (*spacing_bins(), UNSAID) if word in counts]
    elif name in _ORDERED:
        words.sort(key=_natural)
    words.sort(key=lambda word: word in (UNKNOWN, UNSAID))  # stable: these come last
    rows = [(word, counts[word]) for word in words]
    if len(rows) > MOST_BARS:
        rest = rows[MOST_BARS - 1 :]
        rows = rows[: MOST_BARS - 1]
        rows.append((f"{len(rest)} others", sum(count for _, count in rest)))
    longest = max(count for _, count in rows)
    bars = tuple(Bar(word, count, count / longest) for word, count in rows)
    return Chart(name, _TITLES.get(name, name.replace("_", " ").capitalize()), bars)


def _natural(word: str) -> tuple[float, str]:
    """Numbers by size: `0-17` before `18-39`, `1.5` before `3`."""
    digits = word.split("-")[0].split("+")[0].split()
    try:
        return float(digits[0]), word
    except (IndexError, ValueError):
        return float("inf"), word


def _tiles(tally: Tally) -> Sequence[tuple[str, int, str]]:
    masks = sum(tally.masks.values())
    return (
        ("Patients", tally.patients, ""),
        ("Studies", tally.studies, ""),
        ("Series", tally.series_count, ""),
        ("Images", tally.images, "each volume of a series is one"),
        ("Masks", masks, "segmentations and structure sets"),
        ("Files", tally.files, f"{tally.read:,} read now, {tally.not_read:,} needed no reading"),
        ("Set aside", tally.set_aside_count, "see below for the reasons"),
    )


def describe(image: Image) -> tuple[str, ...]:
    """What is said under a picture: nothing that names the patient or the file."""
    scanner = [
        word
        for name in ("manufacturer", "model", "field_strength")
        if (word := image.attributes.get(name, UNKNOWN)) not in (UNKNOWN, "")
    ]
    in_plane, between = spacing(image)
    size = " × ".join(map(str, image.shape))
    lines = [image.modality or str(image.kind), " ".join(scanner), f"{size} voxels"]
    if in_plane is not None:
        lines.append(f"{in_plane:.3g}" + (f" × {between:.3g}" if between else "") + " mm")
    if image.volumes > 1:
        lines.append(f"1 of {image.volumes} volumes")
    if image.note:
        lines.append(image.note)
    return tuple(line for line in lines if line)
