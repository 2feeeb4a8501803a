"""Phantoms are DICOM as the standard has it: dicom-validator finds nothing wrong with any of them.

dicom-validator brings no tables of the standard along; it downloads them. Here they are built from
those that highdicom ships (PS3.3: which modules an IOD has, which attributes of which type a module
has, at every depth), with the conditions and enumerated values that matter to these IODs added by
hand below. What is so not checked: other conditions (types 1C and 2C), other enumerated values, and
the presence of functional groups other than those named in `_GROUPS`.

With CONSILIUM_DICOM_STANDARD naming a folder that dicom-validator has filled
(`validate_iods --standard-path FOLDER`), the tests run against the full tables too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import pydicom
import pytest
from dicom_validator.spec_reader.edition_reader import EditionReader
from dicom_validator.validator.dicom_info import DicomInfo
from dicom_validator.validator.iod_validator import IODValidator
from highdicom import _standard_utils as tables
from pydicom import config
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VM, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    MRImageStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from client_app.imaging import phantoms

STANDARD = "CONSILIUM_DICOM_STANDARD"
Table = dict[str, Any]


def _tag(keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _if(keyword: str, *values: str | int, index: int = 0) -> Table:
    """Mandatory if an attribute has one of the values (its `index`-th value, from 1)."""
    return {"type": "MU", "tag": _tag(keyword), "op": "=", "index": index, "values": list(values)}


def _unless(keyword: str) -> Table:
    return {"type": "MU", "tag": _tag(keyword), "op": "-", "index": 0, "values": []}


_ORIGINAL = _if("ImageType", "ORIGINAL")
_SHOWN = _if("PresentationIntentType", "FOR PRESENTATION")
# Conditions of PS3.3, by module and attribute (of any depth).
_CONDITIONS: dict[tuple[str, str], Table] = {
    # C.7.3.1
    ("general-series", "PatientPosition"): _if(
        "SOPClassUID", CTImageStorage, MRImageStorage, EnhancedMRImageStorage
    ),
    # C.7.6.1
    ("general-image", "PatientOrientation"): _if(
        "Modality", "MG", "DX", "CR"
    ),
    # C.7.6.3
    ("image-pixel", "PlanarConfiguration"): _if("SamplesPerPixel", 3),
    ("image-pixel", "PixelData"): _if("SamplesPerPixel", 1),
    # C.8.3.1
    ("mr-image", "InversionTime"): _if("ScanningSequence", "IR", index=2),
    ("mr-image", "RepetitionTime"): _if("ScanningSequence", "SE", "GR"),
    # C.8.11.3
    ("dx-image", "PatientOrientation"): _SHOWN,
    ("dx-image", "WindowCenter"): _SHOWN,
    ("dx-image", "WindowWidth"): _SHOWN,
    # C.11.2: the one asks for the other
    ("voi-lut", "WindowWidth"): {**_unless("WindowCenter"), "op": "+"},
    # C.8.13.1 and C.8.13.4
    **{
        ("enhanced-mr-image", keyword): _ORIGINAL
        for keyword in (
            "AcquisitionDateTime", "ComplexImageComponent", "AcquisitionContrast",
            "MagneticFieldStrength", "ContentQualification", "KSpaceFiltering",
            "AcquisitionDuration", "ResonantNucleus", "ApplicableSafetyStandardAgency",
            "BurnedInAnnotation", "LossyImageCompression", "PresentationLUTShape",
        )
    },
    **{
        ("mr-pulse-sequence", keyword): _ORIGINAL
        for keyword in (
            "MRAcquisitionType", "PulseSequenceName", "EchoPulseSequence", "MultiPlanarExcitation",
            "PhaseContrast", "TimeOfFlightContrast", "SteadyStatePulseSequence",
            "EchoPlanarPulseSequence", "SaturationRecovery", "SpectrallySelectedSuppression",
            "OversamplingPhase", "ArterialSpinLabelingContrast",
        )
    },
    # C.8.13.5: frames as they were acquired
    **{
        ("enhanced-mr-image-multi-frame-functional-groups", keyword): _ORIGINAL
        for keyword in (
            "RepetitionTime", "FlipAngle", "EchoTrainLength", "RFEchoTrainLength",
            "GradientEchoTrainLength", "EffectiveEchoTime", "InversionRecovery", "FlowCompensation",
            "Spoiling", "T2Preparation", "SpectrallySelectedExcitation", "SpatialPresaturation",
            "PartialFourier", "ParallelAcquisition", "MagnetizationTransfer", "PixelBandwidth",
            "ReceiveCoilName", "ReceiveCoilType", "TransmitCoilName", "NumberOfAverages",
            "FrameAcquisitionDateTime", "FrameReferenceDateTime", "FrameAcquisitionDuration",
        )
    },
}  # fmt: skip

_YES = ("YES", "NO")
_ENUMERATED: dict[str, tuple[str | int, ...]] = {
    "PatientSex": ("M", "F", "O"),
    "PatientPosition": ("HFP", "HFS", "HFDR", "HFDL", "FFDR", "FFDL", "FFP", "FFS"),
    "BitsAllocated": (1, 8, 16),
    "PixelRepresentation": (0, 1),
    "SamplesPerPixel": (1,),
    "PhotometricInterpretation": ("MONOCHROME1", "MONOCHROME2"),
    "PresentationIntentType": ("FOR PRESENTATION", "FOR PROCESSING"),
    "PresentationLUTShape": ("IDENTITY", "INVERSE"),
    "PixelIntensityRelationshipSign": (1, -1),
    "BurnedInAnnotation": _YES,
    "LossyImageCompression": ("00", "01"),
    "ImageLaterality": ("L", "R", "U", "B"),
    "OrganExposed": ("BREAST",),
    "BreastImplantPresent": _YES,
    "PartialView": _YES,
    "ScanningSequence": ("SE", "IR", "GR", "EP", "RM"),
    "SequenceVariant": ("SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"),
    "MRAcquisitionType": ("2D", "3D"),
    "SegmentationType": ("BINARY", "FRACTIONAL", "LABELMAP"),
    "SegmentAlgorithmType": ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"),
    "ROIGenerationAlgorithm": ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"),
    "ContentQualification": ("PRODUCT", "RESEARCH", "SERVICE"),
    "PixelPresentation": ("COLOR", "MONOCHROME", "MIXED", "TRUE_COLOR"),
    "VolumetricProperties": ("VOLUME", "SAMPLED", "DISTORTED", "MIXED"),
    "FrameLaterality": ("R", "L", "U", "B"),
    "MagnetizationTransfer": ("ON_RESONANCE", "OFF_RESONANCE", "NONE"),
    "Spoiling": ("RF", "GRADIENT", "RF_AND_GRADIENT", "NONE"),
    "InPlanePhaseEncodingDirection": ("ROW", "COLUMN", "OTHER"),
}
# Functional groups that every frame must have, PS3.3 tables A.36-2 and A.51-2.
_GROUPS = {
    EnhancedMRImageStorage: (
        "PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence",
        "FrameContentSequence", "FrameAnatomySequence", "MRImageFrameTypeSequence",
        "MRTimingAndRelatedParametersSequence", "MRFOVGeometrySequence", "MREchoSequence",
        "MRModifierSequence", "MRImagingModifierSequence", "MRReceiveCoilSequence",
        "MRTransmitCoilSequence", "MRAveragesSequence", "PixelValueTransformationSequence",
    ),
    SegmentationStorage: (
        "PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence",
        "FrameContentSequence", "SegmentIdentificationSequence", "DerivationImageSequence",
    ),
}  # fmt: skip
_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


def _module(name: str) -> Table:
    """One of highdicom's modules as dicom-validator wants it: attributes by tag, sequences nested."""
    result: Table = {}
    for row in tables.get_module_attribute_map()[name]:
        if tag_for_keyword(row["keyword"]) is None:  # of a repeating group: overlays and curves
            continue
        level = result
        for keyword in row["path"]:
            level = level[_tag(keyword)]["items"]
        keyword = row["keyword"]
        attribute: Table = {"name": keyword, "type": row["type"], "items": {}}
        if row["path"] in ([_SHARED], [_PER_FRAME]):
            attribute["type"] = "3"  # either of them may hold a group: see `_GROUPS`
        if (condition := _CONDITIONS.get((name, keyword))) and row["type"] in ("1C", "2C"):
            attribute["cond"] = condition
        if keyword in _ENUMERATED:
            attribute["enums"] = [{"val": list(_ENUMERATED[keyword])}]
        if keyword == "ImageType":
            attribute["enums"] = [
                {"index": "1", "val": ["ORIGINAL", "DERIVED", "MIXED"]},
                {"index": "2", "val": ["PRIMARY", "SECONDARY"]},
            ]
        level[_tag(keyword)] = attribute
    return _without_empty(result)


