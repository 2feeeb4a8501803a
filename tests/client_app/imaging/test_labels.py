"""The table of labels: units, words, contradictions, and what it may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client_app.imaging.header import Kind
from client_app.imaging.image import Image, Mask
from client_app.imaging.labels import Labels, find_labels
from client_app.imaging.pseudonym import keyed_hash, pseudonym
from client_app.imaging.set_aside import Reason, Unfit
from client_app.site import Data
from federation.schema import ConfigError
from tests.client_app.imaging.samples import KEY, task


def image(root: Path, patient: str = "P1", **elements: Any) -> Image:
    for unit in ("study", "series"):
        if unit in elements:
            elements[unit] = keyed_hash(KEY, unit, elements[unit])[:16].hex()
    name = elements.pop("file", "a.dcm")
    return Image(Kind.RADIOGRAPH, pseudonym(KEY, patient), (root / name,), (8, 8), **elements)


def table(
    folder: Path, text: str, kind: Any = "classification", *, bids: bool = False, **options: Any
) -> Labels:
    (folder / "labels.csv").write_text(text)
    fields = options.pop("fields", {})
    data = Data(root=folder, labels=folder / "labels.csv", **options)
    labels = find_labels(data, task(kind, **fields), KEY, bids=bids)
    assert labels is not None
    return labels


def reason(labels: Labels, of: Image) -> Reason:
    with pytest.raises(Unfit) as unfit:
        labels.of(of)
    return unfit.value.reason


def test_the_most_specific_row_wins(tmp_path: Path) -> None:
    labels = table(
        tmp_path,
        "patient,study,series,file,label\n"
        "P1,,,,normal\nP1,1.2,,,pneumonia\n,,1.2.3,,normal\n,,,deep/x.dcm,pneumonia\n",
    )
    assert labels.of(image(tmp_path)) == 0
    assert labels.of(image(tmp_path, study="1.2")) == 1
    assert labels.of(image(tmp_path, study="1.2", series="1.2.3")) == 0
    assert labels.of(image(tmp_path, series="1.2.3", file="deep/x.dcm")) == 1
    assert reason(labels, image(tmp_path, "P2")) == Reason.LABEL_MISSING


def test_two_breasts_of_one_patient(tmp_path: Path) -> None:
    labels = table(
        tmp_path,
        "patient,laterality,label\nP1,L,pneumonia\nP1,right,normal\nP2,,normal\n",
        fields={"label_by": ("laterality",)},
    )
    left, right, unsaid = (
        image(tmp_path, attributes={"laterality": side}) for side in ("left", "right", "unknown")
    )
    assert (labels.of(left), labels.of(right)) == (1, 0)
    assert reason(labels, unsaid) == Reason.LABEL_MISSING, "which breast? Never guessed"
    assert labels.of(image(tmp_path, "P2", attributes={"laterality": "left"})) == 0


def test_a_side_that_means_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 2.*laterality") as error:
        table(
            tmp_path,
            "patient,laterality,label\nCanary,upper,1\n",
            fields={"label_by": ("laterality",)},
        )
    assert "Canary" not in str(error.value)


def test_words_of_the_task_and_of_the_site(tmp_path: Path) -> None:
    labels = table(
        tmp_path,
        "patient,label\nP1,Lungenentzündung\nP2,PNEU\nP3,what\n",
        label_names={"lungenentzündung": "pneumonia"},
        fields={"synonyms": {"pneu": "pneumonia"}},
    )
    assert [labels.of(image(tmp_path, name)) for name in ("P1", "P2")] == [1, 1]
    assert reason(labels, image(tmp_path, "P3")) == Reason.LABEL_UNKNOWN
    with pytest.raises(ConfigError, match="did you mean 'pneumonia'"):
        table(tmp_path, "patient,label\nP1,x\n", label_names={"x": "pneumona"})


def test_another_column(tmp_path: Path) -> None:
    labels = table(tmp_path, "Patient;Diagnosis\nP1;normal\n", label_column="Diagnosis")
    assert labels.of(image(tmp_path)) == 0
    with pytest.raises(ConfigError, match=r"no column 'finding'.*label_column"):
        table(tmp_path, "patient,label\nP1,0\n", label_column="finding")


def test_columns_that_speak_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patient, study, series, file"):
        table(tmp_path, "name,label\nCanary,0\n")


def test_bids_takes_the_diagnosis_from_the_participants(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tdiagnosis\nsub-01\tpneumonia\n")
    data = Data(root=tmp_path)
    labels = find_labels(data, task("classification"), KEY, bids=True)
    assert labels is not None
    assert labels.of(image(tmp_path, "sub-01")) == 1


def test_masks_by_table(tmp_path: Path) -> None:
    labels = table(tmp_path, "series,mask\n1.2.3,drawn/a.nii.gz\n", "segmentation")
    found = labels.of(image(tmp_path, series="1.2.3"))
    assert found == Mask(Kind.MASK, tmp_path / "drawn/a.nii.gz")
    with pytest.raises(ConfigError, match="a segmentation takes masks"):
        table(tmp_path, "series,label\n1.2.3,1\n", "segmentation")


def test_density_of_the_table_goes_with_the_patient(tmp_path: Path) -> None:
    labels = table(tmp_path, "patient,label,breast_density\nP1,0,C\nP2,0,?\n")
    assert labels.extra == {pseudonym(KEY, "P1"): {"breast_density": "c"}}


def test_no_identifier_is_kept(tmp_path: Path) -> None:
    labels = table(tmp_path, "patient,label\nCanary,0\n")
    assert "Canary" not in repr(labels)
