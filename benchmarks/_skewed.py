"""Hospitals that differ, for heterogeneity.py: phantoms with planted skews, real images by scanner."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import chest_xray_auroc
import hippocampus_dice

from client_app.imaging import phantoms, public_images
from client_app.imaging.cache import CachedCases
from client_app.imaging.cohort import build_cohort
from client_app.imaging.image import Case
from client_app.site import Data
from client_app.training.feed import Items
from federation.schema import Experiment, Fairness
from federation.tasks import Task

KEY = chest_xray_auroc.KEY  # of the hospitals' pseudonyms: the split is the same in each run
HOSPITALS = 3


@dataclass(frozen=True)
class Hospital:
    """Attributes:
    groups: by image file what stands for its manufacturer; empty: as the header says.
    """

    name: str
    training: Items
    held_out: Items
    held_out_cases: list[Case]
    groups: Mapping[str, str] = field(default_factory=dict)


Prepare = Callable[[Experiment, Task, Path, int], list[Hospital]]


@dataclass(frozen=True)
class Setting:
    """Attributes:
    overrides: of the experiment, before the strategy's own.
    fairness: by which groups it is measured.
    hospitals: (experiment, task, empty folder, phantom patients a hospital) to the hospitals.
    """

    overrides: tuple[str, ...]
    fairness: Fairness
    hospitals: Prepare


def _phantoms(how: str) -> Prepare:
    def prepare(experiment: Experiment, task: Task, folder: Path, patients: int) -> list[Hospital]:
        names = [f"hospital-{number}" for number in range(HOSPITALS)]
        phantoms.write_skewed(
            how,
            task.name,
            [folder / name for name in names],
            patients=patients,
            seed=experiment.seed,
        )
        return [_read(name, folder / name, experiment, task) for name in names]

    return prepare


def _radiographs(experiment: Experiment, task: Task, folder: Path, _: int) -> list[Hospital]:
    """Real radiographs by detector: 0.7 of each detector's patients at one hospital, as the rest would
    leave a hospital with one label."""
    folders = [folder / str(number) for number in range(HOSPITALS)]
    source = chest_xray_auroc.DATA
    public_images.deal(source, task.name, "scanner_skew", folders, seed=experiment.seed)
    groups = {
        public_images.dicom_name(row): public_images.detector(row)
        for row in chest_xray_auroc.rows()
    }
    return [
        _read(f"hospital-{number}", place, experiment, task, groups)
        for number, place in enumerate(folders)
    ]


def _hippocampi(experiment: Experiment, task: Task, _: Path, __: int) -> list[Hospital]:
    hospitals = [
        hippocampus_dice.read_hospital(group, task, experiment)
        for group in hippocampus_dice.intensity_groups()
    ]
    return [
        Hospital(
            re.sub(r"[^a-z0-9]+", "-", one.name.lower()),
            one.training,
            one.held_out,
            one.held_out_cases,
            {case.image.files[0].name: one.name.lower() for case in one.held_out_cases},
        )
        for one in hospitals
    ]


def _read(
    name: str,
    folder: Path,
    experiment: Experiment,
    task: Task,
    groups: Mapping[str, str] | None = None,
) -> Hospital:
    """What a hospital does before its first round."""
    data = Data(root=folder / "images", labels=folder / "labels.csv")
    held_out = experiment.evaluation.held_out
    cohort = build_cohort(data, task, state=folder / "state", key=KEY, held_out=held_out)
    training, apart = (
        CachedCases(part, task.load, folder / "cache", experiment.sha256())
        for part in (cohort.training, cohort.held_out)
    )
    return Hospital(name, training, apart, list(cohort.held_out), groups or {})


_BY_SCANNER = Fairness(attributes=("manufacturer", "sex", "age_band"), least_cases=5)
SETTINGS = {
    "chest_xray_scanners": Setting(
        ("experiment=scanner_skew",), _BY_SCANNER, _phantoms("scanner_skew")
    ),
    "chest_xray_labels": Setting(
        ("experiment=label_skew",),
        Fairness(attributes=("sex", "age_band"), least_cases=5),
        _phantoms("label_skew"),
    ),
    "mammography_scanners": Setting(
        ("experiment=mammography",), _BY_SCANNER, _phantoms("scanner_skew")
    ),
    "alzheimers_scanners": Setting(
        ("experiment=alzheimers",), _BY_SCANNER, _phantoms("scanner_skew")
    ),
    "hippocampus_groups": Setting(
        ("experiment=hippocampus",),
        Fairness(
            attributes=("manufacturer",),
            manufacturers=("a_uint8", "b_mid", "c_huge"),
            least_cases=5,
        ),
        _hippocampi,
    ),
    "nih_detectors": Setting(
        ("experiment=demo", "training.learning_rate=0.001", "rounds=20"),
        Fairness(
            attributes=("manufacturer", "sex", "view"),
            manufacturers=("d0168", "d0171"),
            least_cases=5,
        ),
        _radiographs,
    ),
}
