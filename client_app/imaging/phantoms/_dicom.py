"""What phantoms in DICOM share: who was examined where and when, planes of a volume, and files.

UIDs, dates and numbers follow from task, seed, site and patient alone, so that a phantom is the same
bytes each time and no two hospitals share an identifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

Floats = NDArray[np.float32]
Affine = NDArray[np.float64]

# NIfTI's world is RAS+, DICOM's LPS+.
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Equipment:
    manufacturer: str
    model: str
    station: str
    software: str


@dataclass(frozen=True)
class Person:
    """A patient, and what the hospital's records know: as in every archive, a few gaps.

    Attributes:
        sex: DICOM's word, `O` or nothing in a few.
        age_known: whether age and birth date are on record.
    """

    identifier: str
    female: bool
    age: int
    sex: str
    age_known: bool


def draw_person(
    rng: np.random.Generator,
    identifier: str,
    *,
    age: float,
    spread: float,
    youngest: int = 18,
    female: float = 0.5,
) -> Person:
    """Someone of a population whose mean age and share of women are given."""
    is_female = bool(rng.random() < female)
    years = int(np.clip(rng.normal(age, spread), youngest, 96))
    gap = rng.random()
    sex = "O" if gap < 0.02 else "" if gap < 0.04 else "F" if is_female else "M"
    return Person(identifier, is_female, years, sex, age_known=bool(rng.random() > 0.04))


@dataclass(frozen=True)
class Study:
    """One visit. `source` is what all its UIDs follow from: task, seed, site, patient."""

    person: Person
    equipment: Equipment
    source: tuple[str, ...]
    taken: date
    born: date
    description: str

    def uid(self, *what: object) -> UID:
        return generate_uid(entropy_srcs=["phantom", *self.source, *map(str, what)])


def draw_study(
    rng: np.random.Generator,
    person: Person,
    equipment: Equipment,
    source: tuple[object, ...],
    description: str,
) -> Study:
    taken = date(2024, 1, 1) + timedelta(days=int(rng.integers(300)))
    born = taken - timedelta(days=int(person.age * 365.25) + int(rng.integers(1, 364)))
    return Study(person, equipment, tuple(map(str, source)), taken, born, description)


def header(
    study: Study,
    sop_class: UID,
    *,
    modality: str,
    series: int,
    number: int = 1,
    description: str = "",
) -> Dataset:
    """Patient, study, series, equipment and instance: PS3.3 C.7.1 to C.7.5 and C.12.1."""
    person, equipment, day = study.person, study.equipment, f"{study.taken:%Y%m%d}"
    result = Dataset()
    result.SOPClassUID = sop_class
    result.SOPInstanceUID = study.uid("instance", series, number)
    result.StudyInstanceUID = study.uid("study")
    result.SeriesInstanceUID = study.uid("series", series)
    result.PatientName, result.PatientID = f"Phantom^{person.identifier}", person.identifier
    result.PatientSex = person.sex
    result.PatientAge = f"{person.age:03d}Y" if person.age_known else ""
    result.PatientBirthDate = f"{study.born:%Y%m%d}" if person.age_known else ""
    result.StudyDate = result.SeriesDate = result.ContentDate = result.AcquisitionDate = day
    result.StudyTime, result.SeriesTime = "090000", f"09{series % 60:02d}00"
    result.ContentTime = result.AcquisitionTime = result.SeriesTime
    result.AccessionNumber, result.ReferringPhysicianName, result.StudyID = "", "", "1"
    result.StudyDescription, result.SeriesDescription = study.description, description
    result.Modality, result.SeriesNumber, result.InstanceNumber = modality, series, number
    result.Manufacturer, result.ManufacturerModelName = equipment.manufacturer, equipment.model
    result.StationName, result.SoftwareVersions = equipment.station, equipment.software
    result.DeviceSerialNumber = f"PH{study.source[2]}"
    result.InstitutionName = f"Phantom Hospital {study.source[2]}"
    return result


@dataclass(frozen=True)
class Grid:
    """Voxels of a volume: shape (columns, rows, slices), affine to RAS+ in mm."""

    shape: tuple[int, int, int]
    affine: Affine

    def points(self) -> Floats:
        """World coordinates (3, *shape) of all voxels, mm, RAS+."""
        axes = np.meshgrid(*map(np.arange, self.shape), indexing="ij", sparse=True)
        columns = [self.affine[:3, axis, None, None, None] * axes[axis] for axis in range(3)]
        points = sum(columns) + self.affine[:3, 3, None, None, None]
        return np.asarray(points, dtype=np.float32)


def grid(
    shape: tuple[int, int, int],
    directions: NDArray[np.float64],
    spacing: Sequence[float],
    centre: NDArray[np.float64],
) -> Grid:
    """A grid about a centre (mm, RAS+); `directions` has the unit vectors of the axes as columns.

    All numbers are rounded to what DICOM's decimal strings hold, so that both formats say the same.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.round(directions, 8) * spacing
    affine[:3, 3] = np.round(centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2), 5)
    return Grid(shape, affine)


