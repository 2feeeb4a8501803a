from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pydicom
import pytest
import torch

from client_app.imaging import phantoms
from client_app.imaging.cache import CachedCases
from client_app.imaging.cohort import build_cohort
from client_app.imaging.phantoms import _dicom, chest_xray, hippocampus
from client_app.imaging.set_aside import Reason
from federation import tasks
from federation.schema import Component, ConfigError
from tests.client_app.imaging.samples import KEY

Layout = Literal["dicom", "nifti"]

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "alzheimers": ("dicom", "nifti"),
    "chest_xray": ("dicom",),
    "hippocampus": ("nifti",),
    "mammography": ("dicom",),
    "tumour_segmentation": ("dicom", "nifti"),
}
EVERY = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]
IMAGES = (".dcm", ".nii.gz")
# What some phantoms hold beside the task's images, to be left out.
BESIDE = {Reason.NOT_FOR_TASK, Reason.LOCALISER}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("name", "layout"), EVERY)
@pytest.mark.parametrize("site", [1, 2])
def test_same_arguments_give_the_same_bytes(
    name: str, layout: Layout, site: int, tmp_path: Path
) -> None:
    def made(
        folder: str, *, patients: int = 3, site: int = site, seed: int = 3
    ) -> dict[str, bytes]:
        phantoms.write(
            name, tmp_path / folder, patients=patients, site=site, seed=seed, layout=layout
        )
        return files(tmp_path / folder)

    once = made("once")
    assert made("again") == once
    longer = made("longer", patients=5)
    assert len(longer) > len(once)
    for path, content in once.items():
        if path.endswith(IMAGES):
            assert longer[path] == content
        else:  # tables grow at their end
            assert longer[path].startswith(content)
    images = {content for path, content in once.items() if path.endswith(IMAGES)}
    for other in (made("seed", seed=4), made("site", site=site + 1)):
        assert not images & set(other.values())


@pytest.mark.parametrize(("name", "layout"), EVERY)
@pytest.mark.parametrize("site", [0, 1, 2, 3])
def test_every_phantom_serves_its_task(
    name: str, layout: Layout, site: int, tmp_path: Path
) -> None:
    data = phantoms.write(name, tmp_path / "data", patients=3, site=site, seed=0, layout=layout)
    task = tasks.build(Component(name=name))
    cohort = build_cohort(data, task, state=tmp_path / "state", key=KEY, held_out=0.3)
    # The tables of a BIDS tree are no images.
    beside = BESIDE | ({Reason.NOT_NIFTI} if data.layout == "bids" else set())
    assert set(cohort.left_out) <= beside
    assert cohort.training_patients + cohort.held_out_patients == 3
    cases = cohort.training + cohort.held_out
    assert all(case.attributes["manufacturer"] != "unknown" for case in cases)
    dataset = CachedCases(cases[:1], task.load, tmp_path / "cache", "t")
    usable, set_aside = dataset.prepare()
    assert set_aside == []
    assert len(usable) == 1
    assert all(torch.isfinite(dataset[number]["image"]).all() for number in usable)
    if task.kind == "segmentation":
        assert all(dataset[number]["label"].any() for number in usable)


def test_layouts_are_what_the_tasks_offer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not written as nifti; only as dicom"):
        phantoms.write("mammography", tmp_path, patients=1, site=0, seed=0, layout="nifti")
    assert list(tmp_path.iterdir()) == []
    given = phantoms.write("chest_xray", tmp_path, patients=1, site=0, seed=0, layout="dicom")
    assert given.layout == "dicom"


def test_no_two_hospitals_share_an_identifier(tmp_path: Path) -> None:
    seen: dict[tuple[str, str], tuple[str, int, int]] = {}
    for name, layouts in LAYOUTS.items():
        for site, seed in ((0, 0), (1, 0), (4, 0), (0, 1)):
            if "dicom" not in layouts:
                continue
            out = tmp_path / f"{name}{site}{seed}"
            phantoms.write(name, out, patients=2, site=site, seed=seed)
            for path in out.rglob("*.dcm"):
                dataset = pydicom.dcmread(path, stop_before_pixels=True)
                words = [("instance", dataset.SOPInstanceUID), ("study", dataset.StudyInstanceUID)]
                words.append(("series", dataset.SeriesInstanceUID))
                if "FrameOfReferenceUID" in dataset:
                    words.append(("frame", dataset.FrameOfReferenceUID))
                for word in words:
                    assert seen.setdefault(word, (name, site, seed)) == (name, site, seed)
                assert f"{site:02d}-" in dataset.PatientID
                assert str(dataset.PatientName) == f"Phantom^{dataset.PatientID}"
    assert len(seen) > 500