def _without_empty(level: Table) -> Table:
    for attribute in level.values():
        if items := attribute.pop("items"):
            attribute["items"] = _without_empty(items)
    return level


@cache
def shipped() -> DicomInfo:
    """The standard's tables from highdicom and pydicom."""
    classes = (
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        DigitalMammographyXRayImageStorageForPresentation,
        DigitalMammographyXRayImageStorageForProcessing,
        MRImageStorage,
        EnhancedMRImageStorage,
        CTImageStorage,
        RTStructureSetStorage,
        SegmentationStorage,
    )
    dictionary = {
        f"({tag >> 16:04X},{tag & 0xFFFF:04X})": {"name": name, "vr": vr, "vm": vm, "prop": retired}
        for tag, (vr, vm, name, retired, _) in DicomDictionary.items()
    }
    iods: dict[str, Table] = {}
    modules: dict[str, Table] = {}
    for sop_class in classes:
        iod = tables.get_sop_class_iod_map()[sop_class]
        parts = tables.get_iod_module_map()[iod]
        for part in parts:
            if part["key"] not in modules:
                modules[part["key"]] = _module(part["key"])
        iods[str(sop_class)] = {
            "title": iod,
            "modules": {part["key"]: {"ref": part["key"], "use": part["usage"]} for part in parts},
            "group_macros": {},
        }
    return DicomInfo(dictionary, iods, modules)


