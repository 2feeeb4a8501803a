"""What one DICOM header says, and why a file serves no task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.seg import segread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForProcessing,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from client_app.imaging.dicom import read_header
from client_app.imaging.header import Header, Kind
from client_app.imaging.set_aside import Reason, Unfit
from tests.client_app.imaging.samples import radiograph

PYDICOM = Path(pydicom.__file__).parent / "data"

COLOUR, NOT_AN_IMAGE, NOT_SUPPORTED = Reason.COLOUR, Reason.NOT_AN_IMAGE, Reason.NOT_SUPPORTED
# File or folder of dicom_odd, and the kind or the reason of all that begins so; the longest counts.
EXPECTED: dict[str, Kind | Reason] = {
    "dcm_qa_enh/": Kind.PLANES,
    "dcmqi/paramaps/": Kind.PLANES,
    "dcmqi/segmentations/": Kind.SEGMENTATION,
    "dcmqi/segmentations/23x38x3/image/": Kind.PLANES,
    "dcmqi/segmentations/23x38x3/multiframe/": Kind.PLANES,
    "dcmqi/segmentations/24x38x3/image/": Kind.PLANES,
    "dcmqi/segmentations/24x38x3/multiframe/": Kind.PLANES,
    "dcmqi/segmentations/ct-3slice/": Kind.PLANES,
    "dcmqi/sr-example/rwvm": NOT_AN_IMAGE,
    "dcmqi/sr-example/seg": Kind.SEGMENTATION,
    "dcmqi/sr-example/sr": NOT_AN_IMAGE,
    "highdicom/ct_image": Kind.PLANES,
    "highdicom/dx_image": Kind.RADIOGRAPH,
    "highdicom/seg_image": Kind.SEGMENTATION,
    "highdicom/sm_annotations": NOT_AN_IMAGE,
    "highdicom/sm_image": COLOUR,
    "highdicom/sm_image_grayscale": NOT_SUPPORTED,
    "highdicom/sr_document": NOT_AN_IMAGE,
    "pydicom_data/693_J2KR": Kind.PLANES,
    "pydicom_data/JLSL": NOT_SUPPORTED,
    "pydicom_data/JLSN_RGB": COLOUR,
    "pydicom_data/OBXXXX1A_rle": COLOUR,
    "pydicom_data/SC_": COLOUR,
    "pydicom_data/US1": COLOUR,
    "pydicom_data/emri_small": Reason.NO_GEOMETRY,  # functional groups were taken out
    "pydicom_data/liver": Kind.SEGMENTATION,
    "pydicom_data/parametric_map": NOT_SUPPORTED,
    "rtstruct_rtutils/ct_": Kind.PLANES,
    "rtstruct_rtutils/": Kind.STRUCTURE_SET,
    "torchxrayvision/": Kind.RADIOGRAPH,
}


def test_each_odd_file_is_what_it_is(shared_data: Path) -> None:
    root = shared_data / "dicom_odd"
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    assert len(files) > 80
    used = set()
    for path in files:
        name = str(path.relative_to(root))
        begins = max((start for start in EXPECTED if name.startswith(start)), key=len)
        used.add(begins)
        try:
            found: Kind | Reason = read_header(path).kind
        except Unfit as unfit:
            found = unfit.reason
        assert found == EXPECTED[begins], name
    assert used == set(EXPECTED)


def test_pydicoms_own_files_and_their_beginnings(tmp_path: Path) -> None:
    """Whatever is raised besides Unfit says nothing: the caller keeps its type alone."""
    kinds = set()
    for path in sorted(PYDICOM.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        for length in (len(content), len(content) // 2, 1000, 140):
            part = tmp_path / "part"
            part.write_bytes(content[:length])
            try:
                kinds.add(read_header(part).kind)
            except Unfit as unfit:
                kinds.add(unfit.reason)
            except Exception as error:
                kinds.add(type(error))
    assert {Kind.PLANES, Kind.SEGMENTATION, Reason.TRUNCATED, Reason.NOT_DICOM} <= kinds
    assert not {MemoryError, RecursionError} & kinds


def of(path: Path) -> Header:
    return read_header(path)


def why(path: Path) -> Unfit:
    with pytest.raises(Unfit) as caught:
        read_header(path)
    return caught.value


def test_radiograph(tmp_path: Path) -> None:
    elements = {
        "PatientSex": "F",
        "PatientAge": "045Y",
        "Manufacturer": "SIEMENS",
        "ViewPosition": "PA",
        "ImageLaterality": "L",
        "KVP": "120",
        "ImagerPixelSpacing": [0.14, 0.15],
        "SeriesInstanceUID": "1.2.3",
    }
    written = radiograph(tmp_path / "x", **elements)
    header = of(tmp_path / "x")
    assert (header.kind, header.shape, header.modality) == (Kind.RADIOGRAPH, (8, 8), "DX")
    assert (header.patient_id, header.instance_uid) == ("P1", written.SOPInstanceUID)
    assert header.series_uid == "1.2.3"
    assert header.pixel_spacing == (0.14, 0.15)
    expected = {"sex": "female", "age_band": "40-59", "manufacturer": "siemens", "view": "pa"}
    expected |= {"laterality": "left", "kvp": "110-129", "intent": "presentation"}
    assert expected.items() <= header.attributes.items()
    assert "Canary" not in repr(header)
    assert "P1" not in repr(header)


def test_mammogram_says_view_in_a_code(tmp_path: Path) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "399368009", "SCT"
    radiograph(
        tmp_path / "x",
        Modality="MG",
        SOPClassUID=DigitalMammographyXRayImageStorageForProcessing,
        ViewCodeSequence=[code],
        ManufacturerModelName="Selenia Dimensions",
        ImageLaterality="R",
    )
    attributes = of(tmp_path / "x").attributes
    assert attributes["view"] == "mlo"
    assert attributes["laterality"] == "right"
    assert attributes["intent"] == "processing"
    assert attributes["model"] == "selenia"


@pytest.mark.parametrize(
    ("elements", "reason", "detail"),
    [
        (
            {"SOPClassUID": BreastTomosynthesisImageStorage, "Modality": "MG"},
            NOT_SUPPORTED,
            "Breast Tomosynthesis Image Storage",
        ),
        (
            {"NumberOfFrames": "4", "PixelData": bytes(512)},
            NOT_SUPPORTED,
            "4 frames, Digital X-Ray Image Storage - For Presentation",
        ),
        (
            {"PhotometricInterpretation": "PALETTE COLOR"},
            COLOUR,
            "1 samples a pixel, Digital X-Ray Image Storage - For Presentation",
        ),
        ({"Rows": None}, Reason.CORRUPT, "its header gives no rows and columns; it may be cut off"),
        ({"Rows": 0}, NOT_AN_IMAGE, "no rows, no columns or no frames"),
        ({"Rows": 9}, Reason.CORRUPT, "128 bytes of pixel data where 144 are needed"),
        ({"PixelData": None}, Reason.TRUNCATED, "it ends before the pixel data"),
        (
            {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"},
            NOT_SUPPORTED,
            "Secondary Capture Image Storage",
        ),
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1"}, NOT_SUPPORTED, "a private or unknown SOP class"),
    ],
)
def test_what_serves_no_task(
    tmp_path: Path, elements: dict[str, Any], reason: Reason, detail: str
) -> None:
    radiograph(tmp_path / "x", **elements)
    unfit = why(tmp_path / "x")
    assert (unfit.reason, unfit.detail) == (reason, detail)


def test_every_cut_of_a_file_is_told(tmp_path: Path) -> None:
    radiograph(tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    for length in range(0, len(content) - 1, 7):
        (tmp_path / "cut").write_bytes(content[:length])
        assert why(tmp_path / "cut").reason in (
            Reason.NOT_DICOM,
            Reason.TRUNCATED,
            Reason.CORRUPT,  # without rows and columns
            Reason.NOT_AN_IMAGE,  # without a SOP class in the data set, from the file meta alone
            Reason.COLOUR,  # before PhotometricInterpretation
        ), length
    (tmp_path / "cut").write_bytes(content[:-50])
    assert why(tmp_path / "cut").detail == "78 of 128 bytes of pixel data"


def compressed(path: Path, syntax: str, frame: bytes) -> None:
    header = radiograph(path)
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = encapsulate([frame])
    header["PixelData"].is_undefined_length = True
    header.save_as(path, enforce_file_format=True)


def test_compression(tmp_path: Path) -> None:
    compressed(tmp_path / "x", RLELossless, bytes(64))
    assert of(tmp_path / "x").kind is Kind.RADIOGRAPH
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[:-20])
    unfit = why(tmp_path / "x")
    assert unfit.reason is Reason.TRUNCATED
    assert unfit.detail == "its compressed pixel data lacks 12 bytes"
    compressed(tmp_path / "x", "1.2.840.10008.1.2.4.100", bytes(64))
    unfit = why(tmp_path / "x")
    assert unfit.reason is Reason.COMPRESSION_UNKNOWN
    assert unfit.detail == "MPEG2 Main Profile / Main Level"


def plane(path: Path, **elements: Any) -> None:
    said = {
        "SOPClassUID": MRImageStorage,
        "Modality": "MR",
        "ImagePositionPatient": [1.0, 2.0, 3.0],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "PixelSpacing": [0.5, 0.7],
        "InstanceNumber": "4",
        "EchoTime": "2.46",
    }
    said |= elements
    radiograph(path, **{name: value for name, value in said.items() if value is not None})


def test_plane(tmp_path: Path) -> None:
    plane(tmp_path / "x", ImageType=["ORIGINAL", "PRIMARY", "P", "Mr Smith"])
    header = of(tmp_path / "x")
    (only,) = header.planes
    assert (header.kind, header.modality, header.shape) == (Kind.PLANES, "MR", (8, 8))
    assert only.position == (1.0, 2.0, 3.0)
    assert only.spacing == (0.5, 0.7)
    assert only.order == (0.0, 0.0, 0.0, 4.0)
    assert {"type=phase", "type=original", "echo=2.46"} < set(only.stack)
    assert "smith" not in repr(header).lower()


@pytest.mark.parametrize(
    "elements",
    [
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": None},
        {"PixelSpacing": None},
        {"PixelSpacing": [0.0, 1.0]},
        {"PixelSpacing": [-1.0, 1.0]},
        {"ImageOrientationPatient": [0.0] * 6},
        {"ImageOrientationPatient": [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]},
        {"ImageOrientationPatient": [1.0, 0.0, 0.0, 0.01, 1.0, 0.0]},
        {"ImagePositionPatient": [1e30, 0.0, 0.0]},
        {"ImagePositionPatient": [1.0, 2.0]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]},
    ],
)
def test_planes_without_a_place(tmp_path: Path, elements: dict[str, Any]) -> None:
    plane(tmp_path / "x", **elements)
    assert why(tmp_path / "x").reason is Reason.NO_GEOMETRY


def test_text_that_is_no_number(tmp_path: Path) -> None:
    plane(tmp_path / "x", ImagePositionPatient=[1.0, 2.0, 3.0])
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content.replace(b"1.0\\2.0\\3.0", b"nan\\2.0\\3.0"))
    assert why(tmp_path / "x").reason is Reason.NO_GEOMETRY
    (tmp_path / "x").write_bytes(content.replace(b"1.0\\2.0\\3.0", b"Bob\\2.0\\3.0"))
    unfit = why(tmp_path / "x")
    assert unfit.reason is Reason.NO_GEOMETRY
    assert "Bob" not in str(unfit)


def test_localiser(tmp_path: Path) -> None:
    plane(
        tmp_path / "x",
        SOPClassUID=CTImageStorage,
        Modality="CT",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    assert why(tmp_path / "x").reason is Reason.LOCALISER


def test_directory() -> None:
    unfit = why(PYDICOM / "test_files/dicomdirtests/DICOMDIR")
    assert unfit.reason is NOT_AN_IMAGE
    assert unfit.detail == "Media Storage Directory Storage"


def test_segmentations_are_highdicoms(shared_data: Path) -> None:
    for name in ("seg_image_ct_binary_overlap", "seg_image_cr_binary"):
        path = shared_data / "dicom_odd/highdicom" / f"{name}.dcm"
        theirs, ours = segread(path), of(path)
        labels = tuple(
            theirs.get_segment_description(n).segment_label for n in theirs.segment_numbers
        )
        assert ours.structures == labels
        series = {uids[1] for uids in theirs.get_source_image_uids()}
        assert set(ours.references) <= series | {
            item.SeriesInstanceUID for item in theirs.ReferencedSeriesSequence
        }
        assert ours.created == theirs.ContentDate + theirs.ContentTime[:6]


def test_segmentation_that_names_images_alone(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "dicom_odd/dcmqi/segmentations/24x38x3/seg/label.seg"
    dataset = pydicom.dcmread(path)
    images = {
        item.ReferencedSOPInstanceUID
        for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    del dataset.ReferencedSeriesSequence
    dataset.save_as(tmp_path / "x")
    assert set(of(tmp_path / "x").references) == images


def test_structure_set(shared_data: Path) -> None:
    root = shared_data / "dicom_odd/rtstruct_rtutils"
    header = of(root / "rt.dcm")
    assert header.structures == ("ROI-1",)
    assert header.created == "20210301131251"
    assert header.references == (pydicom.dcmread(root / "ct_1.dcm").SeriesInstanceUID,)
    assert header.frame_of_reference_uid.startswith("1.2.826.0.1.3680043.8.498.")


def test_enhanced_frames_lie_where_those_of_the_classic_twin_lie(shared_data: Path) -> None:
    root = shared_data / "mr_vendor_series"
    (enhanced,) = map(of, (root / "philips_pcasl_enhanced").iterdir())
    classic = [of(path) for path in (root / "philips_pcasl_classic").iterdir()]
    assert enhanced.patient_id == classic[0].patient_id
    positions = sorted(header.planes[0].position for header in classic)
    np.testing.assert_allclose(sorted(p.position for p in enhanced.planes), positions, atol=1e-9)
    assert [p.number for p in enhanced.planes] == list(range(40))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("siemens_espree_1.5T_t1post", ("siemens", "magnetom-espree", "1.5t", "t1", "yes")),
        ("siemens_trio_mosaic_fmri", ("siemens", "magnetom-trio", "3t", "functional", "unknown")),
        ("ge_mr750_fmri_4d_150files", ("ge", "discovery-mr750", "3t", "functional", "unknown")),
        ("philips_pcasl_classic", ("philips", "ingenia-elition", "3t", "perfusion", "no")),
        ("toshiba_galan_3T_dti_first40", ("canon", "vantage-galan", "3t", "diffusion", "unknown")),
        ("hcrop_Study3", ("unknown", "unknown", "unknown", "unknown", "unknown")),
    ],
)
def test_scanners(folder: str, expected: tuple[str, ...], shared_data: Path) -> None:
    names = ("manufacturer", "model", "field_strength", "weighting", "contrast")
    for path in (shared_data / "mr_vendor_series" / folder).iterdir():
        attributes = of(path).attributes
        assert tuple(attributes[name] for name in names) == expected
