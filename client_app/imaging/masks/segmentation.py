"""DICOM segmentations (SEG, PS3.3 A.51): read onto an image's grid, and written for a series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

from client_app.imaging.masks.planes import (
    Stack,
    distances_along_normal,
    has_centre_inside,
    lay,
    resample,
)
from client_app.imaging.masks.source import (
    MANUFACTURER,
    Slice,
    bare,
    check,
    frame_groups,
    lookup,
    slices,
)
from client_app.imaging.set_aside import Reason, Unfit, silenced

_MOST_VOXELS = 2**30
_HEADER = [
    "SOPClassUID",
    "SegmentationType",
    "MaximumFractionalValue",
    "NumberOfFrames",
    "BitsAllocated",
    "Rows",
    "Columns",
    "TotalPixelMatrixColumns",
    "SegmentSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ImageOrientationSlide",
]

_Pixels = NDArray[np.uint8]
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(
    path: Path,
    classes: tuple[tuple[int, ...], ...],
    *,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    threshold: float = 0.5,
) -> NDArray[np.uint8]:
    """Class indices on the image's grid, (columns, rows, slices); 0 is background.

    A voxel is of class c (from 1) where any of the segments at the positions `classes[c - 1]` in
    SegmentSequence is set at its centre; where several classes are, the highest wins. A fractional
    segment is set from `threshold` on, as a share of its MaximumFractionalValue. Where the file has
    planes other than the image's slices, or other pixels, the centre of each voxel of the image is
    looked up in the file's voxels. Where the file has no plane there is background.

    Args:
        affine: of the image, from (column, row, slice) to RAS+ in mm; may be sheared.

    Raises:
        Unfit: GEOMETRY_DIFFERS where file and image do not meet, or all that is set lies beside the
            image's voxels; NO_GEOMETRY; NOT_SUPPORTED for slides; STRUCTURE_MISSING where the file
            has no such segment; TOO_LARGE; CORRUPT; COMPRESSION_UNKNOWN.
    """
    try:
        stack = _read_stack(path, classes, threshold)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise Unfit(Reason.CORRUPT, "its frames and its header do not fit together") from error
    except (RuntimeError, NotImplementedError) as error:
        raise Unfit(Reason.COMPRESSION_UNKNOWN, "its frames could not be decoded") from error
    mask = np.zeros(shape, dtype=np.uint8)
    to_image = np.linalg.inv(affine) @ _LPS_TO_RAS
    if not lay(stack, mask, to_image):
        meets = resample(stack, mask, _LPS_TO_RAS @ affine)
        if not meets and not has_centre_inside(stack, shape, to_image):
            raise Unfit(Reason.GEOMETRY_DIFFERS, "mask and image do not meet")
    if not mask.any() and any(plane.any() for plane in stack.classes):
        raise Unfit(Reason.GEOMETRY_DIFFERS, "nothing of the mask lies on the image's voxels")
    return mask


def _read_stack(path: Path, classes: tuple[tuple[int, ...], ...], threshold: float) -> Stack:
    header = pydicom.dcmread(path, specific_tags=_HEADER, force=True)
    if "TotalPixelMatrixColumns" in header or "ImageOrientationSlide" in header:
        raise Unfit(Reason.NOT_SUPPORTED, "a segmentation of a slide")
    segments = [int(item.SegmentNumber) for item in header.SegmentSequence]
    if any(not 0 <= position < len(segments) for some in classes for position in some):
        raise Unfit(Reason.STRUCTURE_MISSING, f"it has {len(segments)} segments")
    classes_of: dict[int, list[int]] = {}
    for number, positions in enumerate(classes, 1):
        for position in positions:
            classes_of.setdefault(segments[position], []).append(number)
    top = {segment: max(numbers) for segment, numbers in classes_of.items()}

    frames, size = int(header.NumberOfFrames), (int(header.Columns), int(header.Rows))
    if min(frames, *size) < 1:
        raise Unfit(Reason.CORRUPT, "no frames, rows or columns")
    labelmap = header.SegmentationType == "LABELMAP"
    least = 1.0
    if header.SegmentationType == "FRACTIONAL":
        least = threshold * float(header.MaximumFractionalValue)
    places: dict[tuple[float, ...], Slice] = {}
    place_of: list[tuple[float, ...]] = []
    segment_of: list[int] = []
    for frame in range(frames):
        groups = frame_groups(header, frame)
        place = _place(groups, frame)
        place_of.append(place.position)
        places.setdefault(place.position, place)
        segment_of.append(-1 if labelmap else _segment(groups))
    if len({(*p.orientation, *p.spacing) for p in places.values()}) > 1:
        raise Unfit(Reason.NOT_SUPPORTED, "its frames differ in orientation or spacing")
    if len(places) * size[0] * size[1] > _MOST_VOXELS:
        raise Unfit(Reason.TOO_LARGE, f"{len(places)} planes of {size[0]} × {size[1]}")

    found = {position: np.zeros(size, dtype=np.uint8) for position in places}
    wanted = [frame for frame in range(frames) if labelmap or segment_of[frame] in top]
    for frame, values in zip(wanted, _pixels(path, header, wanted), strict=True):
        target = found[place_of[frame]]
        if labelmap:
            for segment, number in top.items():
                target[(values == segment).T] = number
        else:
            chosen = (values >= least).T
            target[chosen] = np.maximum(target[chosen], top[segment_of[frame]])
    return Stack(
        list(places.values()), list(found.values()), _thickness(header, list(places.values()))
    )


def _pixels(
    path: Path, header: Dataset, wanted: Sequence[int]
) -> Iterator[NDArray[np.unsignedinteger]]:
    """The frames wanted, (rows, columns) each, one in memory at a time."""
    syntax = header.file_meta.TransferSyntaxUID
    if not wanted:
        return
    if int(header.BitsAllocated) != 1 or syntax.is_encapsulated:
        # A deflated file is one stream and cannot be read in parts.
        deflated = syntax == DeflatedExplicitVRLittleEndian
        yield from iter_pixels(pydicom.dcmread(path) if deflated else path, indices=list(wanted))
        return
    # Frames of single bits follow one another without padding (PS3.5 8.1.1), which pydicom 3.0.2
    # gets wrong for single frames that do not begin or end at a byte.
    packed = np.frombuffer(pydicom.dcmread(path, force=True).PixelData, dtype=np.uint8)
    if not syntax.is_little_endian:
        packed = packed.view(">u2").astype("<u2").view(np.uint8)
    rows, columns = int(header.Rows), int(header.Columns)
    size = rows * columns
    for frame in wanted:
        begin, end = frame * size, (frame + 1) * size
        bits = np.unpackbits(packed[begin // 8 : -(-end // 8)], bitorder="little")
        yield bits[begin % 8 : begin % 8 + size].reshape(rows, columns)


def _place(groups: Sequence[Dataset], frame: int) -> Slice:
    if any("PlanePositionSlideSequence" in group for group in groups):
        raise Unfit(Reason.NOT_SUPPORTED, "a segmentation of a slide")
    position = lookup(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = lookup(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = lookup(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None or min(spacing) <= 0:
        raise Unfit(Reason.NO_GEOMETRY, "its frames lack position, orientation or spacing")
    return Slice(0, frame, position, orientation, spacing)


def _segment(groups: Sequence[Dataset]) -> int:
    for group in groups:
        for item in group.get("SegmentIdentificationSequence") or []:
            return int(item.ReferencedSegmentNumber)
    raise Unfit(Reason.CORRUPT, "a frame names no segment")


def _thickness(header: Dataset, places: Sequence[Slice]) -> float:
    """What lies between slices, or from one frame to the nearest other, or the slice's own thickness."""
    groups = frame_groups(header, 0)
    for macro_keyword in ("SpacingBetweenSlices", "SliceThickness"):
        said = lookup(groups, "PixelMeasuresSequence", macro_keyword, 1)
        gaps = np.diff(np.unique(np.round(distances_along_normal(places), 3)))
        if macro_keyword == "SliceThickness" and gaps.size:
            return float(gaps.min())
        if said is not None and said[0] > 0:
            return said[0]
    raise Unfit(Reason.NO_GEOMETRY, "one frame, of which neither spacing nor thickness is said")


