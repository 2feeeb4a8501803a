"""A trained model as the coordinator hands it over: the folder of a run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from client_app.private_file import printable
from federation import models, tasks
from federation.schema import ConfigError, Experiment
from federation.tasks import Task

EXPERIMENT, RECORD, WEIGHTS = "experiment.json", "run.json", "model.safetensors"
_LARGEST_TEXT = 1 << 20  # bytes of experiment.json and run.json
_HEADER_ALLOWANCE = 1 << 20  # bytes of names and shapes that a safetensors header may take


@dataclass(frozen=True)
class Model:
    """Attributes:
    run: the run's name.
    round: after how many rounds; none where the weights do not say.
    sha256: of the file with the weights.
    network: in evaluation mode, on its device.
    """

    run: str
    round: int | None
    sha256: str
    experiment: Experiment
    task: Task
    network: nn.Module = field(repr=False)
    device: torch.device

    def identity(self) -> dict[str, Any]:
        """What tells this model from every other one, for whoever reads an answer of it."""
        return {
            "task": self.task.name,
            "run": self.run,
            "round": self.round,
            "model": self.experiment.model.name,
            "model_sha256": self.sha256,
            "experiment": self.experiment.name,
            "experiment_sha256": self.experiment.sha256(),
        }


def read_model(path: Path, device: torch.device) -> Model:
    """The model of a run's folder, or of the folder in which a file lies.

    Weights are safetensors, read with a bound on their size and without pickle.

    Raises:
        ConfigError: no run there, an experiment that is not the one of the run, or weights that are
            damaged, not finite, or of another model than the experiment's.
    """
    folder = path.parent if path.is_file() else path
    if not (folder / EXPERIMENT).is_file():
        raise ConfigError(f"there is no run in {folder}: it needs {EXPERIMENT} and {WEIGHTS}")
    experiment = _experiment(folder)
    task = tasks.build(experiment.task)
    network = models.build(experiment.model, task, seed=experiment.seed)
    weights = folder / WEIGHTS
    content = _weights(weights, network)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError):
        raise ConfigError(f"{weights} is damaged; ask the coordinator for it again") from None
    if not tensors:
        raise ConfigError(
            f"{weights} is empty: the model of this run is at the hospitals; export it with "
            f"hospital model export {printable(folder.resolve().name)}"
        )
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError:
        raise ConfigError(
            f"{weights} is not a model of this experiment ({experiment.model.name} for task "
            f"{task.name}): its parameters have other names or shapes"
        ) from None
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ConfigError(f"{weights} holds values that are not finite")
    return Model(
        run=folder.resolve().name,
        round=_round(content),
        sha256=hashlib.sha256(content).hexdigest(),
        experiment=experiment,
        task=task,
        network=network.to(device).eval(),
        device=device,
    )


def _experiment(folder: Path) -> Experiment:
    """Checked against the record of the run where that was handed over too."""
    text = _text(folder / EXPERIMENT)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    if (folder / RECORD).is_file():
        try:
            sha256 = str(json.loads(_text(folder / RECORD))["experiment_sha256"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{folder / RECORD} is not the record of a run") from None
    try:
        return Experiment.from_canonical(text, sha256)
    except ConfigError as error:
        raise ConfigError(f"{folder / EXPERIMENT}: {error}") from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_TEXT + 1)
        if len(content) > _LARGEST_TEXT:
            raise ConfigError(f"{path} has more than {_LARGEST_TEXT:,} bytes")
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _weights(path: Path, network: nn.Module) -> bytes:
    """Read once: what is hashed is what is used."""
    needed = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    try:
        with path.open("rb") as file:
            content = file.read(needed + _HEADER_ALLOWANCE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: no round of this run has been completed") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > needed + _HEADER_ALLOWANCE:
        raise ConfigError(f"{path} is larger than a model of this experiment")
    return content


def _round(content: bytes) -> int | None:
    """The round that the header names: eight bytes of its length, then JSON with `__metadata__`."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    said = header.get("__metadata__", {}).get("round", "")
    return int(said) if said.isascii() and said.isdigit() else None