@cache
def downloaded() -> DicomInfo:
    """The full tables, where somebody has put them."""
    reader = EditionReader(os.environ[STANDARD])
    editions = sorted(path.parent.name for path in reader.path.glob("*/json"))
    assert editions, f"{STANDARD} names a folder without an edition of the standard"
    info = reader.load_dicom_info(editions[-1])
    assert info is not None
    return info


class _Quiet:
    """The test reads the result; nothing need be logged."""

    def handle_validation_start(self, result: object) -> None: ...

    def handle_validation_result(self, result: object) -> None: ...


def faults(dataset: Dataset, info: DicomInfo) -> list[str]:
    """What is wrong with a dataset, one line a fault."""
    result = IODValidator(
        dataset, info, error_handler=_Quiet(), log_level=logging.CRITICAL
    ).validate()
    found = [
        f"{module}: {tag} {error.code.name} {(error.context or {}).get('value', '')}"
        for module, errors in result.module_errors.items()
        for tag, error in errors.items()
    ]
    if result.errors and not found:
        found.append(str(result.status))
    return found + list(_multiplicities(dataset)) + list(_missing_groups(dataset))


def _multiplicities(dataset: Dataset) -> Iterator[str]:
    """Values too few or too many, PS3.6 (dicom-validator does not count them)."""
    for element in dataset.iterall():
        if element.VR == "SQ" or element.is_empty or element.tag.is_private:
            continue
        least, _, most = dictionary_VM(element.tag).partition("-")
        most = most or least
        count = element.VM
        if count < int(least) or (most.isdigit() and count > int(most)):
            yield f"{element.keyword}: {count} values"


def _missing_groups(dataset: Dataset) -> Iterator[str]:
    for keyword in _GROUPS.get(dataset.SOPClassUID, ()):
        shared = keyword in dataset[_SHARED].value[0]
        framed = [keyword in frame for frame in dataset[_PER_FRAME].value]
        if any(framed) == shared or any(framed) != all(framed):
            yield f"{keyword}: neither shared nor of each frame, or both"