def write(
    mask: NDArray[np.uint8],
    source: Sequence[Dataset],
    *,
    names: Sequence[str],
    algorithm: str,
    version: str,
    planes: Sequence[tuple[int, int]] | None = None,
    labelmap: bool = False,
    description: str | None = None,
    series_uid: str | None = None,
    instance_uid: str | None = None,
    series_number: int = 900,
) -> Segmentation:
    """A SEG of the mask that references the series and the slice of each frame.

    It holds the patient and the study of the source, and is for the hospital's own archive. Slices
    without foreground have no frame. UIDs are new and random (2.25) unless given.

    Args:
        mask: class indices, (columns, rows, slices); class c is named `names[c - 1]`.
        source: headers of the series: one a slice, or one with many frames.
        planes: see `source.slices`; by default the slices are the source's in its order.
        labelmap: write SegmentationType LABELMAP, which few viewers know yet, and not BINARY.

    Raises:
        ValueError: the mask is not of the series' shape, or has classes without names.
        Unfit: the source lacks geometry, or holds it in several multi-frame files.
    """
    places = slices(source, planes)
    used = sorted({place.source for place in places})
    enhanced = places[0].frame is not None
    if enhanced and len(used) > 1:
        raise Unfit(Reason.NOT_SUPPORTED, f"a volume over {len(used)} multi-frame files")
    check(mask, names, source[places[0].source], len(places))
    if enhanced:
        images = [_with_geometry(bare(source[used[0]]), places[0])]
    else:
        images = [bare(source[place.source]) for place in places]
        for image in images:  # highdicom wants them equal to the last digit
            image.ImageOrientationPatient = list(places[0].orientation)
    with silenced():
        return Segmentation(
            source_images=images,
            pixel_array=np.ascontiguousarray(mask.transpose(2, 1, 0)),
            segmentation_type="LABELMAP" if labelmap else "BINARY",
            segment_descriptions=[
                _description(number, name, algorithm, version)
                for number, name in enumerate(names, 1)
            ],
            plane_positions=[
                highdicom.PlanePositionSequence("PATIENT", place.position) for place in places
            ],
            plane_orientation=highdicom.PlaneOrientationSequence("PATIENT", places[0].orientation),
            pixel_measures=_measures(source[places[0].source], places),
            series_instance_uid=series_uid or generate_uid(prefix=None),
            sop_instance_uid=instance_uid or generate_uid(prefix=None),
            series_number=series_number,
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=algorithm,
            software_versions=version,
            device_serial_number="1",
            content_label="SEGMENTATION",
            content_description=description,
            series_description=description,
            omit_empty_frames=bool(mask.any()),  # with no frame at all it would be no image
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )


