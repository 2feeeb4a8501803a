"""The final model on a few public or phantom cases, for the report's pictures.

These cases lie on the coordinator's own disk. Images of hospitals never come here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from torch import Tensor, nn

from federation import models, pixels, tasks
from federation.schema import ConfigError, Experiment, parse
from federation.tasks import Task
from server_app.report.pictures import Sample
from server_app.report.read import RunFolderError, read_run

_SIDES = {"l": "left", "left": "left", "r": "right", "right": "right"}


class ModelAtHospitals(RunFolderError):
    """The coordinator of an encrypted run has no model to predict with."""


@dataclass(frozen=True)
class Example:
    """A public or phantom image with what is true of it: a class index, or a mask."""

    image: Path
    label: int | Path
    laterality: str = "unknown"


def find_examples(folder: Path, data: Path) -> list[Example]:
    """Examples for the run's task below a folder of public or phantom images, in the files' order.

    As `hospital phantom` writes them. For segmentation, `images/` and `labels/` with NIfTI files of the
    same names (`--layout nifti`). For classification, `images/` with DICOM radiographs and `labels.csv`
    with columns patient (PatientID), label (a class, by name or number) and, if it tells sides apart,
    laterality; or, for volumes, BIDS with a column `diagnosis` in participants.tsv.

    Raises:
        federation.schema.ConfigError: the run's experiment is not one of this version, or there is
            no such image in the folder.
    """
    task = tasks.of_experiment(_experiment(folder))
    if task.kind == "segmentation":
        examples = list(_masked(data))
        wanted = "images/NAME.nii.gz with labels/NAME.nii.gz"
    elif task.spatial_dims == 3:
        examples = list(_participants(data, _classes(task)))
        wanted = "participants.tsv with a column diagnosis, and sub-*/anat/*.nii.gz"
    else:
        examples = list(_labelled(data, _classes(task)))
        wanted = "images/ with DICOM files of patients that labels.csv (patient,label) names"
    if not examples:
        raise ConfigError(f"{data} holds no case for task {task.name}: it needs {wanted}")
    return examples


def _classes(task: Task) -> dict[str, int]:
    indices = {name.casefold(): index for index, name in enumerate(task.classes)}
    indices |= {str(index): index for index in range(len(task.classes))}
    return indices | {word: indices[name.casefold()] for word, name in task.synonyms.items()}


def _masked(data: Path) -> Iterator[Example]:
    for image in sorted((data / "images").glob("*.nii*")):
        mask = data / "labels" / image.name
        if mask.is_file():
            yield Example(image, mask)


def _participants(data: Path, classes: Mapping[str, int]) -> Iterator[Example]:
    for row in _rows(data / "participants.tsv", "\t"):
        label = classes.get(row.get("diagnosis", "").casefold())
        images = sorted((data / row.get("participant_id", "")).glob("**/anat/*_T1w.nii*"))
        if label is not None and images:
            yield Example(images[0], label)


def _labelled(data: Path, classes: Mapping[str, int]) -> Iterator[Example]:
    labels = {
        (row.get("patient", ""), _SIDES.get(row.get("laterality", "").casefold(), "")): classes.get(
            row.get("label", "").casefold()
        )
        for row in _rows(data / "labels.csv", ",")
    }
    tags = ["PatientID", "ImageLaterality", "PresentationIntentType"]
    for image in sorted(path for path in (data / "images").rglob("*") if path.is_file()):
        try:
            header = dcmread(image, stop_before_pixels=True, specific_tags=tags)
        except InvalidDicomError:
            continue
        if header.get("PresentationIntentType") == "FOR PROCESSING":
            continue
        patient = str(header.get("PatientID", "")).strip()
        side = _SIDES.get(str(header.get("ImageLaterality", "")).casefold(), "unknown")
        # Popped: one image a patient and side gives more variety.
        label = labels.pop((patient, side), None)
        if label is None:
            label = labels.pop((patient, ""), None)
        if label is not None:
            yield Example(image, label, side)


def _rows(table: Path, delimiter: str) -> list[dict[str, str]]:
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        return [{str(k): (v or "").strip() for k, v in row.items()} for row in rows]


def predict_samples(folder: Path, examples: Sequence[Example], *, count: int = 6) -> list[Sample]:
    """What the run's `model.safetensors` says of up to `count` examples, evenly chosen.

    A volume is shown as its axial slice with the most foreground (truth, or else prediction), the
    one nearest to the middle where several are alike, patient's right on the left of the picture.

    Args:
        examples: public or phantom images; nothing that names them goes into the samples.

    Raises:
        RunFolderError: the folder lacks the experiment or the model, or the model is another one;
            ModelAtHospitals, it is none of the coordinator's.
        federation.schema.ConfigError: the experiment is not one of this version.
        ValueError: an image or a label that the task refuses.
    """
    task, network = _restore(folder)
    step = max(1.0, len(examples) / count) if count > 0 else 1.0
    chosen = [examples[int(index * step)] for index in range(min(count, len(examples)))]
    with torch.inference_mode():
        return [
            _sample(task, network, example, f"Case {number}")
            for number, example in enumerate(chosen, start=1)
        ]


def _restore(folder: Path) -> tuple[Task, nn.Module]:
    """The run's task, and its network with the weights of `model.safetensors`."""
    experiment = _experiment(folder)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise RunFolderError(f"{weights} is missing: no round of this run has been completed yet")
    task = tasks.of_experiment(experiment)
    network = models.build(experiment.model, task, seed=experiment.seed)
    arrays = safetensors.torch.load_file(weights)
    if not arrays:
        raise ModelAtHospitals(
            f"{weights} is empty: the model of this run is at the hospitals, who can export it "
            "(hospital model export)"
        )
    try:
        network.load_state_dict(arrays, strict=True)
    except RuntimeError as error:
        raise RunFolderError(
            f"{weights} is not a model of this experiment ({experiment.model.name}): {error}"
        ) from error
    return task, network.eval()


