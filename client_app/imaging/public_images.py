"""Public images on a disk, dealt to hospitals of a rehearsal as if they were their own.

Two kinds of folder are known, by the table that lies in them:

    metadata.csv  radiographs: image,patient,sex,age,view,pneumonia,detector_proxy, and images_256/IMAGE
                  (NIH ChestX-ray14, PNG)
    cases.csv     hippocampi: case,pseudo_patient,intensity_group, and images/ and labels/CASE.nii.gz
                  (Medical Segmentation Decathlon, Task04)

Patients are dealt whole (`client_app.imaging.skew`). Radiographs become DICOM files with sex, age and
view. Each is a study of its own, since a patient may be healthy in one image and ill in another.
"""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.image import imread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from client_app.imaging import skew
from client_app.imaging.skew import ALPHA, Positions
from client_app.site import Data
from federation.schema import ConfigError

RADIOGRAPHS, HIPPOCAMPI = "metadata.csv", "cases.csv"
WORDS = ("normal", "pneumonia")
_TASKS = {RADIOGRAPHS: "chest_xray", HIPPOCAMPI: "hippocampus"}
# With all of a detector's patients at one hospital another would have one label alone.
_PURITY = 0.7
_LEAST = 15  # patients of each class that every hospital has, where there are so many
_COMMON = ("0.168", "0.171")  # detectors that have images of both labels

Row = dict[str, str]


@dataclass(frozen=True)
class Dealt:
    """What one hospital has got; `labels`: how many images of each, none of hippocampi."""

    data: Data
    patients: int
    images: int
    labels: dict[str, int] = field(default_factory=dict)


def deal(
    source: Path,
    task_name: str,
    how: str,
    folders: Sequence[Path],
    *,
    seed: int = 0,
    alpha: float = ALPHA,
) -> list[Dealt]:
    """Fill each hospital's folder with its patients' images and tables.

    - `label_skew`: by Dirichlet(α), of radiographs; a patient is of the highest class of its images.
    - `scanner_skew`: radiographs by detector, 0.7 of each one's patients at its own hospital;
      hippocampi by the scale of their intensities.
    - `size_skew`: 10 : 3 : 1, and 1 of further hospitals.
    - `noisy_labels`, `poisoned_update`: 40 % or all of the last hospital's labels are wrong.
    - anything else: hippocampi by the scale of their intensities, radiographs alike for all.

    Raises:
        ConfigError: a folder without one of the two tables, of another task than the experiment's, or
            with fewer scanners than hospitals; labels that hippocampi do not have.
    """
    kind = next((name for name in _TASKS if (source / name).is_file()), None)
    if kind is None:
        raise ConfigError(f"{source}: there is neither {RADIOGRAPHS} nor {HIPPOCAMPI} to deal by")
    if task_name != _TASKS[kind]:
        raise ConfigError(
            f"{source} has images for task={_TASKS[kind]}, and the experiment's is {task_name}"
        )
    rows = read_rows(source / kind)
    if kind == HIPPOCAMPI:
        return _hippocampi(source, rows, how, folders, seed)
    return _radiographs(source, rows, how, folders, seed, alpha)


def read_rows(table: Path) -> list[Row]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def detector(row: Row) -> str:
    """The two detectors that have both labels, and the others together."""
    spacing = row["detector_proxy"]
    return f"d{spacing.replace('.', '')}" if spacing in _COMMON else "other"


def write_dicom(source: Path, row: Row, out: Path) -> None:
    """A radiograph of the table as a DICOM file below `out`."""
    pixels = imread(source / "images_256" / row["image"])
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = ComputedRadiographyImageStorage
    header.SOPInstanceUID = generate_uid(entropy_srcs=["instance", row["image"]])
    header.StudyInstanceUID = study(row)
    header.SeriesInstanceUID = generate_uid(entropy_srcs=["series", row["image"]])
    header.Modality, header.PatientID, header.ViewPosition = "CR", row["patient"], row["view"]
    header.PatientSex, header.PatientAge = row["sex"], f"{int(row['age']):03d}Y"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = grey.shape
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.PixelData = (grey * 255).round().astype("uint8").tobytes()
    header.save_as(out / dicom_name(row), enforce_file_format=True)


