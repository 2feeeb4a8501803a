"""A trained model as the coordinator hands it over, the folder of a run, with what stayed here."""

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

from client_app.local_part import kept_here
from client_app.private_file import printable
from federation import models, strategies, tasks, wire
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
    own: SHA-256 of the layers, or of the model, that are this hospital's own; None: all is global.
    network: in evaluation mode, on its device.
    """

    run: str
    round: int | None
    sha256: str
    experiment: Experiment
    task: Task
    network: nn.Module = field(repr=False)
    device: torch.device
    own: str | None = None

    def identity(self) -> dict[str, Any]:
        """What tells this model from every other one, for whoever reads an answer of it."""
        return {
            "task": self.task.name,
            "run": self.run,
            "round": self.round,
            "model": self.experiment.model.name,
            "model_sha256": self.sha256,
            "weights": "global" if self.own is None else "personal",
            **({} if self.own is None else {"personal_sha256": self.own}),
            "experiment": self.experiment.name,
            "experiment_sha256": self.experiment.sha256(),
        }


def read_model(path: Path, device: torch.device, *, state: Path | None = None) -> Model:
    """The model of a run's folder, or of the folder in which a file lies.

    Weights are safetensors, read with a bound on their size and without pickle.

    Args:
        state: of the hospital whose own layers, or whose own model, is meant; None: the global model.

    Raises:
        ConfigError: no run there, an experiment that is not the one of the run, weights that are
            damaged, not finite, or of another model than the experiment's; or what is the hospital's
            own is wanted and not here, or needed and not wanted.
    """
    folder = path.parent if path.is_file() else path
    if not (folder / EXPERIMENT).is_file():
        raise ConfigError(f"there is no run in {folder}: it needs {EXPERIMENT} and {WEIGHTS}")
    experiment = _experiment(folder)
    task = tasks.of_experiment(experiment)
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
    own = _overlay(network, experiment, _run(folder), state)
    return Model(
        run=folder.resolve().name,
        round=_round(content),
        sha256=hashlib.sha256(content).hexdigest(),
        experiment=experiment,
        task=task,
        network=network.to(device).eval(),
        device=device,
        own=own,
    )


def _overlay(
    network: nn.Module, experiment: Experiment, run: str, state: Path | None
) -> str | None:
    """Put what is this hospital's own into the network; its SHA-256."""
    how, name = f"strategy={experiment.strategy.name}", printable(run)
    layers = strategies.kept_at_hospitals(experiment, network)
    if state is None:
        if layers:
            raise ConfigError(
                f"the global model of {name} is not whole: with {how} each hospital trains and keeps "
                "layers of its own; at a hospital of the run predict with --model personal --site SITE"
            )
        return None
    if not layers and not strategies.has_personal_models(experiment):
        raise ConfigError(f"{how} of {name} trains no personal model: predict with --model global")
    kept = kept_here(state, run, experiment, network)
    if kept is None:
        raise ConfigError(
            f"no personal model of {name} is in {state}: it is where the hospital trained in just this "
            "run, under the run's name"
        )
    into = models.state_of(network)
    for key, array in kept.items():
        into[key].copy_(torch.from_numpy(array))
    return hashlib.sha256(wire.pack(kept)).hexdigest()


def _run(folder: Path) -> str:
    """The run's name as its record says it, or else the folder's."""
    try:
        named = json.loads(_text(folder / RECORD)).get("run")
    except (ConfigError, ValueError, AttributeError):
        named = None
    return named if isinstance(named, str) else folder.resolve().name


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
