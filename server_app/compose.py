"""From Hydra overrides to a checked experiment; whatever is wrong is said in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from federation.schema import ConfigError, Experiment, nearest, parse

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROUPS = ("experiment", "model", "strategy", "task")


def experiment(overrides: Sequence[str], *, configs: Path = CONFIGS) -> Experiment:
    """Compose `configs/experiment.yaml` with Hydra overrides and check it against the schema.

    The names of task, model and strategy and their own options are checked as well.

    Raises:
        ConfigError: says which key or value is wrong and what would be right.
    """
    _refuse_unknown(overrides, configs)
    try:
        with initialize_config_dir(str(configs), version_base=None):
            composed = compose("experiment", overrides=list(overrides))
        content = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from None
    checked = parse(Experiment, content)
    _check_components(checked)
    return checked


def choices(group: str, *, configs: Path = CONFIGS) -> list[str]:
    """What can be chosen in a config group."""
    return sorted(path.stem for path in (configs / group).glob("*.yaml"))


def _refuse_unknown(overrides: Sequence[str], configs: Path) -> None:
    """Say it better than Hydra does when a group, a choice or a top-level key does not exist."""
    top = set(Experiment.model_fields) | {"experiment"}
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~").split("@")[0]
        if not equals and not override.startswith("~"):
            raise ConfigError(f"{override!r} is not an override; write key=value")
        first = key.split(".")[0].split("/")[0]
        if first not in top:
            raise ConfigError(f"unknown key {key!r}{nearest(first, top)}")
        if key in GROUPS and value not in choices(key, configs=configs):
            known = choices(key, configs=configs)
            raise ConfigError(f"there is no {key} {value!r}{nearest(value, known)}")


def _check_components(checked: Experiment) -> None:
    # Imported late: torch and MONAI take seconds, and an experiment with a misspelt key needs neither.
    from federation import models, tasks
    from server_app import strategies

    strategies.build(checked)
    task = tasks.build(checked.task)
    models.build(checked.model, task, seed=checked.seed)


def _first_line(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is not an override; write key=value"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        return _known_keys(str(error.__cause__).splitlines()[0])
    return str(error).splitlines()[0]


def _known_keys(line: str) -> str:
    """`Key 'rats' is not in struct` with the nearest key of any section."""
    known = set(Experiment.model_fields)
    for field in Experiment.model_fields.values():
        known |= set(getattr(field.annotation, "model_fields", {}))
    word = line.split("'")[1] if line.count("'") >= 2 else ""
    return f"unknown key {word!r}{nearest(word, known)}" if "not in struct" in line else line
