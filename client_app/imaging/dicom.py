"""One DICOM header: what is this file to a task, of whom, where in the patient, and is it all there?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pydicom import uid
from pydicom.uid import UID

from client_app.imaging.attributes import attributes, view_of_code
from client_app.imaging.elements import Elements, open_elements
from client_app.imaging.header import Header, Kind, Plane
from client_app.imaging.pixel_data import LABEL_MAP, check_pixels, name_of
from client_app.imaging.planes import classic, enhanced, mosaic
from client_app.imaging.pseudonym import normalised
from client_app.imaging.set_aside import Reason, Unfit
from client_app.imaging.weighting import weighting_of

# "DR" is in no edition of the standard, and in many archives.
_PROJECTION_MODALITIES = frozenset({"CR", "DX", "DR", "RG", "MG", "IO", "PX"})
_PROJECTIONS = {
    uid.ComputedRadiographyImageStorage: "CR",
    uid.DigitalXRayImageStorageForPresentation: "DX",
    uid.DigitalXRayImageStorageForProcessing: "DX",
    uid.DigitalMammographyXRayImageStorageForPresentation: "MG",
    uid.DigitalMammographyXRayImageStorageForProcessing: "MG",
    uid.DigitalIntraOralXRayImageStorageForPresentation: "IO",
    uid.DigitalIntraOralXRayImageStorageForProcessing: "IO",
}
# What digitised and de-identified radiographs are stored as; their modality tells them from screenshots.
_CAPTURES = frozenset(
    {
        "",
        uid.SecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    }
)
_CLASSIC = {
    uid.CTImageStorage: "CT",
    uid.MRImageStorage: "MR",
    uid.PositronEmissionTomographyImageStorage: "PT",
}
_ENHANCED = {
    uid.EnhancedCTImageStorage: "CT",
    uid.LegacyConvertedEnhancedCTImageStorage: "CT",
    uid.EnhancedMRImageStorage: "MR",
    uid.LegacyConvertedEnhancedMRImageStorage: "MR",
    uid.EnhancedPETImageStorage: "PT",
    uid.LegacyConvertedEnhancedPETImageStorage: "PT",
}
_LOCALISERS = frozenset(
    {"LOCALIZER", "LOCALISER", "SCOUT", "PLANNING SCOUT", "SURVEY", "TOPOGRAM", "SCANOGRAM"}
)
_MOST_FRAMES = 100_000
_BUFFER = 32 << 10  # most headers fit into one read


def read_header(path: Path) -> Header:
    """Read the header of a DICOM file, with or without extension and preamble.

    Raises:
        Unfit: not DICOM; nothing that tasks learn from; cut short; compressed in an unknown way;
            a plane without a place in the patient.
        Exception: whatever a file that is broken in ways of its own brings about.
    """
    size = path.stat().st_size
    with path.open("rb", buffering=_BUFFER) as file:
        elements = open_elements(file, size)
        header = _header(elements, file, size)
        frame_of_reference = elements.text("FrameOfReferenceUID")
        return replace(
            header,
            patient_id=normalised(elements.text("PatientID")),
            study_uid=elements.text("StudyInstanceUID"),
            series_uid=elements.text("SeriesInstanceUID"),
            instance_uid=elements.text("SOPInstanceUID"),
            frame_of_reference_uid=frame_of_reference or header.frame_of_reference_uid,
        )


def _header(elements: Elements, file: BinaryIO, size: int) -> Header:
    """All but whose it is."""
    sop_class = elements.text("SOPClassUID") or elements.storage_class
    modality = elements.text("Modality").upper()
    if not sop_class and not modality:
        raise Unfit(Reason.NOT_DICOM, "it names neither a SOP class nor a modality")
    kind = _kind(elements, sop_class, modality)
    if elements.missing:
        raise Unfit(Reason.TRUNCATED, f"its header lacks {elements.missing:,} bytes")
    if kind is Kind.STRUCTURE_SET:
        return _structure_set(elements)
    shape, frames = _picture(elements, sop_class)
    if kind is Kind.SEGMENTATION:
        check_pixels(elements, file, size, 0)
        return _segmentation(elements, shape)
    _check_grey(elements, sop_class)
    check_pixels(elements, file, size, _bytes(elements, shape, frames))
    if kind is Kind.RADIOGRAPH:
        return _radiograph(elements, sop_class, modality, shape, frames)
    return _planes(elements, sop_class, modality, shape, frames)


def _kind(elements: Elements, sop_class: str, modality: str) -> Kind:
    """Raises Unfit: nothing that tasks learn from."""
    if sop_class == uid.RTStructureSetStorage:
        return Kind.STRUCTURE_SET
    if sop_class in (uid.SegmentationStorage, LABEL_MAP):
        return Kind.SEGMENTATION
    if sop_class in _PROJECTIONS or (sop_class in _CAPTURES and modality in _PROJECTION_MODALITIES):
        return Kind.RADIOGRAPH
    if (
        sop_class in _CLASSIC
        or sop_class in _ENHANCED
        or (not sop_class and modality in ("CT", "MR", "PT"))
    ):
        return Kind.PLANES
    what = name_of(sop_class, "SOP class")
    if "Rows" not in elements or "Columns" not in elements:
        raise Unfit(Reason.NOT_AN_IMAGE, what)
    _check_grey(elements, sop_class)
    raise Unfit(Reason.NOT_SUPPORTED, what)


def _picture(elements: Elements, sop_class: str) -> tuple[tuple[int, int], int]:
    """(rows, columns) and the number of frames."""
    if "Rows" not in elements or "Columns" not in elements:
        raise Unfit(Reason.CORRUPT, "its header gives no rows and columns; it may be cut off")
    rows, columns = elements.number("Rows") or 0, elements.number("Columns") or 0
    frames = elements.number("NumberOfFrames")
    frames = 1 if frames is None else frames
    if min(rows, columns, frames) < 1:
        raise Unfit(Reason.NOT_AN_IMAGE, "no rows, no columns or no frames")
    if frames > _MOST_FRAMES:
        raise Unfit(Reason.TOO_LARGE, f"{int(frames):,} frames, {name_of(sop_class, 'SOP class')}")
    return (int(rows), int(columns)), int(frames)


def _check_grey(elements: Elements, sop_class: str) -> None:
    samples = elements.number("SamplesPerPixel")
    samples = 1 if samples is None else samples
    if samples != 1 or elements.text("PhotometricInterpretation") not in (
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        raise Unfit(
            Reason.COLOUR, f"{int(samples)} samples a pixel, {name_of(sop_class, 'SOP class')}"
        )


def _bytes(elements: Elements, shape: tuple[int, int], frames: int) -> int:
    bits = elements.number("BitsAllocated") or 0
    return math.ceil(shape[0] * shape[1] * frames * bits / 8)


def _radiograph(
    elements: Elements, sop_class: str, modality: str, shape: tuple[int, int], frames: int
) -> Header:
    if frames > 1:
        raise Unfit(Reason.NOT_SUPPORTED, f"{frames:,} frames, {name_of(sop_class, 'SOP class')}")
    modality = modality or _PROJECTIONS[UID(sop_class)]
    spacing = _spacing(elements, "ImagerPixelSpacing") or _spacing(elements, "PixelSpacing")
    return Header(
        Kind.RADIOGRAPH,
        shape,
        modality,
        pixel_spacing=spacing,
        attributes=_attributes(elements, modality, sop_class),
    )


def _spacing(elements: Elements, name: str) -> tuple[float, float] | None:
    try:
        spacing = elements.numbers(name)
    except ValueError:
        return None
    if len(spacing) != 2 or not all(0 < part < math.inf for part in spacing):
        return None
    return spacing[0], spacing[1]


def _planes(
    elements: Elements, sop_class: str, modality: str, shape: tuple[int, int], frames: int
) -> Header:
    types = elements.words("ImageType")
    if not _LOCALISERS.isdisjoint(word.upper() for word in types):
        raise Unfit(Reason.LOCALISER)
    known = _CLASSIC.get(UID(sop_class)) or _ENHANCED.get(UID(sop_class)) or modality
    planes: tuple[Plane, ...]
    tiles = 0
    if sop_class in _ENHANCED:
        planes = enhanced(elements, frames)
    elif frames > 1:
        raise Unfit(Reason.NOT_SUPPORTED, f"{frames:,} frames, {name_of(sop_class, 'SOP class')}")
    elif "MOSAIC" in types:
        planes, tiles, shape = mosaic(elements, shape)
    else:
        planes = classic(elements)
    return Header(
        Kind.PLANES,
        shape,
        known,
        planes=planes,
        tiles=tiles,
        attributes=_attributes(elements, known, sop_class),
    )


def _segmentation(elements: Elements, shape: tuple[int, int]) -> Header:
    """References are series, or where none is named the images of its frames."""
    segments = elements.items("SegmentSequence")
    references = _texts(elements.items("ReferencedSeriesSequence"), "SeriesInstanceUID")
    if not references:
        groups = [
            *elements.items("SharedFunctionalGroupsSequence"),
            *elements.items("PerFrameFunctionalGroupsSequence"),
        ]
        derivations = [item for group in groups for item in group.items("DerivationImageSequence")]
        sources = [
            image
            for item in (elements, *derivations)
            for image in item.items("SourceImageSequence")
        ]
        references = _texts(sources, "ReferencedSOPInstanceUID")
    return Header(
        Kind.SEGMENTATION,
        shape,
        "SEG",
        references=references,
        structures=tuple(segment.text("SegmentLabel") for segment in segments),
        created=_created(elements, "Content", "InstanceCreation", "Series", "Study"),
        attributes=attributes(),
    )


def _structure_set(elements: Elements) -> Header:
    """References are series, or where none is named the images of its contours."""
    frames = elements.items("ReferencedFrameOfReferenceSequence")
    series = [
        item
        for frame in frames
        for study in frame.items("RTReferencedStudySequence")
        for item in study.items("RTReferencedSeriesSequence")
    ]
    references = _texts(series, "SeriesInstanceUID")
    if not references:
        images = [image for item in series for image in item.items("ContourImageSequence")]
        if not images:
            images = [
                image
                for region in elements.items("ROIContourSequence")
                for contour in region.items("ContourSequence")
                for image in contour.items("ContourImageSequence")
            ]
        references = _texts(images, "ReferencedSOPInstanceUID")
    regions = elements.items("StructureSetROISequence")
    frame_uids = _texts(frames, "FrameOfReferenceUID") or _texts(
        regions, "ReferencedFrameOfReferenceUID"
    )
    return Header(
        Kind.STRUCTURE_SET,
        (),
        "RTSTRUCT",
        references=references,
        frame_of_reference_uid=frame_uids[0] if len(frame_uids) == 1 else "",
        structures=tuple(region.text("ROIName") for region in regions),
        created=_created(elements, "StructureSet", "InstanceCreation", "Series", "Study"),
        attributes=attributes(),
    )


def _texts(items: list[Elements], name: str) -> tuple[str, ...]:
    """Without repeats, in their order."""
    return tuple(dict.fromkeys(text for item in items if (text := item.text(name))))


def _created(elements: Elements, *names: str) -> str:
    for name in names:
        date, time = elements.text(f"{name}Date"), elements.text(f"{name}Time")
        date, time = date.replace(".", ""), time.replace(":", "")[:6]
        if len(date) == 8 and date.isdecimal() and date.isascii():
            return date + (time if time.isdecimal() and time.isascii() else "")
    return ""


def _attributes(elements: Elements, modality: str, sop_class: str) -> Mapping[str, str]:
    """The attributes that this modality has."""
    said = {
        "sex": elements.text("PatientSex"),
        "age": elements.text("PatientAge"),
        "birth_date": elements.text("PatientBirthDate"),
        "study_date": _study_date(elements),
        "manufacturer": elements.text("Manufacturer"),
        "model": elements.text("ManufacturerModelName"),
        "body_part": elements.text("BodyPartExamined"),
    }
    if modality == "MR":
        said |= {
            "field_strength": _number(elements.number("MagneticFieldStrength")),
            "contrast": _contrast(elements),
            "weighting": _weighting(elements),
        }
    elif modality == "CT":
        said |= {"kvp": _number(elements.number("KVP")), "contrast": _contrast(elements)}
    elif modality != "PT":
        said |= {
            "kvp": _number(elements.number("KVP")),
            "view": _view(elements),
            "laterality": elements.text("ImageLaterality") or elements.text("Laterality"),
            "intent": elements.text("PresentationIntentType")
            or name_of(sop_class, "").rpartition(" - ")[2],
        }
    return attributes(**said)


def _view(elements: Elements) -> str:
    for code in elements.items("ViewCodeSequence"):
        if word := view_of_code(code.text("CodeValue")):
            return word
    return elements.text("ViewPosition")


def _contrast(elements: Elements) -> str:
    if "ContrastBolusAgentSequence" in elements or elements.text("ContrastBolusAgent"):
        return "yes"
    return "no" if "ContrastBolusAgent" in elements else ""


def _weighting(elements: Elements) -> str:
    timing, echo, modifier = elements, elements, elements
    shared = elements.items("SharedFunctionalGroupsSequence")
    if shared:
        timing = next(iter(shared[0].items("MRTimingAndRelatedParametersSequence")), elements)
        echo = next(iter(shared[0].items("MREchoSequence")), elements)
        modifier = next(iter(shared[0].items("MRModifierSequence")), elements)
    return weighting_of(
        description=" ".join(elements.text(name) for name in ("SeriesDescription", "ProtocolName")),
        image_type=(*elements.words("ImageType"), *elements.words("AcquisitionContrast")),
        sequence=(*elements.words("ScanningSequence"), *elements.words("SequenceVariant")),
        repetition_time=timing.number("RepetitionTime"),
        echo_time=echo.number("EchoTime") or echo.number("EffectiveEchoTime"),
        inversion_time=modifier.number("InversionTime") or modifier.number("InversionTimes"),
    )


def _study_date(elements: Elements) -> str:
    dates = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
    return next((text for name in dates if (text := elements.text(name))), "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