def _experiment(folder: Path) -> Experiment:
    content = read_run(folder).experiment
    if not content:
        raise RunFolderError(f"{folder / 'experiment.json'} is missing or cannot be read")
    return parse(Experiment, content, where="experiment.json")


def _sample(task: Task, network: nn.Module, example: Example, caption: str) -> Sample:
    item = task.load(_read(example))
    image, label = torch.as_tensor(item["image"]), torch.as_tensor(item["label"])
    logits = task.infer(network, image[None])[0]
    if task.kind == "segmentation":
        return _segmented(caption, image[0], label[0], logits)
    scores = dict(zip(task.classes, _probabilities(logits).tolist(), strict=True))
    shown = image[0] if task.spatial_dims == 2 else _slice(image[0], image.shape[-1] // 2)
    return Sample(caption, _float(shown), scores=scores, truth_name=task.classes[int(label.item())])


def _read(example: Example) -> dict[str, Any]:
    """What `Task.load` wants of it."""
    nifti = example.image.name.endswith((".nii", ".nii.gz"))
    label: Any = example.label
    if isinstance(label, Path):
        label = pixels.read_nifti(label).to(torch.uint8)
    return {
        "image": (pixels.read_nifti if nifti else pixels.read_radiograph)(example.image),
        "label": label,
        "attributes": {"laterality": example.laterality},
    }


def _segmented(caption: str, image: Tensor, truth: Tensor, logits: Tensor) -> Sample:
    said = logits.argmax(dim=0) if logits.shape[0] > 1 else (logits[0] > 0).long()
    if image.ndim == 3:
        index = _fullest(truth if bool((truth > 0).any()) else said)
        caption = f"{caption}, axial slice {index + 1} of {image.shape[-1]}"
        image, truth, said = (_slice(volume, index) for volume in (image, truth, said))
    return Sample(caption, _float(image), truth=_integer(truth), predicted=_integer(said))


def _probabilities(logits: Tensor) -> Tensor:
    """Of each class; one logit alone is the second of two classes'."""
    if logits.numel() == 1:
        positive = torch.sigmoid(logits.flatten())
        return torch.cat((1 - positive, positive))
    return torch.softmax(logits.flatten(), dim=0)


def _fullest(mask: Tensor) -> int:
    """Index of the axial slice of (R, A, S) with the most foreground, nearest to the middle."""
    areas = (mask > 0).sum(dim=(0, 1)).tolist()
    middle = (len(areas) - 1) / 2
    return max(range(len(areas)), key=lambda index: (areas[index], -abs(index - middle)))


def _slice(volume: Tensor, index: int) -> Tensor:
    """Axial slice of (R, A, S) as (rows, columns): anterior on top, patient's right on the left."""
    return volume[..., index].T.flip(0, 1)


def _float(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(tensor.to(torch.float32).cpu())


def _integer(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(tensor.to(torch.int64).cpu())