def _with_geometry(header: Dataset, first: Slice) -> Dataset:
    """A multi-frame header that says for all frames what some vendors say for each (Philips)."""
    shared = Dataset()
    shared.PlaneOrientationSequence = highdicom.PlaneOrientationSequence(
        "PATIENT", first.orientation
    )
    shared.PixelMeasuresSequence = _measures(header, [first])
    header.SharedFunctionalGroupsSequence = Items([shared])
    return header


def _measures(header: Dataset, places: Sequence[Slice]) -> highdicom.PixelMeasuresSequence:
    groups = [header] if places[0].frame is None else frame_groups(header, places[0].frame)
    thickness = lookup(groups, "PixelMeasuresSequence", "SliceThickness", 1)
    gaps = np.abs(np.diff(distances_along_normal(places)))
    between = float(gaps.mean()) if gaps.size else None
    return highdicom.PixelMeasuresSequence(
        pixel_spacing=places[0].spacing,
        slice_thickness=thickness[0] if thickness else between or 1.0,
        spacing_between_slices=between,
    )


_CODES = (  # what a name says, and its category and type (PS3.16 CID 7150 and CID 7151)
    (
        ("tumour", "tumor", "gtv", "cancer", "neoplasm", "lesion", "metasta"),
        codes.SCT.MorphologicallyAbnormalStructure,
        codes.SCT.Neoplasm,
    ),
    (("hippocamp",), codes.SCT.AnatomicalStructure, codes.SCT.Hippocampus),
    (("liver",), codes.SCT.AnatomicalStructure, codes.SCT.Liver),
    (("prostate",), codes.SCT.AnatomicalStructure, codes.SCT.Prostate),
    (("kidney",), codes.SCT.AnatomicalStructure, codes.SCT.Kidney),
    (("lung",), codes.SCT.AnatomicalStructure, codes.SCT.Lung),
    (("brain",), codes.SCT.AnatomicalStructure, codes.SCT.Brain),
    (("oedema", "edema"), codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Edema),
    (("necro",), codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Necrosis),
)


def _property(name: str) -> tuple[Code, Code]:
    """Segmented property category and type; tissue where the name is none that is known."""
    for words, category, kind in _CODES:
        if any(word in name.lower() for word in words):
            return category, kind
    return codes.SCT.Tissue, codes.SCT.Tissue


def _description(number: int, name: str, algorithm: str, version: str) -> SegmentDescription:
    category, kind = _property(name)
    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=algorithm, version=version, family=codes.DCM.ArtificialIntelligence
        ),
    )
