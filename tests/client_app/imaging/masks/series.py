"""Small series of CT slices, classic or enhanced, with any orientation, spacing and gantry tilt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

CANARY = "Canary^Émile"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """Headers in slice order, and what the images say of the geometry in exact numbers.

    Attributes:
        datasets: one a slice, or a single enhanced one.
        shape: (columns, rows, slices).
        affine: (column, row, slice) to RAS+ in mm.
    """

    datasets: list[Dataset]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, dataset in enumerate(self.datasets):
            dataset.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)
        return folder


def ct_series(
    shape: tuple[int, int, int] = (12, 10, 6),
    *,
    spacing: tuple[float, float, float] = (0.9, 0.7, 2.5),
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    tilt: float = 0.0,
    origin: tuple[float, float, float] = (-61.25, -43.5, 117.75),
    enhanced: bool = False,
) -> Series:
    """A series of noise.

    Args:
        shape: (columns, rows, slices).
        spacing: mm between columns, rows and slices, the last along the normal.
        angles: radians about the patient's x, y and z axes.
        tilt: of the gantry in radians: each slice lies further down its column by its tangent.
        enhanced: one multi-frame dataset instead of one a slice.
    """
    columns, rows, count = shape
    a, b, c = angles
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    # What a file can hold: directions of six decimals.
    along_row, down_column, _ = np.round(about_z @ about_y @ about_x, 9).T
    step = spacing[2] * (np.cross(along_row, down_column) + np.tan(tilt) * down_column)
    positions = np.array(origin) + np.arange(count)[:, None] * step
    lps = np.eye(4)
    lps[:3] = np.column_stack([along_row * spacing[0], down_column * spacing[1], step, origin])

    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    orientation = [f"{value:.9f}" for value in (*along_row, *down_column)]
    pixels = np.random.default_rng(0).integers(0, 4096, (count, rows, columns), dtype=np.uint16)
    datasets = []
    for number in range(1 if enhanced else count):
        slice_ = _image(study, series, frame, rows, columns)
        slice_.InstanceNumber = number + 1
        if enhanced:
            _make_enhanced(slice_, positions, orientation, spacing)
            slice_.PixelData = pixels.tobytes()
        else:
            slice_.ImagePositionPatient = [f"{value:.8f}" for value in positions[number]]
            slice_.ImageOrientationPatient = orientation
            slice_.PixelSpacing = [spacing[1], spacing[0]]
            slice_.SliceThickness = spacing[2]
            slice_.PixelData = pixels[number].tobytes()
        datasets.append(slice_)
    return Series(datasets, shape, LPS_TO_RAS @ lps)


def _image(study: str, series: str, frame: str, rows: int, columns: int) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
    image.Modality, image.Manufacturer = "CT", "Canary Scanners"
    image.PatientID, image.PatientName, image.PatientSex = "P1", CANARY, "F"
    image.PatientBirthDate, image.PatientAge = "19610203", "059Y"
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.StudyDate, image.StudyTime, image.StudyID = "20200102", "101112", "S1"
    image.AccessionNumber, image.ReferringPhysicianName = "A1", ""
    image.SeriesNumber, image.FrameOfReferenceUID = 1, frame
    image.PositionReferenceIndicator = ""
    image.Rows, image.Columns = rows, columns
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation = 0
    image.RescaleIntercept, image.RescaleSlope = -1024, 1
    return image


def _make_enhanced(
    image: Dataset,
    positions: NDArray[np.float64],
    orientation: list[str],
    spacing: tuple[float, float, float],
) -> None:
    """Orientation and spacing are said for each frame, as Philips does."""
    image.SOPClassUID = EnhancedCTImageStorage
    image.NumberOfFrames = len(positions)
    image.SharedFunctionalGroupsSequence = Items([Dataset()])
    image.PerFrameFunctionalGroupsSequence = Items()
    for position in positions:
        place, plane, measures, frame = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{value:.8f}" for value in position]
        plane.ImageOrientationPatient = orientation
        measures.PixelSpacing = [spacing[1], spacing[0]]
        measures.SliceThickness = spacing[2]
        frame.PlanePositionSequence = Items([place])
        frame.PlaneOrientationSequence = Items([plane])
        frame.PixelMeasuresSequence = Items([measures])
        image.PerFrameFunctionalGroupsSequence.append(frame)
