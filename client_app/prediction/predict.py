"""The story of one `hospital predict`: every image answered, and the answers written beside each other.

predictions.json   which model said what of which image, and what was left out and why
predictions.csv    the same as a table, one row an image
001-segmentation.dcm, 001-structures.dcm   of a DICOM series
001-mask.nii.gz    of a NIfTI file
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread

from client_app.imaging.header import Kind
from client_app.imaging.image import Image
from client_app.imaging.set_aside import Reason, SetAside, Unfit, silenced
from client_app.prediction import NOTICE
from client_app.prediction.answer import classify, require_place, segment
from client_app.prediction.files import dicom_files, nifti_file, software
from client_app.prediction.model import Model
from client_app.prediction.sources import Sources
from client_app.private_file import printable, write_private
from federation.schema import ConfigError

_JSON, _CSV = "predictions.json", "predictions.csv"
_OURS = re.compile(r"\d{3,}-(segmentation|structures)\.dcm|\d{3,}-mask\.nii\.gz")


@dataclass(frozen=True)
class Answer:
    """What is said of one image.

    Attributes:
        names: which image it is: UIDs, or the path of a NIfTI file. They stay in the hospital.
        values: probability by class, or ml by foreground class.
        files: names in the output folder.
        remarks: what could not be written, and why.
    """

    names: Mapping[str, Any]
    values: Mapping[str, float]
    files: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def predict(
    model: Model,
    sources: Sources,
    out: Path,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Answer], list[SetAside]]:
    """Answer each image and write what was said into a folder.

    An image that cannot be read stops nothing: it is in the second list, and in the JSON. That comes
    last of all: where it is, all that it names is there. A folder that holds predictions is refused,
    or emptied of them.

    Args:
        force: whether earlier predictions in the folder may be replaced.
        progress: told how many images are answered.

    Raises:
        ConfigError: the folder holds files already, the task cannot place its answers, or not a single
            image could be answered.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is no folder; choose another --out")
    if out.exists() and any(out.iterdir()) and not force:
        raise ConfigError(
            f"{out} is not empty; choose another --out, or replace predictions in it with --force"
        )
    if model.task.kind == "segmentation":
        require_place(model.task)
    answers: list[Answer] = []
    failed: list[SetAside] = []
    for number, image in enumerate(sources.images, start=1):
        try:
            answer, files = _answer(model, image, len(answers) + 1)
        except Unfit as unfit:
            failed.append(SetAside(image.files[0], unfit.reason, unfit.detail))
        else:
            if not answers:
                _make_room(out)
            answers.append(answer)
            for name, content in files.items():
                write_private(out / name, content, replace=force)
        progress(number, len(sources.images))
    failed += sources.set_aside
    if not answers:
        said = ", ".join(sorted({f"{item.reason} ({item.detail})" for item in failed}))
        raise ConfigError(f"no image could be answered: {said}")
    write_private(out / _CSV, _table(model, answers).encode(), replace=force)
    write_private(out / _JSON, _record(model, answers, failed).encode(), replace=force)
    return answers, failed


def _answer(model: Model, image: Image, number: int) -> tuple[Answer, Mapping[str, bytes]]:
    """What is said of an image, and its files by name."""
    names = _names(image)
    if model.task.kind == "classification":
        return Answer(names, classify(model, image)), {}
    classes = segment(model, image)
    remarks: tuple[str, ...] = ()
    if image.kind is Kind.NIFTI:
        made = {"mask.nii.gz": nifti_file(model, classes, image)}
    else:
        made, remarks = dicom_files(model, classes, image)
    files = {f"{number:03}-{name}": content for name, content in made.items()}
    return Answer(names, volumes(classes, image, model.task.classes), tuple(files), remarks), files


def _make_room(out: Path) -> None:
    """A folder without earlier predictions: none may be taken for one of these."""
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in out.iterdir():
        if old.name in (_JSON, _CSV) or _OURS.fullmatch(old.name):
            old.unlink()


def volumes(
    classes: np.ndarray[Any, np.dtype[np.uint8]], image: Image, names: tuple[str, ...]
) -> dict[str, float]:
    """Millilitres of each foreground class: its voxels times the volume of one, |det A| mm³."""
    voxel = abs(float(np.linalg.det(np.asarray(image.affine, dtype=np.float64)[:3, :3])))
    counts = np.bincount(classes.ravel(), minlength=len(names))
    return {name: counts[index] * voxel / 1000 for index, name in enumerate(names) if index > 0}


def _names(image: Image) -> dict[str, Any]:
    """What tells the image to whoever has it."""
    if image.kind is Kind.NIFTI:
        return {"file": printable(image.files[0])}
    keywords = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    with silenced():
        try:
            header = dcmread(
                image.files[0], stop_before_pixels=True, specific_tags=keywords, force=True
            )
        except OSError as error:
            raise Unfit(Reason.UNREADABLE, type(error).__name__) from None
        except Exception as error:  # what pydicom raises may quote the file
            raise Unfit(Reason.CORRUPT, type(error).__name__) from None
    names: dict[str, Any] = {
        "study_instance_uid": str(header.get("StudyInstanceUID", "")),
        "series_instance_uid": str(header.get("SeriesInstanceUID", "")),
    }
    if image.kind is Kind.RADIOGRAPH:
        names["sop_instance_uid"] = str(header.get("SOPInstanceUID", ""))
    if image.volumes > 1:
        names["volume"] = image.volume
    return names


def _record(model: Model, answers: list[Answer], failed: list[SetAside]) -> str:
    said = {
        "notice": NOTICE,
        "software": software(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        **model.identity(),
        "classes": list(model.task.classes),
        "images": [_said(model, answer) for answer in answers],
        "not_answered": [
            {
                "file": printable(item.path),
                "reason": str(item.reason),
                "detail": item.detail,
                "remedy": item.reason.remedy,
            }
            for item in failed
        ],
    }
    return json.dumps(said, indent=1) + "\n"


def _said(model: Model, answer: Answer) -> dict[str, Any]:
    what = "probabilities" if model.task.kind == "classification" else "volumes_ml"
    row: dict[str, Any] = {**answer.names, what: dict(answer.values)}
    if answer.files:
        row["files"] = list(answer.files)
    if answer.remarks:
        row["remarks"] = list(answer.remarks)
    return row


def _table(model: Model, answers: list[Answer]) -> str:
    """One row an image; the model is in each, since tables are cut up and pasted together."""
    unit = "probability" if model.task.kind == "classification" else "ml"
    values = list(answers[0].values)
    names = list(dict.fromkeys(key for answer in answers for key in answer.names))
    identity = {**model.identity(), "software": software(), "notice": NOTICE}
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*names, *(f"{name}_{unit}" for name in values), *identity])
    for answer in answers:
        writer.writerow(
            [
                *(answer.names.get(key, "") for key in names),
                *(f"{answer.values[name]:.6g}" for name in values),
                *identity.values(),
            ]
        )
    return text.getvalue()