NAMES = ("alzheimers", "chest_xray", "mammography", "tumour_segmentation")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Dataset]]:
    """For each task, one file of every kind of series of five hospitals."""
    found: dict[str, list[Dataset]] = {}
    for name in NAMES:
        for site in (0, 1, 2, 3, 5):
            folder = tmp_path_factory.mktemp(name)
            phantoms.write(name, folder, patients=4, site=site, seed=1)
            kinds: dict[tuple[str, str], Dataset] = {}
            for path in sorted(folder.rglob("*.dcm")):
                dataset = pydicom.dcmread(path)
                kinds.setdefault(
                    (dataset.SOPClassUID, dataset.get("SeriesDescription", "")), dataset
                )
            found.setdefault(name, []).extend(kinds.values())
    return found


def test_every_kind_of_file_is_there(datasets: dict[str, list[Dataset]]) -> None:
    kinds = {dataset.SOPClassUID for made in datasets.values() for dataset in made}
    assert kinds == set(shipped().iods)


@pytest.mark.parametrize("name", NAMES)
def test_phantoms_conform(name: str, datasets: dict[str, list[Dataset]]) -> None:
    found = {
        f"{dataset.SOPClassUID.name}: {fault}"
        for dataset in datasets[name]
        for fault in faults(dataset, shipped())
    }
    assert sorted(found) == []


@pytest.mark.skipif(
    STANDARD not in os.environ, reason=f"{STANDARD} names no tables of the standard"
)
@pytest.mark.parametrize("name", NAMES)
def test_phantoms_conform_to_the_full_tables(name: str, datasets: dict[str, list[Dataset]]) -> None:
    found = {
        f"{dataset.SOPClassUID.name}: {fault}"
        for dataset in datasets[name]
        for fault in faults(dataset, downloaded())
    }
    assert sorted(found) == []


def _without(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def _with(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


def _without_view_meaning(dataset: Dataset) -> None:
    del dataset.ViewCodeSequence[0].CodeMeaning


def _without_echo(dataset: Dataset) -> None:
    del dataset.SharedFunctionalGroupsSequence[0].MREchoSequence


def _without_contour(dataset: Dataset) -> None:
    del dataset.ROIContourSequence[0].ReferencedROINumber


@pytest.mark.parametrize(
    ("sop_class", "spoil", "said"),
    [
        # type 1 away, type 1 empty, type 2 away, and an empty type 2, which is allowed
        (MRImageStorage, _without("ImagePositionPatient"), "(0020,0032) TagMissing"),
        (CTImageStorage, _with("RescaleSlope", None), "(0028,1053) TagEmpty"),
        (MRImageStorage, _without("PatientBirthDate"), "(0010,0030) TagMissing"),
        (MRImageStorage, _with("PatientBirthDate", ""), ""),
        # a condition that is met, an enumerated value, a representation, an unknown place
        (MRImageStorage, _without("InversionTime"), "(0018,0082) TagMissing"),
        (CTImageStorage, _with("PatientSex", "X"), "(0010,0040) EnumValueNotAllowed"),
        (CTImageStorage, _with("StudyDate", "1.1.2024"), "(0008,0020) InvalidValue"),
        (CTImageStorage, _with("EchoTime", 3), "(0018,0081) TagUnexpected"),
        (CTImageStorage, _with("PixelSpacing", [1]), "PixelSpacing: 1 values"),
        # in sequences
        (DigitalMammographyXRayImageStorageForPresentation, _without_view_meaning, "TagMissing"),
        (EnhancedMRImageStorage, _without_echo, "MREchoSequence: neither"),
        (RTStructureSetStorage, _without_contour, "(3006,0084) TagMissing"),
        (SegmentationStorage, _without("SegmentSequence"), "(0062,0002) TagMissing"),
    ],
)
def test_a_broken_file_is_found(
    sop_class: str,
    spoil: Callable[[Dataset], None],
    said: str,
    datasets: dict[str, list[Dataset]],
) -> None:
    fitting = (
        dataset
        for made in datasets.values()
        for dataset in made
        if dataset.SOPClassUID == sop_class and dataset.get("ScanningSequence") != "SE"
    )
    broken = deepcopy(next(d for d in fitting if d.get("SeriesDescription") != "localizer"))
    with config.disable_value_validation():
        spoil(broken)
    found = faults(broken, shipped())
    assert any(said in fault for fault in found) if said else found == []
