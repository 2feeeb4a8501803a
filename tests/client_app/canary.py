"""A hospital whose every patient is a canary: patient i moves weight i, and no other, by exactly C.

The image of patient i is a vector with one entry, at i, and the loss is linear in the weights. So the
gradients of patients are orthogonal, do not depend on the weights, and are clipped to C. What leaves
is then known to the last coin: after T steps weight i has moved by C · Bin(T, q) + N(0, T σ² C²), times
what is public. Task and model are dropped in as files, as a researcher would do it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid
from torch import Tensor, nn

from federation.schema import Closed
from federation.tasks import Prediction, Selection, Tally, Task

STRENGTH = 1000.0  # of the gradient before clipping
_FIRST_VALUE = 100


class Options(Closed):
    weights: int = Field(default=300, ge=1)


def build_task(options: Options) -> Task:
    return Task(
        name="canary",
        kind="classification",
        spatial_dims=2,
        in_channels=1,
        classes=("absent", "present"),
        load=Load(options.weights),
        augment=dict,
        loss=_linear,
        infer=lambda network, images: network(images),
        outcome=lambda logits, target: logits.double(),
        measure=_measure,
        metrics=("share",),
        headline="share",
        patch=(1, options.weights),
        selection=Selection(modalities=frozenset({"CR"})),
        tally=Tally(size=2, count=_count, measure=lambda tally: {"share": float(tally[1])}),
    )


class Load:
    """The patient's number, which is the value of all its pixels, as a vector."""

    def __init__(self, weights: int) -> None:
        self.weights = weights

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        number = int(item["image"].max()) - _FIRST_VALUE
        image = torch.zeros(1, 1, self.weights)
        image[0, 0, number] = 1.0
        return {"image": image, "label": torch.tensor(int(item["label"]))}


def _linear(logits: Tensor, target: Tensor) -> Tensor:
    return -STRENGTH * logits.mean()


def _measure(predictions: Sequence[Prediction]) -> dict[str, float]:
    return {"share": float(np.mean([float(p.target) for p in predictions]))} if predictions else {}


def _count(predictions: Sequence[Prediction]) -> Tensor:
    share = float(np.mean([float(p.target) for p in predictions]))
    return torch.tensor([1 - share, share], dtype=torch.float64)


class Canary(nn.Module):
    """One weight a patient, beginning at zero, and a buffer that must never change."""

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.layer = nn.Linear(weights, 1, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.register_buffer("version", torch.tensor(1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits


class NoOptions(Closed):
    pass


def install(folder: Path, monkeypatch: Any) -> None:
    """Drop task and model in: one file each."""
    from federation import models, tasks

    for package, kind, source in (
        (tasks, "tasks", "from tests.client_app.canary import Options, build_task as build"),
        (
            models,
            "models",
            "from tests.client_app.canary import Canary, NoOptions as Options\n"
            "def build(options, task):\n    return Canary(task.patch[1])\n",
        ),
    ):
        (folder / kind).mkdir()
        (folder / kind / "canary.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder / kind)])


def write_patients(
    folder: Path, patients: Sequence[int], *, images: int = 1, present: Sequence[int] = ()
) -> None:
    """`folder`/images with radiographs of these patients, and `folder`/labels.csv."""
    (folder / "images").mkdir(parents=True)
    rows = ["patient,label"]
    for patient in patients:
        rows.append(f"P{patient:05},{'present' if patient in present else 'absent'}")
        for image in range(images):
            _radiograph(patient).save_as(
                folder / "images" / f"{patient:05}-{image}.dcm", enforce_file_format=True
            )
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def _radiograph(patient: int) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = ComputedRadiographyImageStorage
    header.SOPInstanceUID = generate_uid()
    header.StudyInstanceUID = generate_uid()
    header.SeriesInstanceUID = generate_uid()
    header.PatientID = f"P{patient:05}"
    header.PatientName = f"Canary^{patient}"
    header.Modality = "CR"
    header.Rows = header.Columns = 8
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = 16
    header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 0
    header.PixelSpacing = [1.0, 1.0]
    header.PixelData = np.full((8, 8), _FIRST_VALUE + patient, np.uint16).tobytes()
    return header
