"""From Hydra overrides to a checked experiment; whatever is wrong is said in one line."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    OverrideParseException,
)
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from federation.schema import ConfigError, Experiment, nearest, parse

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROUPS = (
    "codec",
    "experiment",
    "fairness",
    "harmonisation",
    "model",
    "privacy",
    "secure_aggregation",
    "strategy",
    "task",
)
# Groups of which several may be chosen: codec=[rand_k,int4]
CHAINS = ("codec", "harmonisation")
# What turns on a part that an experiment does not have by itself.
_OPTIONAL = {
    "privacy": "privacy=patient_dp",
    "codec": "codec=int8",
    "harmonisation": "harmonisation=percentile",
    "secure_aggregation": "secure_aggregation=masks",
    "fairness": "fairness=by_group",
}


def experiment(overrides: Sequence[str], *, configs: Path = CONFIGS) -> Experiment:
    """Compose `configs/experiment.yaml` with Hydra overrides and check it against the schema.

    The names of task, model and strategy and their own options are checked as well. Under
    patient-level privacy the experiment comes with its noise.

    Raises:
        ConfigError: says which key or value is wrong and what would be right.
    """
    _refuse_unknown(overrides, configs)
    _refuse_parts_that_are_not_chosen(overrides, configs)
    content, choices = _composed(overrides, configs)
    for part in _OPTIONAL:
        if choices.get(part) == "none":
            content[part] = None  # whatever a ready experiment says of it
    content["harmonisation"] = _in_turn(content.get("harmonisation"))
    checked = parse(Experiment, content)
    if checked.privacy is not None:
        checked = _with_noise(checked)
    _check_components(checked)
    return checked


def _in_turn(chosen: object) -> object:
    """Harmonisations by name, in the order of the choice, as the schema's list of components."""
    if not isinstance(chosen, dict):
        return chosen or []
    return [
        {"name": name, **options} if isinstance(options, dict) else options
        for name, options in chosen.items()
    ]


def choices(group: str, *, configs: Path = CONFIGS) -> list[str]:
    """What can be chosen in a config group."""
    return sorted(path.stem for path in (configs / group).glob("*.yaml"))


def _composed(overrides: Sequence[str], configs: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What Hydra makes of the overrides, and the choice of each group; a chain is not among them."""
    try:
        with initialize_config_dir(str(configs), version_base=None):
            composed = compose("experiment", overrides=list(overrides), return_hydra_config=True)
        choices: dict[str, str] = dict(composed.hydra.runtime.choices)
        with open_dict(composed):
            del composed["hydra"]
        content = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from None
    return cast(dict[str, Any], content), choices


def _refuse_parts_that_are_not_chosen(overrides: Sequence[str], configs: Path) -> None:
    for part, choice in _OPTIONAL.items():
        own = [override for override in overrides if override.lstrip("+~").startswith(f"{part}.")]
        rest = [override for override in overrides if override not in own]
        if own and _composed(rest, configs)[1].get(part) == "none":
            raise ConfigError(
                f"{own[0]!r} says how, but this experiment has no {part}: add {choice}"
            )


def _with_noise(checked: Experiment) -> Experiment:
    """The experiment with the noise that its ε needs; where both are given, they must agree."""
    from federation.privacy import accounting

    found = accounting.with_noise(checked)
    privacy = found.privacy
    if privacy is not None and privacy.epsilon is not None:
        cost = accounting.epsilon(accounting.of_run(found), privacy.delta)
        if cost > privacy.epsilon:
            raise ConfigError(
                f"privacy.noise_multiplier={privacy.noise_multiplier:g} makes the run cost "
                f"ε = {cost:.4g}, and privacy.epsilon is {privacy.epsilon:g}: more noise, fewer steps, "
                "or privacy.epsilon=null to take what it costs"
            )
    return found


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
        if key in CHAINS:
            _refuse_chain(key, value, configs)
        elif key in GROUPS and value not in choices(key, configs=configs):
            known = choices(key, configs=configs)
            raise ConfigError(f"there is no {key} {value!r}{nearest(value, known)}")


def _refuse_chain(group: str, value: str, configs: Path) -> None:
    """One choice, or several of which no two fill the same slot."""
    whole = value.startswith("[") and value.endswith("]")
    links = [link.strip() for link in (value[1:-1] if whole else value).split(",")]
    if len(links) > 1 and not whole:
        raise ConfigError(f"a chain stands in brackets: {group}=[{','.join(links)}]")
    known = choices(group, configs=configs)
    filled: dict[str, str] = {}
    for link in links:
        if link not in known:
            raise ConfigError(f"there is no {group} {link!r}{nearest(link, known)}")
        if link == "none" and whole:
            raise ConfigError(f"{group}=none stands alone, not in {group}={value}")
        if link in filled.values():
            raise ConfigError(f"{group}={value}: {link} stands there twice; once is enough")
        for slot in map(str, OmegaConf.load(configs / group / f"{link}.yaml").keys()):
            if slot in filled:
                raise ConfigError(
                    f"{group}={value}: {filled[slot]} and {link} both say {group}.{slot}: "
                    "choose one of them"
                )
            filled[slot] = link


def _check_components(checked: Experiment) -> None:
    # Imported late: torch and MONAI take seconds, and an experiment with a misspelt key needs neither.
    from federation import models, strategies, tasks
    from federation.fairness.layout import Layout
    from server_app import tallies

    strategies.build(checked)
    task = tasks.of_experiment(checked)
    network = models.build(checked.model, task, seed=checked.seed)
    strategies.kept_at_hospitals(checked, network)  # refuses names of layers that are not there
    Layout.of_experiment(checked, task)
    if checked.privacy is not None:
        from federation.privacy import fit

        fit.require_private(network, task, checked.privacy)
        tallies.of_experiment(checked, task)
    codec = None
    if checked.codec is not None:
        from federation.codec import chain

        codec = chain.build(checked.codec, network, seed=checked.seed)
    if checked.secure_aggregation is not None:
        from federation.secure_aggregation.combinations import require_summable

        require_summable(checked, codec)
    _refuse_adapters_of_samples(checked)


def _refuse_adapters_of_samples(checked: Experiment) -> None:
    adapted = checked.codec is not None and checked.codec.exchange.name == "adapters"
    if adapted and checked.privacy is not None and checked.privacy.engine == "per_sample":
        raise ConfigError(
            "codec.exchange=adapters: Opacus has no gradients of samples for adapters: use "
            "privacy.engine=loop"
        )


def _first_line(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is not an override; write key=value"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        return _known_keys(str(error.__cause__).splitlines()[0])
    return str(error).splitlines()[0]


def _known_keys(line: str) -> str:
    """`Key 'rats' is not in struct` with the nearest key of any section."""
    known = set(Experiment.model_fields)
    word = line.split("'")[1] if line.count("'") >= 2 else ""
    if "not in struct" in line and word in choices("harmonisation"):
        return f"{word!r} is not chosen: add it to harmonisation=[…]"
    for field in Experiment.model_fields.values():
        for option in (field.annotation, *typing.get_args(field.annotation)):
            known |= set(getattr(option, "model_fields", {}))
    if "not in struct" not in line:
        return line
    if word in known:
        return f"{word!r} is not an option of what was chosen there"
    return f"unknown key {word!r}{nearest(word, known)}"
