"""Which file is whose, and which mask lies on which image, in the four ways to keep NIfTI and DICOM."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest

from client_app.imaging.header import Kind
from client_app.imaging.layouts import Layout, detect, open_layout
from client_app.imaging.set_aside import Reason, Unfit
from client_app.site import Data
from federation.schema import ConfigError
from tests.client_app.imaging.samples import radiograph, volume


def refused(layout: Layout, path: str) -> Reason:
    with pytest.raises(Unfit) as unfit:
        layout.belonging(PurePosixPath(path))
    return unfit.value.reason


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    root = tmp_path / "bids"
    volume(root / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    volume(root / "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz")
    volume(root / "sub-02/anat/sub-02_T1w.nii.gz")
    volume(root / "derivatives/experts/sub-02/anat/sub-02_space-orig_label-tumour_mask.nii.gz")
    (root / "sub-02/anat/sub-02_T1w.json").write_text(
        json.dumps({"Manufacturer": "Siemens", "MagneticFieldStrength": 3})
    )
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\tdiagnosis\nsub-01\t71\tF\tAD\nsub-02\tn/a\tn/a\tCN\n"
    )
    return root


def test_what_a_root_looks_like(tmp_path: Path, bids: Path) -> None:
    assert detect(bids) == "bids"
    volume(tmp_path / "nifti/images/deep/a.nii.gz")
    assert detect(tmp_path / "nifti") == "nifti"
    radiograph(tmp_path / "tree/images/a.dcm")
    assert detect(tmp_path / "tree") == "dicom", "a folder of that name proves nothing"
    (tmp_path / "tree" / "dataset.json").write_text("{}")
    assert detect(tmp_path / "tree") == "decathlon"


def test_bids(bids: Path) -> None:
    layout = open_layout(Data(root=bids))
    assert layout.tables == (bids / "participants.tsv",)
    t1 = layout.belonging(PurePosixPath("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"))
    assert (t1.kind, t1.patient_id, t1.modality) == (Kind.NIFTI, "sub-01", "MR")
    assert (t1.attributes["sex"], t1.attributes["age_band"]) == ("female", "60-79")
    assert t1.attributes["weighting"] == "t1"
    flair = layout.belonging(PurePosixPath("sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz"))
    assert flair.attributes["weighting"] == "flair"
    other = layout.belonging(PurePosixPath("sub-02/anat/sub-02_T1w.nii.gz"))
    assert (other.attributes["sex"], other.attributes["age_band"]) == ("unknown", "unknown")
    assert (other.attributes["manufacturer"], other.attributes["field_strength"]) == (
        "siemens",
        "3t",
    )


def test_a_bids_mask_lies_on_the_image_whose_name_it_continues(bids: Path) -> None:
    layout = open_layout(Data(root=bids))
    mask = PurePosixPath(
        "derivatives/experts/sub-02/anat/sub-02_space-orig_label-tumour_mask.nii.gz"
    )
    found = layout.belonging(mask)
    assert (found.kind, found.patient_id) == (Kind.MASK, None)
    assert found.image == "sub-02/anat/sub-02_T1w.nii.gz"
    two = "derivatives/experts/sub-01/ses-1/anat/sub-01_ses-1_mask.nii.gz"
    assert refused(layout, two) == Reason.IMAGE_MISSING, "T1w or FLAIR? Never guessed"


def test_bids_refuses_what_names_no_subject(bids: Path) -> None:
    layout = open_layout(Data(root=bids))
    assert refused(layout, "participants.tsv") == Reason.NOT_NIFTI
    assert refused(layout, "sub-01/anat/sub-02_T1w.nii.gz") == Reason.NO_PATIENT
    assert refused(layout, "stray_T1w.nii.gz") == Reason.NO_PATIENT
    derived = "derivatives/fs/sub-01/anat/sub-01_desc-norm_T1w.nii.gz"
    assert refused(layout, derived) == Reason.NOT_SUPPORTED


def test_decathlon(tmp_path: Path) -> None:
    root = tmp_path / "Task04"
    for name in ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b.nii.gz"):
        volume(root / name)
    volume(root / "imagesTs/c.nii.gz")
    content = {
        "modality": {"0": "MRI"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/c.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    layout = open_layout(Data(root=root))
    assert (layout.name, layout.tops) == ("decathlon", ("imagesTr", "labelsTr"))
    image = layout.belonging(PurePosixPath("imagesTr/a.nii.gz"))
    assert (image.kind, image.patient_id, image.modality) == (Kind.NIFTI, "a.nii.gz", "MR")
    mask = layout.belonging(PurePosixPath("labelsTr/a.nii.gz"))
    assert (mask.kind, mask.image) == (Kind.MASK, "imagesTr/a.nii.gz")
    assert refused(layout, "imagesTr/b.nii.gz") == Reason.NOT_FOR_TASK
    assert refused(layout, "imagesTr/._a.nii.gz") == Reason.NOT_NIFTI


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"training": 3}', '{"training": [{}]}', "[" * 100_000]
)
def test_a_listing_that_is_none_is_refused_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ConfigError, match=r"dataset\.json"):
        open_layout(Data(root=tmp_path))


def test_nifti_with_a_table_of_patients(tmp_path: Path) -> None:
    for name in ("images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz"):
        volume(tmp_path / name)
    table = tmp_path / "patients.csv"
    table.write_text("file,patient,sex,age\na.nii.gz,Jane Canary,F,45\n")
    layout = open_layout(Data(root=tmp_path, patients=table))
    assert (layout.name, layout.tops, layout.tables) == ("nifti", ("images", "labels"), (table,))
    person = layout.belonging(PurePosixPath("images/a.nii.gz"))
    assert person.patient_id == "Jane Canary"
    assert "Canary" not in repr(person)
    assert person.attributes["age_band"] == "40-59"
    assert refused(layout, "images/b.nii.gz") == Reason.NO_PATIENT
    assert layout.belonging(PurePosixPath("labels/a.nii.gz")).image == "images/a.nii.gz"
    assert refused(layout, "images/notes.txt") == Reason.NOT_NIFTI


def test_one_file_of_two_patients_is_refused(tmp_path: Path) -> None:
    volume(tmp_path / "images/a.nii.gz")
    table = tmp_path / "patients.csv"
    table.write_text("file,patient\na.nii.gz,Canary\na.nii.gz,Sparrow\n")
    with pytest.raises(ConfigError, match="line 3") as error:
        open_layout(Data(root=tmp_path, patients=table))
    assert "Canary" not in str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        open_layout(Data(root=tmp_path / "absent"))
    with pytest.raises(ConfigError, match="images/"):
        open_layout(Data(root=tmp_path, layout="nifti"))
