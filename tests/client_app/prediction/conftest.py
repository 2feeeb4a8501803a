"""A series of the phantom, and a run as the coordinator hands it over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch

from federation import models, tasks
from tests.client_app.prediction.phantom import (
    Series,
    experiment,
    write_series,
)


@pytest.fixture(params=[(0, 0, 0), (20, -35, 50)], ids=["axial", "oblique"])
def series(request: pytest.FixtureRequest, tmp_path: Path) -> Series:
    return write_series(tmp_path / "series", angles=request.param)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run, as the coordinator writes it."""
    folder = tmp_path / "runs" / "monday"
    folder.mkdir(parents=True)
    content = experiment()
    task = tasks.build(content.task)
    network = models.build(content.model, task, seed=1)
    (folder / "experiment.json").write_text(content.canonical())
    (folder / "run.json").write_text(json.dumps({"experiment_sha256": content.sha256()}))
    safetensors.torch.save_file(
        dict(network.state_dict()), folder / "model.safetensors", {"round": "3"}
    )
    return folder
