"""Phantom hospitals that differ in one thing alone."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from client_app.imaging import phantoms
from client_app.imaging.cohort import build_cohort
from client_app.site import Data
from federation import tasks
from federation.schema import Component, ConfigError
from tests.client_app.imaging.samples import KEY

PATIENTS = 24


def made(
    how: str, out: Path, *, task: str = "chest_xray", alpha: float = phantoms.ALPHA
) -> list[Data]:
    folders = [out / how / name for name in ("north", "east", "west")]
    return phantoms.write_skewed(how, task, folders, patients=PATIENTS, alpha=alpha)


def labels(data: Data) -> dict[str, str]:
    assert data.labels is not None
    with data.labels.open(newline="") as file:
        return {row["patient"]: row["label"] for row in csv.DictReader(file)}


def scanners(data: Data) -> set[str]:
    images = sorted(data.root.rglob("*.dcm"))
    return {pydicom.dcmread(path, stop_before_pixels=True).Manufacturer for path in images}


@pytest.mark.parametrize("how", phantoms.SKEWS)
def test_each_hospital_has_the_images_its_table_speaks_of(how: str, tmp_path: Path) -> None:
    task = tasks.build(Component(name="chest_xray", size=32))
    patients: list[str] = []
    for number, data in enumerate(made(how, tmp_path)):
        cohort = build_cohort(data, task, state=tmp_path / f"{number}", key=KEY, held_out=0.25)
        assert not cohort.left_out
        cases = (*cohort.training, *cohort.held_out)
        assert len({case.patient for case in cases}) == len(labels(data))
        assert len(set(labels(data).values())) == 2
        patients += [
            f"{number}/{n}" if how.endswith(("labels", "update")) else n for n in labels(data)
        ]
    assert len(patients) == len(set(patients)) == 3 * PATIENTS
    assert sorted(path.name for path in (tmp_path / how).iterdir()) == ["east", "north", "west"]


def test_labels_are_skewed_and_nothing_else(tmp_path: Path) -> None:
    hospitals = made("label_skew", tmp_path, alpha=0.1)
    ill = [Counter(labels(data).values()) for data in hospitals]
    shares = [mix["pneumonia"] / mix.total() for mix in ill]
    assert max(shares) - min(shares) > 0.2
    assert all(min(mix.values()) >= 6 for mix in ill)
    assert {scanner for data in hospitals for scanner in scanners(data)} == {"SIEMENS"}


def test_scanners_differ_and_nothing_else(tmp_path: Path) -> None:
    hospitals = made("scanner_skew", tmp_path)
    assert [len(scanners(data)) for data in hospitals] == [1, 1, 1]
    assert len({scanner for data in hospitals for scanner in scanners(data)}) == 3
    for data in hospitals:
        assert Counter(labels(data).values()) == {"normal": 14, "pneumonia": 10}


def test_sizes_differ_and_nothing_else(tmp_path: Path) -> None:
    hospitals = made("size_skew", tmp_path)
    assert [len(labels(data)) for data in hospitals] == [52, 15, 5]  # of 72, as 10 : 3 : 1
    mixes = [Counter(labels(data).values()) for data in hospitals]
    share = sum(mix["pneumonia"] for mix in mixes) / 72
    assert all(abs(mix["pneumonia"] - share * mix.total()) < 1 for mix in mixes)


@pytest.mark.parametrize(("how", "wrong"), [("noisy_labels", 10), ("poisoned_update", 24)])
def test_the_last_hospitals_labels_are_wrong(how: str, wrong: int, tmp_path: Path) -> None:
    hospitals = made(how, tmp_path)
    for number, data in enumerate(hospitals):
        true = phantoms.write(
            "chest_xray", tmp_path / f"true-{number}", patients=PATIENTS, site=0, seed=number
        )
        told, drawn = labels(data), labels(true)
        assert told.keys() == drawn.keys()
        differing = sum(told[name] != drawn[name] for name in told)
        assert differing == (wrong if number == 2 else 0)


def test_breasts_are_dealt_with_their_patient(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    hospitals = phantoms.write_skewed("label_skew", "mammography", folders, patients=6, alpha=0.3)
    seen = [set(labels(data)) for data in hospitals]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 12
    for data, own in zip(hospitals, seen, strict=True):
        folders_of = {f"P{name.rpartition('-')[2]}" for name in own}
        assert {path.name for path in data.root.iterdir()} == folders_of


def test_what_cannot_be_dealt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="masks and no classes"):
        made("label_skew", tmp_path, task="hippocampus")
    with pytest.raises(ConfigError, match="did you mean 'label_skew'"):
        made("label_skews", tmp_path)
    with pytest.raises(ConfigError, match="no phantoms"):
        made("label_skew", tmp_path, task="skew")
