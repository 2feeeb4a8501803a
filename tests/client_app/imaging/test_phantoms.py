from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch

from client_app.imaging import phantoms
from client_app.imaging.cache import CachedCases
from client_app.imaging.cohort import build_cohort
from client_app.imaging.phantoms import chest_xray, hippocampus
from federation import tasks
from federation.schema import Component, ConfigError
from tests.client_app.imaging.samples import KEY

NAMES = ("chest_xray", "hippocampus")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", NAMES)
def test_same_arguments_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    def made(folder: str, *, patients: int = 4, site: int = 1, seed: int = 3) -> dict[str, bytes]:
        phantoms.write(name, tmp_path / folder, patients=patients, site=site, seed=seed)
        return files(tmp_path / folder)

    once = made("once")
    assert made("again") == once
    longer = made("longer", patients=6)
    for path, content in once.items():
        if not path.endswith(".csv"):
            assert longer[path] == content
    images = {path for path in once if not path.endswith(".csv")}
    for other in (made("seed", seed=4), made("site", site=2)):
        assert not images & {path for path, content in other.items() if once.get(path) == content}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("site", [0, 1, 2, 3, 6])
def test_every_phantom_serves_its_task(name: str, site: int, tmp_path: Path) -> None:
    data = phantoms.write(name, tmp_path / "data", patients=5, site=site, seed=0)
    task = tasks.build(Component(name=name))
    cohort = build_cohort(data, task, state=tmp_path / "state", key=KEY, held_out=0.3)
    assert cohort.set_aside == ()
    assert cohort.training_patients + cohort.held_out_patients == 5
    cases = cohort.training + cohort.held_out
    dataset = CachedCases(cases, task.load, tmp_path / "cache", "t")
    usable, set_aside = dataset.prepare()
    assert set_aside == []
    assert len(usable) == len(cases)
    assert all(torch.isfinite(dataset[number]["image"]).all() for number in usable)
    assert all(case.attributes["manufacturer"] != "unknown" for case in cases)


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