def decimals(values: Iterable[float]) -> list[str]:
    """Decimal strings of at most 16 characters (PS3.5 section 6.2)."""
    return [
        f"{value:.8f}".rstrip("0").rstrip(".") if abs(value) > 5e-9 else "0" for value in values
    ]


def orientation(where: Grid) -> list[str]:
    """ImageOrientationPatient of a grid's planes, PS3.3 C.7.6.2.1.1."""
    axes = _RAS_TO_LPS @ where.affine[:3, :2]
    return decimals((axes / np.linalg.norm(axes, axis=0)).T.ravel())


def position(where: Grid, plane: int) -> list[str]:
    """ImagePositionPatient of one plane."""
    corner = where.affine @ (0, 0, plane, 1)
    return decimals(_RAS_TO_LPS @ corner[:3])


def pixel_spacing(where: Grid) -> list[str]:
    """PixelSpacing: mm between rows, then between columns."""
    return decimals(np.linalg.norm(where.affine[:3, [1, 0]], axis=0).round(6))


def set_pixels(
    target: Dataset, stored: NDArray[np.integer], *, bits: int, monochrome: int = 2
) -> None:
    """The image pixel module, PS3.3 C.7.6.3, of (rows, columns) or (frames, rows, columns) integers."""
    signed = stored.dtype.kind == "i"
    target.SamplesPerPixel, target.PhotometricInterpretation = 1, f"MONOCHROME{monochrome}"
    target.Rows, target.Columns = stored.shape[-2:]
    target.BitsAllocated, target.BitsStored, target.HighBit = 16, bits, bits - 1
    target.PixelRepresentation = int(signed)
    target.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()


def write_planes(
    template: Dataset,
    study: Study,
    stored: NDArray[np.integer],
    where: Grid,
    folder: Path,
    *,
    bits: int,
    backwards: bool = False,
) -> list[Path]:
    """Write a volume (columns, rows, slices) as one file a plane; the template is used up.

    Args:
        backwards: number the planes against the slice axis, as some scanners do.

    Returns:
        The files in the order of slices.
    """
    template.ImageOrientationPatient = orientation(where)
    template.PixelSpacing = pixel_spacing(where)
    slices, series = where.shape[2], int(template.SeriesNumber)
    files = []
    for plane in range(slices):
        number = slices - plane if backwards else plane + 1
        template.InstanceNumber = number
        template.SOPInstanceUID = study.uid("instance", series, number)
        template.ImagePositionPatient = position(where, plane)
        set_pixels(template, stored[:, :, plane].T, bits=bits)
        files.append(folder / f"IM{number:04d}.dcm")
        save(template, files[-1])
    return files


def save(dataset: Dataset, path: Path, *, compression: UID | None = None) -> None:
    """Write a file with its meta header, its pixels compressed (losslessly) if so asked."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if compression:
        dataset.compress(compression, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """A coded concept, PS3.3 table 8.8-1."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def soft(inside: NDArray[np.floating], softness: float) -> Floats:
    """0 far outside, 1 far inside, a smooth edge of about `softness` where `inside` is 0."""
    edge = 1 / (1 + np.exp(np.clip(inside / (-softness / 4), -30, 30)))
    return np.asarray(edge, dtype=np.float32)


def ellipsoid(points: Floats, centre: ArrayLike, radii: ArrayLike) -> Floats:
    """About the distance in mm to an ellipsoid's surface, positive inside."""
    middle, extent = np.asarray(centre, dtype=np.float32), np.asarray(radii, dtype=np.float32)
    total = np.zeros(points.shape[1:], dtype=np.float32)
    for axis in range(3):
        total += np.square((points[axis] - middle[axis]) / extent[axis])
    distance: Floats = (1 - np.sqrt(total)) * extent.min()
    return distance


def rotation(degrees: ArrayLike) -> NDArray[np.float64]:
    """Turn about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(np.asarray(degrees))):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[second, first], turn[first, second] = np.sin(angle), -np.sin(angle)
        result = turn @ result
    return result
