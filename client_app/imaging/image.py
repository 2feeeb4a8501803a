"""An image as tasks see it: a radiograph, or one volume of a series or of a file; and its mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client_app.imaging.header import Affine, Kind


@dataclass(frozen=True)
class Image:
    """One image: where its voxels lie, and where these lie in the patient.

    Attributes:
        kind: radiograph, planes or nifti.
        patient, study, series, frame_of_reference: pseudonym and keyed hashes, the last three empty
            where the format has no such thing.
        files: absolute, in the order in which their planes come first.
        planes: of a series, for each slice in the order along the normal, the position of its file in
            `files` and the number of its frame (or tile) there.
        tiles: see `header.Header`.
        shape: (columns, rows, slices) of a series, the file's axes of NIfTI, (rows, columns) of a
            radiograph.
        affine: voxel indices in the order of `shape` to RAS+ in mm; none for a radiograph.
        pixel_spacing: of a radiograph, mm between rows and columns; none if unsaid.
        volume, volumes: which of how many volumes of its series this is, from 0.
        attributes: words of a fixed vocabulary, see `attributes`.
        note: what was found and could be handled, such as a tilted gantry.
    """

    kind: Kind
    patient: str
    files: tuple[Path, ...] = field(repr=False)
    shape: tuple[int, ...]
    modality: str = ""
    study: str = ""
    series: str = ""
    frame_of_reference: str = ""
    planes: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    tiles: int = 0
    affine: Affine | None = None
    pixel_spacing: tuple[float, float] | None = None
    volume: int = 0
    volumes: int = 1
    attributes: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Mask:
    """What is drawn on an image.

    Attributes:
        kind: segmentation, structure_set or mask.
        classes: for each foreground class of the task, from 1, the positions (from 0) of its structures
            in the file's own order (SEG: segments in SegmentSequence; RTSTRUCT: items of
            StructureSetROISequence). Empty for NIfTI, whose values are the classes.
    """

    kind: Kind
    file: Path = field(repr=False)
    classes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Case:
    """One image of one patient with what is to be learnt from it: a class index, or a mask."""

    image: Image
    label: int | Mask

    @property
    def patient(self) -> str:
        return self.image.patient

    @property
    def attributes(self) -> Mapping[str, str]:
        return self.image.attributes