def test_records_have_gaps_as_archives_do() -> None:
    people = [
        _dicom.draw_person(np.random.default_rng(i), "P", age=60, spread=10) for i in range(400)
    ]
    sexes = Counter(person.sex for person in people)
    assert set(sexes) == {"F", "M", "O", ""}
    assert 5 <= sexes["O"] + sexes[""] <= 40
    assert 5 <= sum(not person.age_known for person in people) <= 35


def test_unknown_task() -> None:
    with pytest.raises(ConfigError, match="did you mean 'chest_xray'"):
        phantoms.write("chest_xrays", Path("nowhere"), patients=1, site=0, seed=0)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folders = [tmp_path_factory.mktemp(f"site{site}") for site in range(4)]
    for site, folder in enumerate(folders):
        chest_xray.write_phantom(folder, patients=30, site=site, seed=0)
    yield folders


def radiographs(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


def test_radiographs_are_whole_dicom(hospitals: list[Path]) -> None:
    uids = set()
    for folder in hospitals:
        found = radiographs(folder)
        assert 30 <= len(found) <= 90
        for dataset in found:
            pixels = dataset.pixel_array
            assert pixels.shape == (dataset.Rows, dataset.Columns)
            assert 96 <= min(pixels.shape) <= max(pixels.shape) <= 128
            assert pixels.max() < 2**dataset.BitsStored
            assert pixels.std() > 0
            assert dataset.SOPInstanceUID.is_valid
            assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
            assert dataset.PatientID.startswith("PHX")
            uids.add(dataset.SOPInstanceUID)
    assert len(uids) == sum(len(radiographs(folder)) for folder in hospitals)


def test_hospitals_differ(hospitals: list[Path]) -> None:
    found = [radiographs(folder) for folder in hospitals]
    assert len({datasets[0].Manufacturer for datasets in found}) == 4
    assert {datasets[0].Modality for datasets in found} == {"CR", "DX"}
    assert {datasets[0].BitsStored for datasets in found} == {12, 16}
    inverted = [datasets[0].PhotometricInterpretation == "MONOCHROME1" for datasets in found]
    assert sum(inverted) == 1
    ages = [
        np.mean([int(dataset.PatientAge[:3]) for dataset in datasets if dataset.PatientAge])
        for datasets in found
    ]
    assert max(ages) - min(ages) > 10


def test_labels_name_each_patient_once(hospitals: list[Path]) -> None:
    for folder in hospitals:
        with (folder / "labels.csv").open() as table:
            labels = {row["patient"]: row["label"] for row in csv.DictReader(table)}
        assert labels.keys() == {dataset.PatientID for dataset in radiographs(folder)}
        assert set(labels.values()) == {"normal", "pneumonia"}


def test_pneumonia_brightens_a_lung() -> None:
    ill = chest_xray.Subject(female=False, age=50, severity=1.5, side=-1, build=1.0)
    well = chest_xray.Subject(female=False, age=50, severity=0.0, side=-1, build=1.0)
    difference = np.mean(
        [
            chest_xray.render(np.random.default_rng(seed), ill, edge=64)
            - chest_xray.render(np.random.default_rng(seed), well, edge=64)
            for seed in range(30)
        ],
        axis=0,
    )
    assert difference[:, :32].mean() > 10 * abs(difference[:, 32:].mean())


def test_hippocampus_has_two_parts_front_and_back() -> None:
    for seed in range(10):
        tissue, mask = hippocampus.render(np.random.default_rng(seed), (32, 40, 32))
        assert tissue.shape == mask.shape == (32, 40, 32)
        front, back = (np.argwhere(mask == part) for part in (1, 2))
        assert 500 < len(front) < 4000
        assert 500 < len(back) < 4000
        assert front[:, 1].mean() > back[:, 1].mean() + 8, "the second axis runs to the front"
        border = np.ones(mask.shape, dtype=bool)
        border[1:-1, 1:-1, 1:-1] = False
        assert mask[border].sum() == 0, "nothing is cut off"


def test_volumes_differ_in_scale_and_share_patients(tmp_path: Path) -> None:
    brightest = []
    for site in range(3):
        data = hippocampus.write_phantom(tmp_path / str(site), patients=12, site=site, seed=0)
        assert data.patients is not None
        with data.patients.open() as table:
            rows = list(csv.DictReader(table))
        assert len({row["patient"] for row in rows}) == 12 < len(rows)
        image = nibabel.load(data.root / "images" / rows[0]["file"])
        assert image.header.get_zooms() == (1.0, 1.0, 1.0)
        brightest.append(float(image.get_fdata().max()))
    assert brightest[0] <= 255 < brightest[1] < 10_000 < brightest[2]
