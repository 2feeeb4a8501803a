"""DICOM structure sets (RTSTRUCT, PS3.3 A.19): contours to voxels, and voxels to contours."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from highdicom import SOPClass
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from client_app.imaging.masks.contours import Points, filled, outlines
from client_app.imaging.masks.source import MANUFACTURER, Slice, bare, check, slices
from client_app.imaging.set_aside import Reason, Unfit, silenced

_ENCLOSING = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
_ONE_PLANE = 0.05
"""Slices: contours nearer to one another along the normal than this are of one plane."""
_MOST_POINTS = 2**24
_DETACHED_STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"
_COLOURS = ((230, 60, 60), (60, 140, 230), (80, 190, 90), (240, 180, 40), (160, 90, 200))
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(
    path: Path,
    classes: tuple[tuple[int, ...], ...],
    *,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    tolerance: float = 0.25,
) -> NDArray[np.uint8]:
    """Class indices on the image's grid, (columns, rows, slices); 0 is background.

    A voxel is of class c (from 1) where its centre lies inside or on the contours of any of the
    regions at the positions `classes[c - 1]` in StructureSetROISequence, as `contours.filled` says;
    where several classes are, the highest wins. A contour belongs to the nearest slice, and where
    contours of several planes fall to one slice, those nearest to its centre are taken. Contours
    before the first and behind the last slice are left out. There is nothing between contours that
    leave slices out: these slices are background. Points and open lines enclose nothing.

    Outlines along the edges of pixels (as `write` draws them) and lines through the middles of the
    outermost pixels (as rt-utils draws them) give the very voxels that they were drawn around; other
    software's voxels can differ from its contours by the pixels that the contours cut.

    Args:
        affine: of the image, from (column, row, slice) to RAS+ in mm; may be sheared.
        tolerance: slices by which the points of a contour may leave its plane.

    Raises:
        Unfit: GEOMETRY_DIFFERS where contours are not parallel to the slices, or none lies on the
            image; STRUCTURE_MISSING where the file has no such region, or only points and lines in
            it; TOO_LARGE; CORRUPT.
    """
    try:
        regions = _regions(path, classes)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise Unfit(Reason.CORRUPT, "its contours are not as the standard has them") from error
    to_image = np.linalg.inv(affine) @ _LPS_TO_RAS
    mask = np.zeros(shape, dtype=np.uint8)
    drawn = met = 0
    for number, positions in enumerate(classes, 1):
        for position in positions:
            contours = [
                contour @ to_image[:3, :3].T + to_image[:3, 3] for contour in regions[position]
            ]
            drawn += len(contours)
            for place, polygons in _by_slice(contours, shape[2], tolerance).items():
                met += sum(_touches(polygon, shape) for polygon in polygons)
                mask[:, :, place][filled(polygons, shape[:2])] = number
    if drawn and not met:
        raise Unfit(Reason.GEOMETRY_DIFFERS, f"none of {drawn} contours lies on the image")
    return mask


def _regions(path: Path, classes: tuple[tuple[int, ...], ...]) -> dict[int, list[Points]]:
    """The closed contours of the regions at the positions named, (points, 3) in mm, LPS+."""
    dataset = pydicom.dcmread(path, force=True)
    numbers = [int(item.ROINumber) for item in dataset.StructureSetROISequence]
    wanted = {position for some in classes for position in some}
    if any(not 0 <= position < len(numbers) for position in wanted):
        raise Unfit(Reason.STRUCTURE_MISSING, f"it has {len(numbers)} regions")
    drawings: dict[int, list[Dataset]] = {}
    for item in dataset.get("ROIContourSequence") or []:
        drawings.setdefault(int(item.ReferencedROINumber), []).extend(
            item.get("ContourSequence") or []
        )
    result: dict[int, list[Points]] = {}
    points = 0
    for position in wanted:
        drawing = drawings.get(numbers[position], [])
        closed = [contour for contour in drawing if contour.ContourGeometricType in _ENCLOSING]
        if drawing and not closed:
            raise Unfit(Reason.STRUCTURE_MISSING, "a region of points or open lines")
        result[position] = []
        for contour in closed:
            coordinates = _coordinates(contour)
            points += len(coordinates)
            if points > _MOST_POINTS:
                raise Unfit(Reason.TOO_LARGE, f"more than {_MOST_POINTS:,} points")
            if len(coordinates):
                result[position].append(coordinates)
    return result


def _coordinates(contour: Dataset) -> Points:
    element = contour.get_item("ContourData")
    if element is None or element.value is None:
        return np.empty((0, 3))
    if isinstance(element, RawDataElement):  # a million DS objects cost a thousand times its text
        text = bytes(element.value).rstrip(b" \0")
        values = np.array(text.split(b"\\") if text else []).astype(np.float64)
    else:
        values = np.array(element.value, dtype=np.float64)
    if values.size % 3:
        raise Unfit(Reason.CORRUPT, f"a contour of {values.size} coordinates, which come in threes")
    if not np.all(np.isfinite(values)):
        raise Unfit(Reason.CORRUPT, "a contour has coordinates that are no numbers")
    return values.reshape(-1, 3)


def _by_slice(contours: Sequence[Points], count: int, tolerance: float) -> dict[int, list[Points]]:
    """For each slice the polygons (column, row) of the plane that is nearest to its centre."""
    heights: list[float] = []
    for contour in contours:
        if float(np.ptp(contour[:, 2])) > 2 * tolerance:
            raise Unfit(Reason.GEOMETRY_DIFFERS, "a contour is not parallel to the image's slices")
        heights.append(float(contour[:, 2].mean()))
    nearest: dict[int, float] = {}
    for height in heights:
        place = _slice(height)
        if 0 <= place < count and abs(height - place) < abs(nearest.get(place, np.inf) - place):
            nearest[place] = height
    result: dict[int, list[Points]] = {place: [] for place in nearest}
    for contour, height in zip(contours, heights, strict=True):
        place = _slice(height)
        if place in nearest and abs(height - nearest[place]) <= _ONE_PLANE:
            result[place].append(contour[:, :2])
    return result


def _slice(height: float) -> int:
    """The nearest; half way between two, with what rounding there is, the higher."""
    return int(np.floor(np.clip(height, -1e6, 1e6) + 0.5 + 1e-4))


def _touches(polygon: Points, shape: tuple[int, int, int]) -> bool:
    """Whether its bounding box and the image meet."""
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    return bool(np.all(high >= -0.5) and np.all(low <= np.array(shape[:2]) - 0.5))


def write(
    mask: NDArray[np.uint8],
    source: Sequence[Dataset],
    *,
    names: Sequence[str],
    algorithm: str,
    version: str,
    planes: Sequence[tuple[int, int]] | None = None,
    description: str | None = None,
    series_uid: str | None = None,
    instance_uid: str | None = None,
    series_number: int = 901,
) -> Dataset:
    """An RTSTRUCT with a region for each class, outlined along the edges of its pixels.

    `read` gives back the same voxels. It holds the patient and the study of the source, and is for
    the hospital's own archive. A class without voxels is a region without contours. UIDs are new
    and random (2.25) unless given.

    Args:
        mask: class indices, (columns, rows, slices); class c is named `names[c - 1]`.
        source: headers of the series: one a slice, or some with many frames.
        planes: see `source.slices`; by default the slices are the source's in its order.

    Raises:
        ValueError: the mask is not of the series' shape, or has classes without names.
        Unfit: the source lacks geometry.
    """
    places = slices(source, planes)
    check(mask, names, source[places[0].source], len(places))
    first = bare(source[places[0].source])
    result = SOPClass(
        study_instance_uid=first.StudyInstanceUID,
        series_instance_uid=series_uid or generate_uid(prefix=None),
        series_number=series_number,
        sop_instance_uid=instance_uid or generate_uid(prefix=None),
        sop_class_uid=RTStructureSetStorage,
        instance_number=1,
        modality="RTSTRUCT",
        manufacturer=MANUFACTURER,
        manufacturer_model_name=algorithm,
        software_versions=version,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        patient_birth_date=first.PatientBirthDate,
        specific_character_set=first.get("SpecificCharacterSet"),
        series_description=description,
    )
    with silenced():
        result.copy_patient_and_study_information(first)
    result.OperatorsName = None
    result.FrameOfReferenceUID = first.FrameOfReferenceUID
    result.PositionReferenceIndicator = first.get("PositionReferenceIndicator")
    now = datetime.datetime.now()
    result.StructureSetLabel = "SEGMENTATION"
    result.StructureSetName = description
    result.StructureSetDate, result.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    result.ApprovalStatus = "UNAPPROVED"
    result.ReferencedFrameOfReferenceSequence = Items([_referenced_frame(source, places, first)])
    result.StructureSetROISequence = Items()
    result.ROIContourSequence = Items()
    result.RTROIObservationsSequence = Items()
    for number, name in enumerate(names, 1):
        region = _item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
            ROIName=name,
            ROIGenerationAlgorithm="AUTOMATIC",
            ROIGenerationDescription=f"{algorithm} {version}"[:64],
        )
        drawing = _item(
            ROIDisplayColor=list(_COLOURS[(number - 1) % len(_COLOURS)]), ReferencedROINumber=number
        )
        contours = list(_contours(mask == number, source, places))
        if contours:
            drawing.ContourSequence = Items(contours)
        observation = _item(
            ObservationNumber=number,
            ReferencedROINumber=number,
            RTROIInterpretedType="GTV" if _is_tumour(name) else "ORGAN",
            ROIInterpreter=None,
        )
        result.StructureSetROISequence.append(region)
        result.ROIContourSequence.append(drawing)
        result.RTROIObservationsSequence.append(observation)
    return result


def _contours(
    region: NDArray[np.bool_], source: Sequence[Dataset], places: Sequence[Slice]
) -> Iterable[Dataset]:
    for number, place in enumerate(places):
        if not region[:, :, number].any():
            continue
        for polygon in outlines(region[:, :, number]):
            points = place.world(polygon)
            yield _item(
                ContourImageSequence=Items([_reference(source, place)]),
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                # DS holds 16 characters; 10 nm are far below the contours' distance from pixels.
                ContourData=[f"{value:.5f}" for value in points.ravel()],
            )


def _reference(source: Sequence[Dataset], place: Slice) -> Dataset:
    instance = source[place.source]
    item = _item(
        ReferencedSOPClassUID=instance.SOPClassUID, ReferencedSOPInstanceUID=instance.SOPInstanceUID
    )
    if place.frame is not None:
        item.ReferencedFrameNumber = place.frame + 1
    return item


def _referenced_frame(
    source: Sequence[Dataset], places: Sequence[Slice], first: Dataset
) -> Dataset:
    """The series and all its slices, drawn on or not (PS3.3 C.8.8.5)."""
    series = _item(
        SeriesInstanceUID=first.SeriesInstanceUID,
        ContourImageSequence=Items([_reference(source, place) for place in places]),
    )
    study = _item(
        ReferencedSOPClassUID=_DETACHED_STUDY_MANAGEMENT,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=Items([series]),
    )
    return _item(
        FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=Items([study])
    )


def _is_tumour(name: str) -> bool:
    return any(word in name.lower() for word in ("tumour", "tumor", "gtv", "cancer", "lesion"))


def _item(**elements: object) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item
