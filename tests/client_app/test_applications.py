"""Each application whole: phantoms as a hospital has them, the index, the tensors, one exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client_app import app, patients
from client_app.imaging import phantoms, voxels
from client_app.imaging.set_aside import Reason
from client_app.patients import Patients, load_patients
from client_app.site import Data, Site
from federation import models, tasks, wire
from federation.fairness.layout import Layout
from federation.messages import Expected, Request, Shape
from federation.schema import Component, Experiment, parse
from server_app import compose

APPLICATIONS = ("chest_xray", "hippocampus", "mammography", "alzheimers", "tumour_segmentation")
PATIENTS = 12


def hospital(folder: Path, data: Data) -> Site:
    content: dict[str, Any] = {
        "hospital": "north",
        "kit": folder / "kit",
        "state": folder / "state",
        "device": "cpu",
        "threads": 1,
        "data": data.model_dump(),
        "policy": {"least_patients": 2, "smallest_group": 1},
    }
    key = folder / "state" / "pseudonym.key"
    key.parent.mkdir(parents=True)
    key.touch(mode=0o600)
    key.write_bytes(bytes(range(32)))  # fixed, so that the same patients are held out each time
    return parse(Site, content)


def small(task: str) -> Experiment:
    """The task's own experiment, with one step of two cases."""
    name = "demo" if task == "chest_xray" else task
    return compose.experiment(
        [
            f"experiment={name}",
            "training.local_steps=1",
            "training.batch_size=2",
            "evaluation.held_out=0.4",
        ]
    )


@pytest.mark.parametrize("task", APPLICATIONS)
def test_an_exchange_from_the_images_to_the_update(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patients, "_decoding_processes", lambda: 2)  # as at a hospital
    data = phantoms.write(task, tmp_path / "data", patients=PATIENTS, site=0, seed=3)
    site, experiment = hospital(tmp_path, data), small(task)
    built = tasks.build(experiment.task)
    network = models.build(experiment.model, built, seed=0)
    sent = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    request = Request("run", 1, evaluate=True, train=True)
    records = app.respond(
        wire.request_to_records(request, wire.pack(sent)),
        {"experiment": experiment.canonical(), "experiment-sha256": experiment.sha256()},
        site,
    )
    layout = Layout.of_experiment(experiment, built)
    expected = Expected(Shape.of(sent), frozenset(built.metrics), counts=layout)
    answer = wire.answer_from_records(records, request, expected)
    assert answer.refused is None, (site.state / "errors.jsonl").read_text()
    assert answer.trained is not None
    assert answer.evaluated is not None
    assert answer.trained.patients + answer.evaluated.patients == PATIENTS
    assert any(np.abs(update).max() > 0 for update in answer.trained.update.values())
    assert "loss" in answer.evaluated.metrics
    assert built.headline in answer.evaluated.metrics
    left = (site.state / "audit.jsonl").read_text()
    assert str(tmp_path) not in left


@pytest.mark.parametrize("task", APPLICATIONS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_imitated_hospital_serves_its_task(task: str, number: int, tmp_path: Path) -> None:
    """Scanners, orders of slices, compressions and kinds of masks differ; all are read."""
    data = phantoms.write(task, tmp_path / "data", patients=3, site=number, seed=number)
    site = hospital(tmp_path, data)
    found = load_patients(site, small(task).task, 0.0)
    assert found.cohort.training_patients == 3
    broken = {Reason.CORRUPT, Reason.LOAD_FAILED, Reason.NO_GEOMETRY, Reason.GEOMETRY_DIFFERS}
    assert not broken & found.cohort.left_out.keys()
    first = found.training[0]
    assert first["image"].dtype == torch.float32
    assert first["image"].ndim == 1 + tasks.build(Component(name=task)).spatial_dims


def learnt_from(patients: Patients) -> list[tuple[Tensor | int, Tensor]]:
    """Of each image: its class or its mask's voxels, and what the task made of the image."""
    found = []
    for position, case in enumerate(patients.training.cases):
        label = case.label
        if not isinstance(label, int):
            label = voxels.read_mask(label, case.image).as_tensor()
        found.append((label, patients.training[position]["image"]))
    return found


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("task", ["alzheimers", "tumour_segmentation"])
def test_dicom_and_nifti_give_one_and_the_same_image_and_mask(
    task: str, number: int, tmp_path: Path
) -> None:
    """Series, SEG and RTSTRUCT on one side, NIfTI and its tables on the other.

    Masks are compared on their image's grid: NIfTI keeps its affine in single precision, so that a
    point half-way between two voxels of the task's grid may fall to either.
    """
    found = {}
    for layout in ("dicom", "nifti"):
        folder = tmp_path / layout
        data = phantoms.write(task, folder / "data", patients=3, site=number, seed=1, layout=layout)
        found[layout] = learnt_from(load_patients(hospital(folder, data), small(task).task, 0.0))
    assert len(found["dicom"]) == len(found["nifti"]) == 3
    for label, image in found["dicom"]:
        # The two layouts name patients in their own ways: the nearest image is the same one.
        same_label, same_image = min(
            found["nifti"], key=lambda other: float((other[1] - image).abs().mean())
        )
        if isinstance(label, int):
            assert label == same_label
        else:
            assert label.any()
            assert torch.equal(label, torch.as_tensor(same_label))
        torch.testing.assert_close(image, same_image, atol=1e-3, rtol=1e-3)
