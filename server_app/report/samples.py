"""The final model on a few public or phantom cases, for the report's pictures.

These cases lie on the coordinator's own disk. Images of hospitals never come here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from torch import Tensor, nn

from federation import models, tasks
from federation.schema import ConfigError, Experiment, parse
from federation.tasks import Case, Task
from server_app.report.pictures import Sample
from server_app.report.read import RunFolderError, read_run


def find_cases(folder: Path, data: Path) -> list[Case]:
    """Cases of the run's task below a folder of public or phantom images, in the files' order.

    For segmentation, `images/` and `labels/` with NIfTI files of the same names; for
    classification, DICOM files below `images/`, one a patient, and `labels.csv` with columns
    patient (PatientID) and label (a class, by name or number), as `hospital phantom` writes them.

    Raises:
        federation.schema.ConfigError: the run's experiment is not one of this version, or there is
            no such case in the folder.
    """
    task = tasks.build(_experiment(folder).task)
    cases = list(_masked(data) if task.kind == "segmentation" else _labelled(data, task.classes))
    if not cases:
        wanted = (
            "images/NAME.nii.gz with labels/NAME.nii.gz"
            if task.kind == "segmentation"
            else "images/ with DICOM files of patients that labels.csv (patient,label) names"
        )
        raise ConfigError(f"{data} holds no case for task {task.name}: it needs {wanted}")
    return cases


def _masked(data: Path) -> Iterator[Case]:
    for image in sorted((data / "images").glob("*.nii*")):
        mask = data / "labels" / image.name
        if mask.is_file():
            yield Case("sample", image, mask)


def _labelled(data: Path, classes: Sequence[str]) -> Iterator[Case]:
    table = data / "labels.csv"
    if not table.is_file():
        return
    indices = {name.casefold(): index for index, name in enumerate(classes)}
    indices |= {str(index): index for index in range(len(classes))}
    with table.open(newline="", encoding="utf-8-sig") as file:
        labels = {
            (row.get("patient") or "").strip(): indices.get(
                (row.get("label") or "").strip().casefold()
            )
            for row in csv.DictReader(file)
        }
    for image in sorted(path for path in (data / "images").rglob("*") if path.is_file()):
        try:
            header = dcmread(image, stop_before_pixels=True, specific_tags=["PatientID"])
        except InvalidDicomError:
            continue
        # Popped: one image a patient gives more variety.
        label = labels.pop(str(header.get("PatientID", "")).strip(), None)
        if label is not None:
            yield Case("sample", image, label)


def predict_samples(folder: Path, cases: Sequence[Case], *, count: int = 6) -> list[Sample]:
    """What the run's `model.safetensors` says of up to `count` cases, evenly chosen from `cases`.

    A volume is shown as its axial slice with the most foreground (truth, or else prediction), the
    one nearest to the middle where several are alike, patient's right on the left of the picture.

    Args:
        cases: public or phantom cases; nothing that names them goes into the samples.

    Raises:
        RunFolderError: the folder lacks the experiment or the model, or the model is another one.
        federation.schema.ConfigError: the experiment is not one of this version.
        ValueError: an image or a label that the task refuses.
    """
    task, network = _restore(folder)
    step = max(1.0, len(cases) / count) if count > 0 else 1.0
    chosen = [cases[int(index * step)] for index in range(min(count, len(cases)))]
    with torch.inference_mode():
        return [
            _sample(task, network, case, f"Case {number}")
            for number, case in enumerate(chosen, start=1)
        ]


def _restore(folder: Path) -> tuple[Task, nn.Module]:
    """The run's task, and its network with the weights of `model.safetensors`."""
    experiment = _experiment(folder)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise RunFolderError(f"{weights} is missing: no round of this run has been completed yet")
    task = tasks.build(experiment.task)
    network = models.build(experiment.model, task, seed=experiment.seed)
    try:
        network.load_state_dict(safetensors.torch.load_file(weights), strict=True)
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


def _sample(task: Task, network: nn.Module, case: Case, caption: str) -> Sample:
    item = task.load({"image": case.image, "label": case.label})
    image, label = torch.as_tensor(item["image"]), torch.as_tensor(item["label"])
    logits = task.infer(network, image[None])[0]
    if task.kind == "segmentation":
        return _segmented(caption, image[0], label[0], logits)
    scores = dict(zip(task.classes, _probabilities(logits).tolist(), strict=True))
    shown = image[0] if task.spatial_dims == 2 else _slice(image[0], image.shape[-1] // 2)
    return Sample(caption, _float(shown), scores=scores, truth_name=task.classes[int(label.item())])


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
