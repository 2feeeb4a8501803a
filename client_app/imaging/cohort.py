"""The cohort: which images of which patients serve a task, and which are never trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from client_app.imaging import nifti
from client_app.imaging.index import Entry, Progress, update
from client_app.imaging.pseudonym import keyed_hash, normalised, pseudonym
from client_app.imaging.set_aside import Reason, SetAside, Unfit
from client_app.imaging.table import read_table
from federation.schema import ConfigError, Data
from federation.tasks import Case, Task

# Image and mask must name the same point of space this closely, in mm: files written by different
# programs differ in the last digits of single precision.
_AFFINE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Cohort:
    """Cases in the order of (pseudonym, path); no patient has cases in both parts."""

    training: tuple[Case, ...]
    held_out: tuple[Case, ...]
    set_aside: tuple[SetAside, ...]

    @property
    def training_patients(self) -> int:
        return len({case.patient for case in self.training})

    @property
    def held_out_patients(self) -> int:
        return len({case.patient for case in self.held_out})

    @property
    def set_aside_reasons(self) -> dict[Reason, int]:
        """How many files were set aside for each reason, most frequent first."""
        return dict(Counter(item.reason for item in self.set_aside).most_common())


def build_cohort(
    data: Data,
    task: Task,
    *,
    state: Path,
    key: bytes,
    held_out: float,
    progress: Progress | None = None,
) -> Cohort:
    """The cases of this hospital for a task.

    Whether a patient is held out depends on the key, the pseudonym and the share alone: it stays so
    when images or other patients are added, and a larger share holds out a superset.

    Args:
        state: the site's state folder, where the index lies.
        key: the hospital's pseudonym key.
        held_out: share of the patients that is never trained on, in [0, 1).
        progress: told about files whose header had to be read.

    Raises:
        ConfigError: the data's root, table of patients or table of labels cannot be used.
    """
    labels = None if task.kind == "segmentation" else _read_labels(data, task, key)
    index = update(data, state=state, key=key, progress=progress)
    cases: list[Case] = []
    set_aside = list(index.set_aside)
    usable, repeated = _without_repeats(index.entries)
    images, masks = _split_masks(data, usable)
    for entry in repeated:
        detail = "another file holds the same image"
        set_aside.append(SetAside(data.root / entry.path, Reason.DUPLICATE, detail))
    for name, entry in images.items():
        try:
            _check_dimensions(entry, task)
            label: int | Path
            if labels is None:
                label = data.root / _mask(entry, masks.get(name)).path
            else:
                label = _label(labels, entry.patient)
        except Unfit as unfit:
            set_aside.append(SetAside(data.root / entry.path, unfit.reason, unfit.detail))
            continue
        cases.append(Case(entry.patient, data.root / entry.path, label, entry.attributes))
    if task.kind == "segmentation":
        for name in masks.keys() - images.keys():
            detail = f"no usable image of this name in {nifti.IMAGES}/"
            set_aside.append(SetAside(data.root / masks[name].path, Reason.IMAGE_MISSING, detail))
    cases.sort(key=lambda case: (case.patient, case.image))
    set_aside.sort(key=lambda item: item.path)
    return Cohort(
        training=tuple(case for case in cases if split_position(key, case.patient) >= held_out),
        held_out=tuple(case for case in cases if split_position(key, case.patient) < held_out),
        set_aside=tuple(set_aside),
    )


def split_position(key: bytes, patient: str) -> float:
    """Where a pseudonym stands in [0, 1): uniform over patients, known to this hospital alone."""
    # 53 bits: what a float holds exactly, so that 1.0 is never reached by rounding.
    return (int.from_bytes(keyed_hash(key, "split", patient)[:8]) >> 11) / 2**53


def _split_masks(
    data: Data, entries: Sequence[Entry]
) -> tuple[dict[PurePosixPath, Entry], dict[PurePosixPath, Entry]]:
    """Images and masks by the path they share."""
    if data.layout == "dicom":
        return {entry.path: entry for entry in entries}, {}
    parts: dict[str, dict[PurePosixPath, Entry]] = {nifti.IMAGES: {}, nifti.MASKS: {}}
    for entry in entries:
        top, *rest = entry.path.parts
        parts[top][PurePosixPath(*rest)] = entry
    return parts[nifti.IMAGES], parts[nifti.MASKS]


def _without_repeats(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Entries whose image is new in the order of paths, and those whose image came before."""
    seen: set[str] = set()
    new: list[Entry] = []
    repeated: list[Entry] = []
    for entry in entries:
        (repeated if entry.instance and entry.instance in seen else new).append(entry)
        seen.add(entry.instance)
    return new, repeated


def _check_dimensions(entry: Entry, task: Task) -> None:
    """Spatial axes as the task has, and at most one axis of channels behind them."""
    extra = len(entry.shape) - task.spatial_dims
    if extra not in (0, 1) or (extra == 1 and entry.shape[-1] != task.in_channels):
        raise Unfit(
            Reason.WRONG_DIMENSIONS,
            f"{len(entry.shape)} axes; task {task.name} reads {task.spatial_dims} and "
            f"{task.in_channels} channel(s)",
        )


def _mask(image: Entry, mask: Entry | None) -> Entry:
    """The mask, if it lies on the image's voxels."""
    if mask is None:
        raise Unfit(Reason.MASK_MISSING, f"no usable mask of this name in {nifti.MASKS}/")
    spatial = image.shape[: len(mask.shape)]
    if spatial != mask.shape:
        raise Unfit(Reason.GEOMETRY_DIFFERS, f"image {image.shape}, mask {mask.shape} voxels")
    ours, theirs = np.asarray(image.affine), np.asarray(mask.affine)
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] *= (*spatial, 1, 1)[:3]
    distance = float(np.linalg.norm(corners @ (ours - theirs).T, axis=1).max())
    if distance > _AFFINE_TOLERANCE:
        raise Unfit(Reason.GEOMETRY_DIFFERS, f"a corner of the mask lies {distance:.3g} mm off")
    return mask


def _label(labels: dict[str, int | Reason], patient: str) -> int:
    label = labels.get(patient, Reason.LABEL_MISSING)
    if isinstance(label, Reason):
        raise Unfit(label)
    return label


def _read_labels(data: Data, task: Task, key: bytes) -> dict[str, int | Reason]:
    """Pseudonym to class index, or to why there is none."""
    if data.labels is None:
        raise ConfigError(
            f"data.labels is missing: task {task.name} needs a CSV with columns patient,label"
        )
    labels: dict[str, int | Reason] = {}
    for patient, label in _label_rows(data.labels, task, key):
        if labels.setdefault(patient, label) != label:
            labels[patient] = Reason.LABEL_CONFLICT
    return labels


def _label_rows(table: Path, task: Task, key: bytes) -> Iterator[tuple[str, int | Reason]]:
    classes = {str(position): position for position in range(len(task.classes))}
    classes |= {name.casefold(): position for position, name in enumerate(task.classes)}
    for _, row in read_table(table, where="data.labels", columns=("patient", "label")):
        if not normalised(row["patient"]) or not row["label"]:
            continue
        label = classes.get(row["label"].casefold(), Reason.LABEL_UNKNOWN)
        yield pseudonym(key, row["patient"]), label
