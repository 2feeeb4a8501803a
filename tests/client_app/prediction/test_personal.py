"""Predictions with what is this hospital's own of a run: its layers, or its own model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from typer.testing import CliRunner

from client_app.cli import app
from client_app.imaging import phantoms
from client_app.local_state import LocalState
from client_app.prediction.model import read_model
from federation import models, strategies, tasks
from federation.messages import Arrays
from federation.schema import ConfigError, Experiment
from tests.client_app.prediction.phantom import CPU, experiment

RUN = "monday"


def described(name: str) -> Experiment:
    return experiment(
        strategy={"name": name},
        model={"name": "unet", "channels": [4, 8], "residual_units": 0, "norm": "instance"},
    )


def handed_over(folder: Path, of: Experiment, *, run: str = RUN) -> Path:
    """The folder of a run, under another name than the run's."""
    folder.mkdir(parents=True)
    network = models.build(of.model, tasks.build(of.task), seed=1)
    (folder / "experiment.json").write_text(of.canonical())
    record = {"run": run, "experiment_sha256": of.sha256()}
    (folder / "run.json").write_text(json.dumps(record))
    safetensors.torch.save_file(
        dict(network.state_dict()), folder / "model.safetensors", {"round": "3"}
    )
    return folder


def keep(state: Path, of: Experiment, *, run: str = RUN) -> Arrays:
    """As a round leaves them: ones of a run's layers that are the hospital's own."""
    network = models.build(of.model, tasks.build(of.task), seed=1)
    own = models.arrays_of(network)
    if not strategies.has_personal_models(of):
        own = {name: own[name] for name in strategies.kept_at_hospitals(of, network)}
    own = {name: np.full_like(array, 0.5) for name, array in own.items()}
    LocalState.of(state, run, of.sha256()).keep(3, own)
    return own


@pytest.mark.parametrize("name", ["fedbn", "fedper", "fedrep", "local_only", "ditto"])
def test_own_arrays_take_the_place_of_the_global_ones(name: str, tmp_path: Path) -> None:
    of = described(name)
    run, own = handed_over(tmp_path / "run", of), keep(tmp_path / "state", of)
    read = read_model(run, CPU, state=tmp_path / "state")
    handed = safetensors.torch.load_file(run / "model.safetensors")
    assert own
    assert (set(own) == set(handed)) == (name in ("local_only", "ditto"))
    for key, tensor in read.network.state_dict().items():
        expected = torch.from_numpy(own[key]) if key in own else handed[key]
        assert torch.equal(tensor, expected), key
    assert read.identity()["weights"] == "personal"
    assert read.identity()["personal_sha256"] == read.own
    LocalState.of(tmp_path / "state", RUN, of.sha256()).keep(
        4, {k: a + a.dtype.type(1) for k, a in own.items()}
    )
    assert read_model(run, CPU, state=tmp_path / "state").own != read.own


def test_the_global_model_beside_a_personal_one_is_as_it_was_handed_over(tmp_path: Path) -> None:
    of = described("ditto")
    run = handed_over(tmp_path / "run", of)
    keep(tmp_path / "state", of)
    read = read_model(run, CPU)
    handed = safetensors.torch.load_file(run / "model.safetensors")
    assert all(torch.equal(t, handed[n]) for n, t in read.network.state_dict().items())
    assert read.own is None
    assert read.identity()["weights"] == "global"


@pytest.mark.parametrize("name", ["fedbn", "fedper", "fedrep", "local_only"])
def test_a_global_model_without_its_layers_is_refused(name: str, tmp_path: Path) -> None:
    run = handed_over(tmp_path / "run", described(name))
    with pytest.raises(ConfigError, match=r"is not whole.*--model personal --site SITE"):
        read_model(run, CPU)


@pytest.mark.parametrize("elsewhere", ["nothing", "another run", "another experiment"])
def test_without_a_personal_model_of_just_this_run_nothing_is_predicted(
    elsewhere: str, tmp_path: Path
) -> None:
    of, state = described("ditto"), tmp_path / "state"
    run = handed_over(tmp_path / "run", of)
    if elsewhere == "another run":
        keep(state, of, run="tuesday")
    elif elsewhere == "another experiment":
        keep(state, of.model_copy(update={"rounds": 4}))
    with pytest.raises(ConfigError, match=f"no personal model of {RUN} is in "):
        read_model(run, CPU, state=state)


def test_a_run_without_personal_models_says_so(tmp_path: Path) -> None:
    run = handed_over(tmp_path / "run", described("fedavg"))
    with pytest.raises(ConfigError, match="trains no personal model: predict with --model global"):
        read_model(run, CPU, state=tmp_path / "state")


def test_without_a_record_the_folders_name_is_the_runs(tmp_path: Path) -> None:
    of = described("fedper")
    run = handed_over(tmp_path / RUN, of)
    (run / "run.json").unlink()
    keep(tmp_path / "state", of)
    assert read_model(run, CPU, state=tmp_path / "state").own is not None


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A crop about a phantom hippocampus."""
    phantoms.write("hippocampus", tmp_path / "data", patients=1, site=0, seed=0)
    return next((tmp_path / "data").rglob("images*/**/*.nii.gz"))


def predict(*words: Any) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, words)])


def site_file(folder: Path, **more: Any) -> Path:
    said = {
        "hospital": "north",
        "kit": "kit",
        "state": "state",
        "device": "cpu",
        "threads": 1,
        "data": {"root": "series"},
    }
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump(said | more))
    return file


def test_the_site_or_the_command_says_which_model(image: Path, tmp_path: Path) -> None:
    of = described("ditto")
    run = handed_over(tmp_path / "run", of)
    keep(tmp_path / "state", of)
    said = {}
    for out, section, words in (
        ("plain", {}, []),
        ("asked", {}, ["--model", "personal"]),
        ("site", {"predict": {"model": "personal"}}, []),
        ("over", {"predict": {"model": "personal"}}, ["--model", "global"]),
    ):
        site = site_file(tmp_path, **section)
        made = predict(run, image, "--site", site, "--out", tmp_path / out, *words)
        assert made.exit_code == 0, (made.output, made.exception)
        record = json.loads((tmp_path / out / "predictions.json").read_text())
        said[out] = (record["weights"], record.get("personal_sha256"))
    assert said["plain"] == said["over"] == ("global", None)
    assert said["asked"] == said["site"]
    assert said["asked"][0] == "personal"
    assert len(said["asked"][1]) == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "mine"], "--model is global or personal"),
        (["--model", "personal"], "needs --site"),
    ],
)
def test_a_choice_that_cannot_be_is_one_line(
    words: list[str], message: str, tmp_path: Path
) -> None:
    run = handed_over(tmp_path / "run", described("ditto"))
    made = predict(run, tmp_path, "--out", tmp_path / "out", *words)
    assert isinstance(made.exception, ConfigError)
    assert message in str(made.exception)
    assert not (tmp_path / "out").exists()
