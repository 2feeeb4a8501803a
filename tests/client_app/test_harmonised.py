"""A hospital's images harmonised: in the cache, in a round, in a prediction, in the set-aside."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import safetensors.torch
import torch

from client_app import app
from client_app.imaging import phantoms
from client_app.imaging.set_aside import Reason
from client_app.patients import Patients, load_patients
from client_app.prediction.model import read_model
from client_app.site import Site
from client_app.training.feed import batches
from federation import harmonisation, models, tasks, wire
from federation.messages import Request
from federation.schema import Component, Experiment
from server_app import compose
from server_app.report import samples
from tests.client_app.test_applications import hospital, small
from tests.federation.harmonisation.images import SMALL

CHAINS = {
    "alzheimers": ("n4", "z_score", "histogram"),
    "chest_xray": ("clahe", "percentile"),
    "hippocampus": ("n4", "percentile"),
    "mammography": ("clahe", "histogram"),
    "tumour_segmentation": ("percentile",),
}
RANDOM = ("scanner_augmentation", "fourier_amplitude")


def components(*names: str, **options: Any) -> tuple[Component, ...]:
    return tuple(Component(name=name, **options) for name in names)


def site(folder: Path, task: str = "hippocampus", number: int = 4) -> Site:
    data = phantoms.write(task, folder / "data", patients=number, site=1, seed=2)
    return hospital(folder, data)


def caches(of: Site) -> set[str]:
    return {path.name for path in (of.state / "cache").iterdir()}


def images(found: Patients) -> list[torch.Tensor]:
    return [found.training[number]["image"] for number in range(len(found.training))]


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_every_task_gives_finite_patches_of_its_shape(name: str, tmp_path: Path) -> None:
    of = site(tmp_path, name, 2)
    options = {key: value for key, value in SMALL[name].items() if key != "modality"}
    component = Component(name=name, **options)
    chosen = components(*CHAINS[name], *RANDOM)
    found = load_patients(of, component, 0.0, harmonised=chosen)
    assert Reason.LOAD_FAILED not in found.cohort.left_out
    assert found.cohort.training_patients == 2
    task = harmonisation.applied(tasks.build(component), chosen)
    for shown, _ in batches(task.augment, found.training, size=2, steps=3, seed=0):
        assert shown.shape == (2, 1, *task.patch)
        assert shown.dtype == torch.float32 and torch.isfinite(shown).all()


def test_the_cache_is_of_the_deterministic_part(tmp_path: Path) -> None:
    of, component = site(tmp_path), Component(name="hippocampus")
    plain = images(load_patients(of, component, 0.0))
    first = caches(of)
    # the folder is the one that there was before there was harmonisation
    old = json.dumps(component.model_dump(mode="json"), sort_keys=True)
    assert first == {hashlib.sha256(old.encode()).hexdigest()[:16]}
    varied = images(load_patients(of, component, 0.0, harmonised=components(*RANDOM)))
    assert caches(of) == first
    assert all(torch.equal(a, b) for a, b in zip(plain, varied, strict=True))
    evened = images(load_patients(of, component, 0.0, harmonised=components("percentile")))
    assert len(caches(of)) == 2
    assert not torch.equal(plain[0], evened[0])
    for other in (components("percentile", low=3.0), components("z_score", "percentile")):
        before = caches(of)
        load_patients(of, component, 0.0, harmonised=other)
        assert len(caches(of)) == len(before) + 1
    again = images(load_patients(of, component, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_images_with_nothing_in_them_are_set_aside(tmp_path: Path) -> None:
    of = site(tmp_path)
    paths = sorted((tmp_path / "data" / "images").iterdir())
    for path, values in ((paths[0], 5.0), (paths[1], np.nan)):
        was = nibabel.load(path)
        flat = np.full(was.shape, values, dtype=np.float32)
        nibabel.save(nibabel.Nifti1Image(flat, was.affine), path)
    for chosen in (("z_score",), ("n4", "histogram")):
        found = load_patients(
            of, Component(name="hippocampus"), 0.0, harmonised=components(*chosen)
        )
        assert found.cohort.left_out[Reason.LOAD_FAILED].count == 1
        assert found.cohort.left_out[Reason.NOT_FINITE].count == 1
        assert len(found.training) == len(paths) - 2


def harmonised(*names: str) -> Experiment:
    return compose.experiment(
        [
            "experiment=hippocampus",
            "task.patch=[16,16,16]",
            "model.channels=[4,8]",
            f"harmonisation={'[' + ','.join(names) + ']' if names else 'none'}",
            "training.local_steps=1",
            "training.batch_size=2",
            "evaluation.held_out=0.4",
        ]
    )


def test_a_round_is_of_harmonised_images(tmp_path: Path) -> None:
    of = site(tmp_path, number=12)
    request = Request("run", 1, evaluate=True, train=True)

    def told(what: Experiment) -> tuple[bytes, Any]:
        """The update, and the held-out patients' metrics as they leave."""
        network = models.build(what.model, tasks.of_experiment(what), seed=0)
        records = app.respond(
            wire.request_to_records(request, wire.pack(models.arrays_of(network))),
            {"experiment": what.canonical(), "experiment-sha256": what.sha256()},
            of,
        )
        head = records.config_records["head"]
        assert not head["refused"], (of.state / "errors.jsonl").read_text()
        return wire.blob(records), head["values"]

    plain, even, varied = (
        told(harmonised(*names)) for names in ((), ("histogram",), ("scanner_augmentation",))
    )
    assert told(harmonised("histogram")) == even
    assert plain[0] != even[0] and plain[1] != even[1]
    assert plain[0] != varied[0] and plain[1] == varied[1]  # evaluated on images as they are
    assert len(caches(of)) == 2


def test_a_model_is_asked_about_images_as_it_was_trained(tmp_path: Path) -> None:
    experiment = harmonised("percentile", "fourier_amplitude")
    task = tasks.of_experiment(experiment)
    network = models.build(experiment.model, task, seed=1)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "experiment.json").write_text(experiment.canonical())
    safetensors.torch.save_file(dict(network.state_dict()), folder / "model.safetensors")
    data = phantoms.write("hippocampus", tmp_path / "data", patients=1, site=0, seed=0)
    (example, *_) = samples._masked(data.root)
    item = samples._read(example)
    expected = task.load(dict(item))["image"]
    plain = tasks.build(experiment.task).load(dict(item))["image"]
    assert not torch.equal(expected, plain)
    asked = read_model(folder, torch.device("cpu")).task
    assert torch.equal(asked.load(dict(item))["image"], expected)
    shown, _ = samples._restore(folder)
    assert torch.equal(shown.load(dict(item))["image"], expected)
    assert small("hippocampus").harmonisation == ()
