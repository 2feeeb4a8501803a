from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app.imaging.cohort import Cohort, build_cohort, split_position
from client_app.imaging.image import Mask
from client_app.imaging.pseudonym import pseudonym
from client_app.imaging.set_aside import Reason
from client_app.site import Data
from federation.schema import ConfigError
from tests.client_app.imaging.samples import KEY, OTHER_KEY, radiograph, task, volume


class Radiographs:
    """A hospital with two images of each patient and a label for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels: dict[str, str] = {}

    def add(self, *patients: str, label: str = "normal") -> None:
        for patient in patients:
            for number in range(2):
                radiograph(self.folder / "root" / f"{len(self.labels)}_{number}.dcm", patient)
            self.labels[patient] = label

    def cohort(self, *, held_out: float = 0.3, key: bytes = KEY) -> Cohort:
        table = self.folder / "labels.csv"
        rows = [f"{patient},{label}" for patient, label in self.labels.items()]
        table.write_text("\n".join(["patient,label", *rows]))
        data = Data(root=self.folder / "root", layout="dicom", labels=table)
        return build_cohort(
            data, task("classification"), state=self.folder / "state", key=key, held_out=held_out
        )

    def reasons(self) -> list[tuple[str, Reason]]:
        return [(item.path.name, item.reason) for item in self.cohort().set_aside]

    def counts(self) -> dict[Reason, int]:
        return counts(self.cohort())


def counts(cohort: Cohort) -> dict[Reason, int]:
    return {reason: left.count for reason, left in cohort.left_out.items()}


@pytest.fixture
def hospital(tmp_path: Path) -> Radiographs:
    return Radiographs(tmp_path)


def test_split_is_by_patient_and_stays_when_patients_are_added(hospital: Radiographs) -> None:
    hospital.add(*(f"P{number}" for number in range(20)))
    before = hospital.cohort()
    training = {case.patient for case in before.training}
    held_out = {case.patient for case in before.held_out}
    assert training
    assert held_out
    assert not training & held_out
    assert (before.training_patients, before.held_out_patients) == (len(training), len(held_out))
    assert len(before.training) + len(before.held_out) == 40
    assert training | held_out == {pseudonym(KEY, patient) for patient in hospital.labels}

    hospital.add(*(f"Q{number}" for number in range(15)))
    after = hospital.cohort()
    assert training <= {case.patient for case in after.training}
    assert held_out <= {case.patient for case in after.held_out}
    assert len(after.training) + len(after.held_out) == 70


def test_order_is_the_same_each_time(hospital: Radiographs) -> None:
    hospital.add("A", "B", "C", "D")
    once = hospital.cohort()
    shutil.rmtree(hospital.folder / "state")
    assert hospital.cohort() == once
    order = [(case.patient, case.image.files[0]) for case in once.training]
    assert order == sorted(order)


def test_nothing_held_out(hospital: Radiographs) -> None:
    hospital.add("A", "B", "C")
    assert hospital.cohort(held_out=0).held_out == ()
    assert hospital.cohort(held_out=0).training_patients == 3


@given(st.lists(st.text(min_size=1), unique=True, max_size=20), st.floats(0, 0.99), st.floats(0, 1))
def test_larger_share_holds_out_a_superset(names: list[str], share: float, more: float) -> None:
    positions = [split_position(KEY, name) for name in names]
    assert all(0 <= position < 1 for position in positions)
    assert {p for p in positions if p < share} <= {p for p in positions if p < max(share, more)}


def test_split_is_even_and_depends_on_the_key() -> None:
    draw = random.Random(0)
    names = [f"{draw.getrandbits(128):032x}" for _ in range(2000)]
    ours = [split_position(KEY, name) < 0.25 for name in names]
    theirs = [split_position(OTHER_KEY, name) < 0.25 for name in names]
    assert 0.21 < sum(ours) / len(names) < 0.29  # 4 standard deviations
    both = sum(a and b for a, b in zip(ours, theirs, strict=True)) / len(names)
    assert 0.04 < both < 0.09, "independent: 0.0625"


def test_labels_by_name_or_index(hospital: Radiographs) -> None:
    hospital.add("A", label="Pneumonia")
    hospital.add("B", label="1")
    hospital.add("C", label="normal")
    hospital.add("D", label="0")
    cohort = hospital.cohort()
    labels = {case.patient: case.label for case in cohort.training + cohort.held_out}
    assert labels == {pseudonym(KEY, name): int(name in "AB") for name in "ABCD"}


def test_images_without_a_usable_label_are_set_aside(hospital: Radiographs) -> None:
    hospital.add("A", label="2")
    hospital.add("B", label="")
    hospital.add("C", label="normal")
    hospital.labels["C  "] = "pneumonia"  # the same patient, padded
    radiograph(hospital.folder / "root" / "9.dcm", "nobody's label")
    assert hospital.reasons() == [
        ("0_0.dcm", Reason.LABEL_UNKNOWN),
        ("0_1.dcm", Reason.LABEL_UNKNOWN),
        ("1_0.dcm", Reason.LABEL_MISSING),
        ("1_1.dcm", Reason.LABEL_MISSING),
        ("2_0.dcm", Reason.LABEL_CONFLICT),
        ("2_1.dcm", Reason.LABEL_CONFLICT),
        ("9.dcm", Reason.LABEL_MISSING),
    ]
    assert hospital.counts() == {
        Reason.LABEL_MISSING: 3,
        Reason.LABEL_UNKNOWN: 2,
        Reason.LABEL_CONFLICT: 2,
    }


def test_copy_of_an_image_counts_once(hospital: Radiographs) -> None:
    hospital.add("A")
    root = hospital.folder / "root"
    shutil.copy(root / "0_0.dcm", root / "z.dcm")
    assert hospital.reasons() == []
    left = hospital.cohort().unread[Reason.DUPLICATE]
    assert (left.count, left.example.path.name) == (1, "z.dcm")
    assert len(hospital.cohort(held_out=0).training) == 2


def test_classification_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels is missing"):
        build_cohort(
            Data(root=tmp_path, layout="dicom"),
            task("classification"),
            state=tmp_path / "state",
            key=KEY,
            held_out=0.2,
        )


def test_radiographs_serve_no_volume_task(tmp_path: Path) -> None:
    radiograph(tmp_path / "root/1.dcm")
    cohort = segmentation(Data(root=tmp_path / "root", layout="dicom"), tmp_path)
    assert [item.reason for item in cohort.set_aside] == [Reason.WRONG_DIMENSIONS]


def segmentation(data: Data, folder: Path) -> Cohort:
    return build_cohort(data, task("segmentation"), state=folder / "state", key=KEY, held_out=0.0)


def test_pairs_of_image_and_mask(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("good", "deep/good", "alone", "shape", "moved", "rounded", "flat"):
        volume(root / f"images/{name}.nii.gz", (4, 5) if name == "flat" else (4, 5, 6))
    volume(root / "labels/good.nii.gz")
    volume(root / "labels/deep/good.nii.gz")
    volume(root / "labels/shape.nii.gz", (4, 5, 7))
    volume(root / "labels/moved.nii.gz", shift=0.5)
    volume(root / "labels/rounded.nii.gz", shift=1e-5)
    volume(root / "labels/orphan.nii.gz")
    volume(root / "labels/flat.nii.gz", (4, 5))
    cohort = segmentation(Data(root=root, layout="nifti"), tmp_path)
    pairs = {}
    for case in cohort.training:
        assert isinstance(case.label, Mask)
        image = case.image.files[0].relative_to(root / "images")
        pairs[str(image)] = str(case.label.file.relative_to(root / "labels"))
    assert pairs == {name: name for name in ("good.nii.gz", "deep/good.nii.gz", "rounded.nii.gz")}
    assert {str(item.path.relative_to(root)): item.reason for item in cohort.set_aside} == {
        "images/alone.nii.gz": Reason.MASK_MISSING,
        "images/shape.nii.gz": Reason.GEOMETRY_DIFFERS,
        "images/moved.nii.gz": Reason.GEOMETRY_DIFFERS,
        "images/flat.nii.gz": Reason.WRONG_DIMENSIONS,
        "labels/orphan.nii.gz": Reason.IMAGE_MISSING,
    }


def test_unpaired_hippocampi(shared_data: Path, tmp_path: Path) -> None:
    data = Data(root=shared_data / "hippocampus_unpaired", layout="nifti")
    cohort = segmentation(data, tmp_path)
    assert cohort.training == ()
    assert counts(cohort) == {Reason.IMAGE_MISSING: 2, Reason.MASK_MISSING: 1}


def test_real_hippocampi(shared_data: Path, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    source = (shared_data / "hippocampus/cases.csv").read_text().splitlines()[1:]
    rows = [f"{line.split(',')[0]}.nii.gz,{line.split(',')[1]}" for line in source]
    table.write_text("\n".join(["file,patient", *rows]))
    data = Data(root=shared_data / "hippocampus", layout="nifti", patients=table)
    cohort = segmentation(data, tmp_path)
    assert len(cohort.training) == len(rows) == 123
    assert cohort.training_patients == len({row.split(",")[1] for row in rows})
    assert cohort.left_out == {}
