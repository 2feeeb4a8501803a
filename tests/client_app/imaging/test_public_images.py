"""Public images dealt to hospitals: everyone once, as the experiment says, and readable there."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from client_app.imaging import phantoms, public_images
from client_app.imaging.cohort import build_cohort
from client_app.imaging.public_images import Dealt, deal
from federation import tasks
from federation.schema import Component, ConfigError

KEY = bytes(range(32))
SPACINGS = ("0.168", "0.171", "0.143", "0.194")


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 patients, every fourth with two images, of which one may be ill."""
    source = tmp_path_factory.mktemp("cxr")
    (source / "images_256").mkdir()
    rng, rows = np.random.default_rng(0), []
    for patient in range(80):
        for image in range(1 + (patient % 4 == 0)):
            name = f"{patient:08d}_{image:03d}.png"
            imsave(source / "images_256" / name, rng.random((16, 16)), cmap="gray")
            ill = int(patient % 5 < 2 and image == 0)
            rows.append(
                (name, patient, "FM"[patient % 2], 30 + patient % 50, "PA", ill,
                 SPACINGS[patient % 4])
            )  # fmt: skip
    with (source / "metadata.csv").open("w", newline="") as file:
        header = ("image", "patient", "sex", "age", "view", "pneumonia", "detector_proxy")
        csv.writer(file).writerows([header, *rows])
    return source


def folders(out: Path, count: int = 3) -> list[Path]:
    return [out / str(number) for number in range(count)]


def truth(source: Path) -> dict[str, str]:
    rows = public_images.read_rows(source / "metadata.csv")
    return {public_images.study(row): public_images.WORDS[int(row["pneumonia"])] for row in rows}


def said(dealt: Dealt) -> dict[str, str]:
    assert dealt.data.labels is not None
    return {row["study"]: row["label"] for row in public_images.read_rows(dealt.data.labels)}


@pytest.mark.parametrize("how", ["demo", *phantoms.SKEWS])
def test_every_image_is_at_one_hospital_and_patients_are_whole(
    how: str, radiographs: Path, tmp_path: Path
) -> None:
    dealt = deal(radiographs, "chest_xray", how, folders(tmp_path), alpha=0.3)
    assert sum(one.patients for one in dealt) == 80
    studies = [study for one in dealt for study in said(one)]
    assert sorted(studies) == sorted(truth(radiographs))
    right = truth(radiographs)
    wrong = [sum(right[s] != word for s, word in said(one).items()) for one in dealt]
    share = {"noisy_labels": 0.4, "poisoned_update": 1.0}.get(how, 0.0)
    assert wrong == [0, 0, round(share * dealt[2].images)]
    for one in dealt:
        assert one.labels == Counter(said(one).values())


def test_each_skew_is_the_one_it_says(radiographs: Path, tmp_path: Path) -> None:
    def images(how: str) -> list[Dealt]:
        return deal(radiographs, "chest_xray", how, folders(tmp_path / how), alpha=0.1)

    assert [one.patients for one in images("size_skew")] == [57, 17, 6]
    ill = {how: [one.labels["pneumonia"] for one in images(how)] for how in ("demo", "label_skew")}
    assert sum(ill["demo"]) == sum(ill["label_skew"]) == 32
    assert max(ill["demo"]) - min(ill["demo"]) <= 1
    assert max(ill["label_skew"]) - min(ill["label_skew"]) > 5
    of_study = {
        public_images.study(row): public_images.detector(row)
        for row in public_images.read_rows(radiographs / "metadata.csv")
    }
    most = [
        Counter(of_study[s] for s in said(one)).most_common(1)[0] for one in images("scanner_skew")
    ]
    assert {name for name, _ in most} == {"d0168", "d0171", "other"}


def test_a_hospital_reads_what_it_was_dealt(radiographs: Path, tmp_path: Path) -> None:
    task = tasks.build(Component(name="chest_xray"))
    for number, one in enumerate(deal(radiographs, "chest_xray", "demo", folders(tmp_path))):
        cohort = build_cohort(
            one.data, task, state=tmp_path / f"state-{number}", key=KEY, held_out=0.25
        )
        assert not cohort.left_out
        cases = (*cohort.training, *cohort.held_out)
        assert len(cases) == one.images
        assert len({case.patient for case in cases}) == one.patients
        assert {case.attributes["sex"] for case in cases} == {"female", "male"}


def test_hippocampi_are_dealt_by_the_scale_of_their_intensities(tmp_path: Path) -> None:
    source = tmp_path / "source"
    phantoms.write("hippocampus", source, patients=12, site=0, seed=0)
    rows = public_images.read_rows(source / "patients.csv")
    people = sorted({row["patient"] for row in rows})
    group = {name: "ABC"[place % 3] for place, name in enumerate(people)}
    with (source / "cases.csv").open("w", newline="") as file:
        lines = [
            (row["file"].removesuffix(".nii.gz"), row["patient"], group[row["patient"]])
            for row in rows
        ]
        csv.writer(file).writerows([("case", "pseudo_patient", "intensity_group"), *lines])
    dealt = deal(source, "hippocampus", "hippocampus", folders(tmp_path))
    task = tasks.build(Component(name="hippocampus"))
    for number, one in enumerate(dealt):
        cohort = build_cohort(one.data, task, state=tmp_path / f"s{number}", key=KEY, held_out=0.25)
        assert not cohort.left_out
        assert len(cohort.training) + len(cohort.held_out) == one.images
        assert one.data.patients is not None
        own = {group[row["patient"]] for row in public_images.read_rows(one.data.patients)}
        assert len(own) == 1
    assert sum(one.images for one in dealt) == len(rows)
    with pytest.raises(ConfigError, match="no classes for label_skew"):
        deal(source, "hippocampus", "label_skew", folders(tmp_path / "no"))


def test_what_cannot_be_dealt_is_refused(radiographs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task=chest_xray, and the experiment's is mammography"):
        deal(radiographs, "mammography", "demo", folders(tmp_path))
    with pytest.raises(ConfigError, match=r"neither metadata\.csv nor cases\.csv"):
        deal(tmp_path, "chest_xray", "demo", folders(tmp_path))
    with pytest.raises(ConfigError, match="4 hospitals"):
        deal(radiographs, "chest_xray", "scanner_skew", folders(tmp_path, 4))