def dicom_name(row: Row) -> str:
    return row["image"].replace(".png", ".dcm")


def study(row: Row) -> str:
    """The UID of a radiograph's study, by which the table of labels names it."""
    return str(generate_uid(entropy_srcs=["study", row["image"]]))


def _radiographs(
    source: Path, rows: list[Row], how: str, folders: Sequence[Path], seed: int, alpha: float
) -> list[Dealt]:
    own = _by(rows, "patient")
    labels = [max(row["pneumonia"] for row in images) for images in own.values()]
    hospitals = len(folders)
    match how:
        case "label_skew":
            # half of the rarer class at most, so that enough is left to be dealt unequally
            least = min(_LEAST, min(Counter(labels).values()) // (2 * hospitals))
            parts = skew.by_label(labels, hospitals, alpha=alpha, seed=seed, least=least)
        case "scanner_skew":
            detectors = [detector(images[-1]) for images in own.values()]
            parts = skew.by_attribute(detectors, hospitals, seed=seed, purity=_PURITY)
        case "size_skew":
            parts = skew.by_size(labels, skew.unequal(hospitals), seed=seed)
        case _:
            parts = skew.by_size(labels, [1] * hospitals, seed=seed)
    wrong = {"noisy_labels": skew.NOISY, "poisoned_update": 1.0}.get(how, 0.0)
    dealt = []
    for folder, chosen in zip(folders, _rows_of(parts, own), strict=True):
        words = [WORDS[int(row["pneumonia"])] for row in chosen]
        if folder == folders[-1] and wrong:
            words = skew.flipped(words, wrong, seed=seed)
        (folder / "images").mkdir(parents=True)
        for row in chosen:
            write_dicom(source, row, folder / "images")
        lines = [(study(row), word) for row, word in zip(chosen, words, strict=True)]
        _write(folder / "labels.csv", ("study", "label"), lines)
        data = Data(root=folder / "images", layout="dicom", labels=folder / "labels.csv")
        patients = len({row["patient"] for row in chosen})
        dealt.append(Dealt(data, patients, len(chosen), dict(sorted(Counter(words).items()))))
    return dealt


def _hippocampi(
    source: Path, rows: list[Row], how: str, folders: Sequence[Path], seed: int
) -> list[Dealt]:
    if how in ("label_skew", "noisy_labels", "poisoned_update"):
        raise ConfigError(f"{source} has masks and no classes for {how}: choose radiographs")
    own = _by(rows, "pseudo_patient")
    groups = [volumes[0]["intensity_group"] for volumes in own.values()]
    if how == "size_skew":
        parts = skew.by_size(groups, skew.unequal(len(folders)), seed=seed)
    else:
        parts = skew.by_attribute(groups, len(folders), seed=seed)
    dealt = []
    for folder, chosen in zip(folders, _rows_of(parts, own), strict=True):
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True)
            for row in chosen:
                name = f"{row['case']}.nii.gz"
                shutil.copyfile(source / kind / name, folder / kind / name)
        lines = [(f"{row['case']}.nii.gz", row["pseudo_patient"]) for row in chosen]
        _write(folder / "patients.csv", ("file", "patient"), lines)
        data = Data(root=folder, layout="nifti", patients=folder / "patients.csv")
        dealt.append(Dealt(data, len({row["pseudo_patient"] for row in chosen}), len(chosen)))
    return dealt


def _by(rows: list[Row], key: str) -> dict[str, list[Row]]:
    """Rows by patient, patients in the order of their names."""
    return {name: [r for r in rows if r[key] == name] for name in sorted({r[key] for r in rows})}


def _rows_of(parts: Sequence[Positions], own: dict[str, list[Row]]) -> list[list[Row]]:
    names = list(own)
    return [[row for at in part.tolist() for row in own[names[at]]] for part in parts]


def _write(path: Path, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([header, *lines])
