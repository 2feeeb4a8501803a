"""The experiment (the coordinator's) and the site (the hospital's) as closed, typed schemas.

Both are refused, by name and with the nearest known key, when they hold a key that is not here or a
value out of range. An experiment travels as one canonical JSON string with its SHA-256, so that what
ran can be read back and run again.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class ConfigError(ValueError):
    """A configuration that cannot be used; the text says what, where, and what to do."""


class Closed(BaseModel):
    """A frozen mapping that refuses keys it does not know and NaN or infinite numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class Component(BaseModel):
    """Something chosen by name (a task, a model, a strategy) with options of its own.

    The options are closed too: the component's own file declares them, see `federation.registry`.
    """

    model_config = ConfigDict(
        extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Training(Closed):
    """How a hospital trains between two exchanges."""

    local_steps: int = Field(ge=1, le=100_000, description="optimiser steps a round")
    batch_size: int = Field(ge=1, le=4096)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = Field(gt=0, le=10)
    learning_rate_decay: float = Field(
        default=1.0, gt=0, le=1, description="factor on the learning rate a round"
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    proximal_mu: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="FedProx's weight on the distance to the global model",
    )
    gradient_clipping_norm: float | None = Field(default=None, gt=0)


class Participation(Closed):
    """Which hospitals a round asks, how long it waits, and how few answers are enough."""

    hospitals: list[str] | None = Field(
        default=None, description="names on the roster; none means all of them"
    )
    least: int = Field(ge=1, le=1000, description="fewest good answers a round may be made of")
    deadline: float = Field(gt=0, le=86_400 * 7, description="seconds a round waits for answers")
    attempts: int = Field(
        default=2, ge=1, le=10, description="times a hospital is asked when it crashed or vanished"
    )
    weighting: Literal["examples", "equal"] = "examples"
    largest_update_norm: float | None = Field(
        default=None, gt=0, description="an update with a larger L2 norm leaves the round"
    )


class Evaluation(Closed):
    """Which share of a hospital's patients is never trained on, and how often it is looked at."""

    held_out: float = Field(default=0.25, ge=0, lt=1, description="share of the patients")
    every: int = Field(default=1, ge=1, description="evaluate each so many rounds, and at the end")


class Experiment(Closed):
    """All that decides what a run computes. Where things lie on a disk is not part of it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")
    seed: int = Field(default=0, ge=0, lt=2**31)
    rounds: int = Field(ge=1, le=100_000)
    task: Component
    model: Component
    strategy: Component
    training: Training
    participation: Participation
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _enough_hospitals(self) -> Self:
        chosen = self.participation.hospitals
        if chosen is not None and len(chosen) < self.participation.least:
            raise ValueError(
                f"participation.least is {self.participation.least}, but participation.hospitals "
                f"names only {len(chosen)}"
            )
        return self

    def canonical(self) -> str:
        """The experiment as JSON with sorted keys and no spaces: one experiment, one string."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
        )

    def sha256(self) -> str:
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @classmethod
    def from_canonical(cls, text: str, sha256: str) -> Experiment:
        """Read what `canonical` wrote.

        Raises:
            ConfigError: the text does not have this SHA-256, or is not an experiment.
        """
        if hashlib.sha256(text.encode()).hexdigest() != sha256:
            raise ConfigError("the experiment does not have the SHA-256 that was sent with it")
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError("the experiment is not JSON") from error
        return parse(cls, content)


class Data(Closed):
    """Where this hospital's images and labels lie, and how they are to be read."""

    root: Path = Field(description="folder with the images; only ever read")
    layout: Literal["auto", "dicom", "nifti", "bids", "decathlon"] = Field(
        default="auto",
        description="dicom: any tree of DICOM files; nifti: images/ and, for masks, labels/; "
        "bids: participants.tsv; decathlon: dataset.json; auto: what the root looks like",
    )
    labels: Path | None = Field(
        default=None,
        description="CSV with a column patient, study or series, and label (a class) or mask (a NIfTI "
        "file below the root); for bids participants.tsv unless given",
    )
    label_column: str = Field(
        default="label", min_length=1, max_length=64, description="of the table of labels"
    )
    label_names: dict[str, str] = Field(
        default_factory=dict, description="this hospital's words for classes: word to class"
    )
    structures: dict[str, list[str]] = Field(
        default_factory=dict,
        description="class to the names (`GTVp*`, any case) that its segments and regions have here",
    )
    patients: Path | None = Field(
        default=None,
        description="nifti, decathlon: CSV with columns file,patient and, if known, "
        "sex,age,manufacturer; without it each file is a patient",
    )
    refresh: float = Field(
        default=600,
        ge=0,
        le=86_400,
        description="seconds for which a round trusts the last look at the folders",
    )


class Policy(Closed):
    """What this hospital allows. The stricter of experiment and policy wins."""

    tasks: list[str] | None = Field(default=None, description="allowed tasks; none means any")
    models: list[str] | None = Field(default=None, description="allowed models; none means any")
    least_patients: int = Field(default=5, ge=1, description="fewer to train on: refused")
    most_rounds: int | None = Field(default=None, ge=1, description="longer experiments: refused")
    most_local_steps: int | None = Field(default=None, ge=1, description="more are cut to this")


class Site(Closed):
    """A hospital's own side: read from its own disk, never sent."""

    hospital: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$", description="its name on the roster")
    kit: Path = Field(description="folder that the coordinator's provisioning made for this site")
    state: Path = Field(description="folder for pseudonym key, cache and logs; on a private disk")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1, le=256, description="CPU threads for training")
    workers: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="processes that prepare images while the model trains; none: as the device needs",
    )
    data: Data
    policy: Policy = Policy()


Schema = typing.TypeVar("Schema", bound=BaseModel)


def parse(schema: type[Schema], content: object, *, where: str = "") -> Schema:
    """Check `content` against `schema`.

    Args:
        where: what to put before a key in an error, such as a file's name.

    Raises:
        ConfigError: names the first wrong key, what is wrong with it, and the nearest known key or
            the allowed range.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
        # a key that is misspelt is also missing: say the first
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        raise ConfigError((f"{where}: " if where else "") + _say(schema, dict(first))) from None


def _say(schema: type[BaseModel], error: dict[str, Any]) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = list(_model_at(schema, path[:-1]).model_fields)
        return f"unknown key {key!r}{nearest(path[-1], known)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]) if not key else f"{key}: {error['ctx']['error']}"
    message = str(error["msg"])
    return f"{key} is {error['input']!r}: {message[0].lower()}{message[1:]}"


def _model_at(schema: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model class at a path of keys in `schema`."""
    for key in path:
        if key not in schema.model_fields:  # an index into a list
            continue
        annotation = schema.model_fields[key].annotation
        options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                schema = option
    return schema


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """`, did you mean 'x'?` for the known word most like `word`, or the list of all of them."""
    candidates = sorted(known)
    close = get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else f"; known: {', '.join(candidates)}"
