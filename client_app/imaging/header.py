"""What a reader learns from the header of one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Affine = tuple[tuple[float, ...], ...]
"""Voxel indices to RAS+ world in mm: four rows of four."""


class Kind(StrEnum):
    """What one file is to a task."""

    RADIOGRAPH = "radiograph"  # one projection: DICOM, one greyscale frame
    PLANES = "planes"  # one or more planes of a DICOM series: classic, enhanced or mosaic
    NIFTI = "nifti"
    SEGMENTATION = "segmentation"  # DICOM SEG
    STRUCTURE_SET = "structure_set"  # DICOM RTSTRUCT
    MASK = "mask"  # NIfTI


@dataclass(frozen=True)
class Plane:
    """One frame and where it lies in the patient (DICOM PS3.3 C.7.6.2: mm, LPS+).

    Attributes:
        number: of the frame in its file, from 0; in a mosaic, of the tile.
        position: ImagePositionPatient, the centre of the first pixel.
        orientation: ImageOrientationPatient, along a row and down a column.
        spacing: PixelSpacing, between rows and between columns.
        stack: what tells volumes of one series apart besides place: echo, b-value, phase, type … as
            words of the program's own making (`echo=2`), never free text. Planes of one volume have
            equal ones.
        order: numbers that order repeats of one place in time, first things first.
    """

    number: int
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    spacing: tuple[float, float]
    stack: tuple[str, ...] = ()
    order: tuple[float, ...] = ()


@dataclass(frozen=True)
class Header:
    """All that the index wants to know of a file.

    The raw identifiers (`patient_id` and all UIDs) are replaced by keyed hashes before anything is
    stored, and stay out of `repr`.

    Attributes:
        modality: DICOM's code (PS3.3 C.7.3.1.1.1), such as `MR`; for NIfTI what BIDS says, or empty.
        shape: (rows, columns) of one plane; of a NIfTI file its axes, trailing ones removed.
        affine: of a NIfTI file.
        planes: of a series; empty for a radiograph, NIfTI and masks.
        tiles: columns of tiles in a mosaic's one big frame; 0 for everything else.
        pixel_spacing: of a radiograph, mm between rows and columns at the detector; none if unsaid.
        patient_id: none for a NIfTI mask, whose patient is its image's.
        references: of a DICOM mask, the series (or, where none are named, the images) it was drawn on.
        structures: of a DICOM mask, the names of its segments or regions in their order.
        created: of a DICOM mask, `YYYYMMDDHHMMSS` or a beginning of it; the newest is believed.
        attributes: what fairness is measured by and tasks select by; words of a fixed vocabulary.
    """

    kind: Kind
    shape: tuple[int, ...] = ()
    modality: str = ""
    affine: Affine | None = None
    planes: tuple[Plane, ...] = ()
    tiles: int = 0
    pixel_spacing: tuple[float, float] | None = None
    patient_id: str | None = field(default=None, repr=False)
    study_uid: str = field(default="", repr=False)
    series_uid: str = field(default="", repr=False)
    instance_uid: str = field(default="", repr=False)
    frame_of_reference_uid: str = field(default="", repr=False)
    references: tuple[str, ...] = field(default=(), repr=False)
    structures: tuple[str, ...] = field(default=(), repr=False)
    created: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
