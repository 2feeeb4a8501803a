"""The series that a mask is drawn on: its slices, and the patient and study that a mask goes with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client_app.imaging.set_aside import Reason, Unfit

MANUFACTURER = "Consilium"

# Type 2 in every image, so that a value that is none may be left out, and what a sound one is.
_MAY_BE_EMPTY = {
    "PatientID": ".+",
    "PatientName": ".+",
    "PatientBirthDate": r"\d{8}",
    "PatientSex": "[MFO]",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "AccessionNumber": ".+",
    "ReferringPhysicianName": ".+",
    "StudyID": ".+",
}
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


@dataclass(frozen=True)
class Slice:
    """One slice: the instance that holds it, its frame there and its place (mm, LPS+).

    Attributes:
        source: position in the series' datasets.
        frame: number from 0; none where the instance is one slice.
        position, orientation, spacing: see `header.Plane`.
    """

    source: int
    frame: int | None
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]

    def world(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(points, 2) of columns and rows to (points, 3) in mm, LPS+ (PS3.3 equation C.7.6.2.1-1)."""
        along_row, down_column = np.reshape(self.orientation, (2, 3))
        between_rows, between_columns = self.spacing
        steps = np.stack([along_row * between_columns, down_column * between_rows])
        return np.asarray(np.array(self.position) + points @ steps, dtype=np.float64)


def slices(source: Sequence[Dataset], planes: Sequence[tuple[int, int]] | None) -> list[Slice]:
    """The slices of a volume in its order.

    Args:
        source: headers of the series, pixels not needed: one a slice, or one with many frames.
        planes: for each slice the position in `source` and the frame there, as in `image.Image`;
            by default the datasets in their order, or all frames in theirs.

    Raises:
        Unfit: position, orientation or spacing are missing.
    """
    if planes is None:
        planes = [
            (n, f) for n, d in enumerate(source) for f in range(int(d.get("NumberOfFrames", 1)))
        ]
    result = []
    for number, frame in planes:
        groups = [source[number]]
        enhanced = _GROUPS[1] in source[number]
        if enhanced:
            groups = frame_groups(source[number], frame)
        position = lookup(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
        orientation = lookup(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        spacing = lookup(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
        if position is None or orientation is None or spacing is None:
            raise Unfit(Reason.NO_GEOMETRY, "the source lacks position, orientation or spacing")
        result.append(Slice(number, frame if enhanced else None, position, orientation, spacing))
    return result


def frame_groups(dataset: Dataset, frame: int) -> list[Dataset]:
    """What is said of one frame, and then of all (PS3.3 C.7.6.16)."""
    return [dataset[_GROUPS[1]][frame], *dataset.get(_GROUPS[0], [])]


def lookup(
    groups: Sequence[Dataset], macro: str, keyword: str, length: int
) -> tuple[float, ...] | None:
    """An attribute of a functional group, or of the dataset itself; none unless it has finite values."""
    for group in groups:
        for holder in [*(group.get(macro) or []), group]:
            values = holder.get(keyword)
            if values is not None and np.size(values) == length:
                numbers = tuple(float(value) for value in np.ravel(values))
                if np.all(np.isfinite(numbers)):
                    return numbers
    return None


def bare(dataset: Dataset) -> Dataset:
    """A copy without pixels and private elements, with empty ones where the standard allows
    that and the source has none, or values that are no date, time or sex.

    Raises:
        Unfit: it names no frame of reference, so that nothing can be drawn on it.
    """
    if not dataset.get("FrameOfReferenceUID"):
        raise Unfit(Reason.NO_GEOMETRY, "the source names no frame of reference")
    copy = Dataset()
    for element in dataset:
        if not element.tag.is_private and element.tag.group not in (0x0002, 0x7FE0):
            copy[element.tag] = element
    for keyword, sound in _MAY_BE_EMPTY.items():
        if not re.fullmatch(sound, str(copy.get(keyword) or ""), re.DOTALL):
            setattr(copy, keyword, None)
    return copy


def check(mask: NDArray[np.uint8], names: Sequence[str], dataset: Dataset, count: int) -> None:
    """Refuse a mask that cannot be of this series.

    Raises:
        ValueError: another shape, or classes without names.
    """
    shape = (int(dataset.Columns), int(dataset.Rows), count)
    if mask.shape != shape:
        raise ValueError(f"the mask is {mask.shape}, its series (columns, rows, slices) {shape}")
    if mask.size and int(mask.max()) > len(names):
        raise ValueError(f"the mask has class {mask.max()}, and {len(names)} classes have names")
