"""What an index holds, counted in one pass: memory does not grow with the number of files."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise, zip_longest
from pathlib import Path

import numpy as np

from client_app.imaging.attributes import UNKNOWN
from client_app.imaging.header import Kind
from client_app.imaging.image import Image
from client_app.imaging.index import Index
from client_app.imaging.set_aside import Reason, SetAside

SPACINGS = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 7.0)  # mm, upper ends of the bins
UNSAID = "not stated"
_MOST_NOTES = 1000  # different ones that are kept apart


@dataclass(frozen=True)
class LeftAside:
    """Files (or volumes of series) set aside for one reason, and the first of them.

    `example` and `root` are for this hospital's screen; a page shows `example.detail` alone.
    """

    count: int
    example: SetAside
    root: Path = field(repr=False)


@dataclass(frozen=True)
class Tally:
    """Counts over one or several roots.

    Attributes:
        read: files that had to be read this time.
        images: each volume of a series, each radiograph and each NIfTI file is one.
        kinds, modalities: images by `Kind` and by DICOM's code.
        series: by attribute (`manufacturer`, …, `in_plane` and `between_slices` spacing) and word,
            the volumes of one series counted once.
        set_aside: the most frequent reason first.
        notes: what was found and could be handled, by how often.
        examples: images to show, spread evenly over modality and manufacturer.
    """

    files: int
    read: int
    patients: int
    studies: int
    series_count: int
    images: int
    kinds: Mapping[str, int]
    modalities: Mapping[str, int]
    masks: Mapping[str, int]
    series: Mapping[str, Mapping[str, int]]
    set_aside: Mapping[Reason, LeftAside]
    notes: Mapping[str, int]
    examples: tuple[Image, ...] = field(repr=False)

    @property
    def not_read(self) -> int:
        """Files that were unchanged, or that no header is looked for in (empty ones, pipes)."""
        return self.files - self.read

    @property
    def set_aside_count(self) -> int:
        return sum(left.count for left in self.set_aside.values())

    def as_json(self) -> dict[str, object]:
        """Counts alone: no path, no pseudonym."""
        return {
            "files": self.files,
            "read": self.read,
            "not_read": self.not_read,
            "patients": self.patients,
            "studies": self.studies,
            "series": self.series_count,
            "images": self.images,
            "images_by_kind": dict(self.kinds),
            "images_by_modality": dict(self.modalities),
            "masks_by_kind": dict(self.masks),
            "series_by": {name: dict(words) for name, words in self.series.items()},
            "set_aside": {str(reason): left.count for reason, left in self.set_aside.items()},
        }


def tally(indexes: Iterable[tuple[Path, Index]], *, examples: int = 0) -> Tally:
    """Count what the indexes of some roots hold.

    A patient with images below several roots is one patient if one key made the pseudonyms.

    Args:
        examples: most images to choose for showing.
    """
    files = read = studies = series_count = images = 0
    patients: set[str] = set()
    kinds, modalities, masks, notes = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    series: dict[str, Counter[str]] = defaultdict(Counter)
    set_aside: dict[Reason, LeftAside] = {}
    chosen = _Examples(examples)
    for root, index in indexes:
        files, read = files + index.files, read + index.read
        # Images come in the order of patient, study and series: a change is a new one.
        last_study = last_series = ("", "")
        for image in index.images():
            images += 1
            patients.add(image.patient)
            kinds[image.kind] += 1
            modalities[image.modality or UNSAID] += 1
            if image.study and (image.patient, image.study) != last_study:
                last_study = (image.patient, image.study)
                studies += 1
            if image.series and (image.study, image.series) != last_series:
                last_series = (image.study, image.series)
                series_count += 1
            if image.volume == 0:
                for name, word in _words(image).items():
                    series[name][word] += 1
            if image.note and (image.note in notes or len(notes) < _MOST_NOTES):
                notes[image.note] += 1
            chosen.offer(image)
        for mask in index.masks():
            masks[mask.kind] += 1
        for item in index.set_aside():
            before = set_aside.get(item.reason)
            set_aside[item.reason] = (
                LeftAside(before.count + 1, before.example, before.root)
                if before
                else LeftAside(1, item, root)
            )
    return Tally(
        files=files,
        read=read,
        patients=len(patients),
        studies=studies,
        series_count=series_count,
        images=images,
        kinds=_most_first(kinds),
        modalities=_most_first(modalities),
        masks=_most_first(masks),
        series={name: _most_first(words) for name, words in series.items()},
        set_aside=dict(sorted(set_aside.items(), key=lambda row: (-row[1].count, row[0]))),
        notes=_most_first(notes),
        examples=chosen.spread(),
    )


def spacing(image: Image) -> tuple[float | None, float | None]:
    """Largest distance in mm between pixels in the plane, and between slices.

    The plane of a series is the acquired one, and the distance of its slices is taken along the
    plane's normal, also under a tilted gantry. NIfTI names no plane: its coarsest axis counts as the
    one between slices.
    """
    if image.affine is None:
        return (max(image.pixel_spacing) if image.pixel_spacing else None), None
    axes = np.asarray(image.affine)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if image.kind is Kind.NIFTI:
        if len(image.shape) < 3:
            return float(lengths[:2].max()), None
        ordered = sorted(lengths)
        return float(ordered[1]), float(ordered[2])
    between = abs(float(np.linalg.det(axes))) / float(
        np.linalg.norm(np.cross(axes[:, 0], axes[:, 1]))
    )
    return float(lengths[:2].max()), between if len(image.planes) > 1 else None


def spacing_bins() -> tuple[str, ...]:
    """Names of the bins in their order."""
    middle = (f"{low:g}–{high:g} mm" for low, high in pairwise(SPACINGS))
    return (f"under {SPACINGS[0]:g} mm", *middle, f"{SPACINGS[-1]:g} mm or more")


def _words(image: Image) -> dict[str, str]:
    """What a series is counted by."""
    in_plane, between = spacing(image)
    words = {
        "modality": image.modality or UNSAID,
        **{name: word or UNKNOWN for name, word in image.attributes.items()},
        "in_plane": _bin(in_plane),
    }
    if between is not None:
        words["between_slices"] = _bin(between)
    return words


def _bin(millimetres: float | None) -> str:
    if millimetres is None or not np.isfinite(millimetres):
        return UNSAID
    # A hair's breadth, so that 1 mm written in single precision is 1 mm.
    return spacing_bins()[int(np.searchsorted(SPACINGS, millimetres + 1e-6, side="right"))]


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda row: (-row[1], row[0])))


class _Examples:
    """A few images of each modality and manufacturer: those whose hash is smallest.

    The hash stands for chance, so that the examples are of many patients and the same each time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._groups: dict[tuple[str, str], list[tuple[int, int, Image]]] = defaultdict(list)
        self._offered = 0  # breaks ties

    def offer(self, image: Image) -> None:
        if self._most == 0 or image.volume > 0:
            return
        group = self._groups[(image.modality, image.attributes.get("manufacturer", UNKNOWN))]
        name = "\0".join((image.patient, image.series, image.files[0].name, str(image.planes[:1])))
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        self._offered += 1
        entry = (-int.from_bytes(digest[:8]), -self._offered, image)
        if len(group) < self._most:
            heapq.heappush(group, entry)
        else:
            heapq.heappushpop(group, entry)

    def spread(self) -> tuple[Image, ...]:
        """Up to `most` images, in turn from each group, in the order of the groups."""
        ordered = [sorted(self._groups[key], reverse=True) for key in sorted(self._groups)]
        turns = chain.from_iterable(zip_longest(*ordered))
        taken = [entry for entry in turns if entry is not None][: self._most]
        kept = {id(entry) for entry in taken}
        return tuple(e[2] for group in ordered for e in group if id(e) in kept)
