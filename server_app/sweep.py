"""A sweep: one experiment with Hydra's multirun overrides, as runs one after the other.

sweeps/NAME.json   its runs and their whole experiments, written before the first of them starts
"""

from __future__ import annotations

import fcntl
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString, Transformer
from hydra.errors import HydraException

from federation.schema import ConfigError, Experiment
from server_app import compose
from server_app.home import Home
from server_app.launch import new_name
from server_app.state import RunFolder, write_atomically

MOST = 1000  # runs
_LONGEST = 81  # letters of a run's name
_LONGEST_SWEEP = 64

State = Literal["new", "begun", "under way", "completed"]


@dataclass(frozen=True)
class Combination:
    """One choice for each override that sweeps.

    Attributes:
        overrides: all of them, as `compose.experiment` takes them.
        varied: those that sweep.
    """

    overrides: tuple[str, ...]
    varied: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """A run of a sweep; `varied` as in its combination."""

    run: str
    varied: tuple[str, ...]
    experiment: Experiment


@dataclass(frozen=True)
class Sweep:
    """Runs in the order in which they are done."""

    name: str
    runs: tuple[Planned, ...]


def combinations(overrides: Sequence[str]) -> list[Combination]:
    """The product of what the overrides sweep, the last one changing fastest, as Hydra's is.

    What sweeps is Hydra's to say (its basic override grammar): `a,b`, `choice(…)`, `range(…)`,
    `glob(…)` over a config group; a list in brackets and a quoted string are one value.

    Raises:
        ConfigError: not an override, a sweep without single values, or more than `MOST`.
    """
    choices = [_choices(text) for text in overrides]
    count = 1
    for one in choices:
        count *= len(one)
    if count > MOST:
        raise ConfigError(f"that sweep has {count:,} runs; {MOST:,} are the most")
    sweeps = [len(one) > 1 for one in choices]
    return [
        Combination(
            chosen,
            tuple(text for text, varies in zip(chosen, sweeps, strict=True) if varies),
        )
        for chosen in itertools.product(*choices)
    ]


def plan(
    overrides: Sequence[str],
    *,
    name: str | None = None,
    make: Callable[[Sequence[str]], Experiment] = compose.experiment,
) -> Sweep:
    """Compose and check every run of a sweep.

    Args:
        name: of the sweep; None: a new one of the first experiment's.

    Raises:
        ConfigError: names the combination that is wrong; or two are the same experiment.
    """
    if name is not None and len(name) > _LONGEST_SWEEP:
        raise ConfigError(f"run={name}: a sweep's name has {_LONGEST_SWEEP} letters at most")
    combined = combinations(overrides)
    experiments: list[Experiment] = []
    same: dict[str, str] = {}
    for number, combination in enumerate(combined, start=1):
        said = " ".join(combination.varied)
        try:
            experiment = make(combination.overrides)
        except ConfigError as error:
            if not said:
                raise
            raise ConfigError(f"{said} ({number} of {len(combined)}): {error}") from None
        first = same.setdefault(experiment.sha256(), said)
        if len(same) < number:
            raise ConfigError(f"{said} is the same experiment as {first}: leave one of them out")
        experiments.append(experiment)
    name = name or new_name(experiments[0].name)
    return Sweep(
        name,
        tuple(
            Planned(run_name(name, number, len(combined), one.varied), one.varied, experiment)
            for number, (one, experiment) in enumerate(
                zip(combined, experiments, strict=True), start=1
            )
        ),
    )


def run_name(sweep: str, number: int, count: int, varied: Sequence[str]) -> str:
    """`SWEEP-02-strategy-fedprox_seed-0`: keys without their sections, of letters that names may have.

    Its number makes it unique, and it is cut to what a name may be long.
    """
    parts = [re.sub(r"[^a-z0-9.]+", "-", _short(one).lower()).strip("-.") for one in varied]
    label = "_".join(part for part in parts if part)
    whole = f"{sweep}-{number:0{len(str(count))}d}" + (f"-{label}" if label else "")
    return whole[:_LONGEST].rstrip("-._")


def write(home: Home, sweep: Sweep) -> None:
    """Keep the sweep, or find it kept already.

    Raises:
        ConfigError: there is one of this name with other runs.
    """
    if sweep.name in names(home):
        if _kept(read(home, sweep.name)) != _kept(sweep):
            raise ConfigError(
                f"there is a sweep {sweep.name!r} already, with other runs; go on with it by resume="
                f"{sweep.name}, or choose another run=NAME"
            )
        return
    runs = [
        {"run": one.run, "varied": list(one.varied), "experiment": one.experiment.canonical()}
        for one in sweep.runs
    ]
    home.sweeps.mkdir(exist_ok=True)
    content = {"sweep": sweep.name, "runs": runs}
    write_atomically(home.sweeps / f"{sweep.name}.json", json.dumps(content, indent=1).encode())


def read(home: Home, name: str) -> Sweep:
    """Raises ConfigError: there is no such sweep."""
    try:
        content = json.loads((home.sweeps / f"{name}.json").read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no sweep {name!r}") from None
    return Sweep(
        content["sweep"],
        tuple(
            Planned(
                one["run"],
                tuple(one["varied"]),
                Experiment.model_validate_json(one["experiment"]),
            )
            for one in content["runs"]
        ),
    )


def names(home: Home) -> list[str]:
    return sorted(path.stem for path in home.sweeps.glob("*.json"))


def state(home: Home, planned: Planned) -> State:
    """How far a run of a sweep is.

    Raises:
        ConfigError: there is a run of this name with another experiment.
    """
    folder = RunFolder(home.runs / planned.run)
    if not folder.path.exists():
        return "new"
    if folder.experiment().sha256() != planned.experiment.sha256():
        raise ConfigError(
            f"there is a run {planned.run!r} of another experiment: choose another run=NAME"
        )
    if folder.is_conducted():
        return "under way"
    return "completed" if folder.status()["state"] == "completed" else "begun"


@contextmanager
def conducting(home: Home, name: str) -> Iterator[None]:
    """Hold a sweep for this process.

    Raises:
        ConfigError: another living process holds it.
    """
    home.sweeps.mkdir(exist_ok=True)
    with (home.sweeps / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"sweep {name!r} is being conducted already") from None
        yield


def _choices(text: str) -> list[str]:
    """An override as one for each value that it sweeps; itself where it sweeps none."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        raise ConfigError(f"{text!r} is not an override; write key=value") from None
    if not override.is_sweep_override():
        return [text]
    key = override.get_key_element()
    values = _values(text, override)
    if not values:
        raise ConfigError(f"{text!r} sweeps over nothing")
    return [f"{key}={value}" for value in values]


def _values(text: str, override: Override) -> list[str]:
    swept, group = override.value(), override.key_or_group
    if isinstance(swept, Glob):
        if group not in compose.GROUPS:
            raise ConfigError(f"{text!r}: glob() chooses in a group: {', '.join(compose.GROUPS)}")
        return list(swept.filter(compose.choices(group)))
    if not override.is_discrete_sweep():
        raise ConfigError(f"{text!r} has no single values; write range(…), choice(…) or a,b")
    plain = group in compose.GROUPS
    return [
        one.text if plain and isinstance(one, QuotedString) else str(Transformer.encode(one))
        for one in override.sweep_iterator()
    ]


def _kept(sweep: Sweep) -> list[tuple[str, str]]:
    return [(one.run, one.experiment.sha256()) for one in sweep.runs]


def _short(override: str) -> str:
    """An override with the last part of its key alone."""
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}={value}"
