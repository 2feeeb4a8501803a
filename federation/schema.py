"""The experiment, the coordinator's, as a closed, typed schema (`federation.closed`).

It is refused, by name and with the nearest known key, when it holds a key that is not here or a value
out of range. It travels as one canonical JSON string with its SHA-256, so that what ran can be read back
and run again. The hospital's side is in `client_app.site`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from federation.closed import Closed, Component, ConfigError, nearest, parse

__all__ = [
    "AGES",
    "Attribute",
    "Closed",
    "Codec",
    "Component",
    "ConfigError",
    "Evaluation",
    "Experiment",
    "Fairness",
    "Participation",
    "PatientDP",
    "SecureAggregation",
    "Training",
    "Unit",
    "nearest",
    "parse",
]


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
        default=None,
        gt=0,
        description="an update with a larger L2 norm over parameters leaves the round; under a secure "
        "sum its hospital shortens it to this",
    )


class Evaluation(Closed):
    """Which share of a hospital's patients is never trained on, and how often it is looked at."""

    held_out: float = Field(default=0.25, ge=0, lt=1, description="share of the patients")
    every: int = Field(default=1, ge=1, description="evaluate each so many rounds, and at the end")
    leave_out: str | None = Field(
        default=None, description="a hospital that is evaluated at and never trains"
    )

    @field_validator("leave_out")
    @classmethod
    def _said(cls, name: str | None) -> str | None:
        if name is not None and not name.replace("-", "").isalnum():
            raise ValueError(
                "say which hospital, by its name on the roster: evaluation.leave_out=NAME"
            )
        return name


class PatientDP(Closed):
    """Differential privacy whose unit is the patient; `federation.privacy` says what it promises.

    Either `noise_multiplier` or `epsilon` is given; for an `epsilon` the coordinator finds the noise
    before anything is sent (`federation.privacy.accounting.with_noise`).
    """

    name: Literal["patient_dp"] = "patient_dp"
    noise_multiplier: float | None = Field(
        default=None, ge=0.1, le=1000, description="σ: noise of a step, in clipping norms"
    )
    epsilon: float | None = Field(
        default=None, gt=0, le=100, description="ε that the whole run may cost a patient"
    )
    delta: float = Field(default=1e-5, gt=0, le=1e-3, description="δ that goes with `epsilon`")
    sampling_rate: float = Field(
        default=0.2, gt=0, le=1, description="q: chance of each patient to be in a step"
    )
    clipping_norm: float = Field(
        default=1.0, gt=0, le=1e6, description="C: largest L2 norm of one patient's gradient"
    )
    images_per_patient: int = Field(
        default=2, ge=1, le=256, description="k: most images of a patient in a step"
    )
    augmentations: int = Field(
        default=1, ge=1, le=64, description="of each image in a step, inside the clip"
    )
    engine: Literal["loop", "per_sample"] = Field(
        default="loop", description="one backward pass a patient, or Opacus's gradients of samples"
    )
    trainable: Literal["all", "head"] = Field(
        default="all", description="head: the last layer alone, for few patients"
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the mean over rounds that is released; 0: none",
    )
    metrics: Literal["none", "noisy", "public"] = Field(
        default="none",
        description="noisy: sums over held-out patients with noise, charged; public: of the images "
        "that a hospital declares public",
    )
    metrics_noise_multiplier: float = Field(
        default=10.0, ge=0.1, le=1e6, description="noise of these sums, in patients"
    )

    @model_validator(mode="after")
    def _has_noise(self) -> Self:
        if self.noise_multiplier is None and self.epsilon is None:
            raise ValueError("give noise_multiplier, or epsilon, for which it is found")
        return self


class Codec(Closed):
    """How an update becomes few bytes, in this order; `federation.codec` has the stages.

    exchange (which parameters travel) → sparsify (which of their values) → quantise → pack → zstd.
    """

    exchange: Component = Component(name="all")
    sparsify: Component | None = Field(default=None, description="none: all values travel")
    quantise: Component | None = Field(default=None, description="none: as float32")
    error_feedback: bool = Field(
        default=True, description="what a round's update lost is added to the next, at the hospital"
    )
    down: Literal["full", "differences"] = Field(
        default="differences",
        description="differences: a hospital that holds the last model gets what changed, quantised",
    )
    down_bits: int = Field(default=8, ge=4, le=16, description="of a difference's values")
    zstd_level: int = Field(default=3, ge=1, le=19)


class SecureAggregation(Closed):
    """Sums that the coordinator cannot take apart; see `federation.secure_aggregation`."""

    name: Literal["masks", "ckks"]
    least: int = Field(
        default=3, ge=3, le=1000, description="fewest hospitals whose sum may be opened"
    )
    release: Literal["hospitals", "coordinator"] = Field(
        default="hospitals", description="of ckks: who has the final model; masks show all to both"
    )


Attribute = Literal["sex", "age_band", "manufacturer", "field_strength", "view", "breast_density"]
Unit = Literal["task", "image", "patient"]

# Years where the bands that hospitals know begin (`client_app.imaging.attributes`).
AGES = (18, 40, 60, 80)


class Fairness(Closed):
    """By which groups a run is measured, and how finely; `federation.fairness` has the arithmetic.

    The order of `attributes` matters where hospitals withhold small groups: what is named first is
    withheld last.
    """

    attributes: tuple[Attribute, ...] = Field(
        default=("sex", "age_band", "manufacturer"),
        min_length=1,
        description="first ones kept longest",
    )
    pairs: bool = Field(default=False, description="also groups by two attributes together")
    unit: Unit = Field(
        default="task", description="what is counted: as the task measures, images or patients"
    )
    age_cuts: tuple[int, ...] = Field(
        default=AGES, min_length=1, description="years where bands begin, of 18, 40, 60 and 80"
    )
    manufacturers: tuple[str, ...] = Field(
        default=("siemens", "ge", "philips", "canon", "fujifilm", "agfa", "carestream", "hologic"),
        min_length=1,
        max_length=32,
        description="by name; all others are one group",
    )
    score_bins: int = Field(default=32, ge=8, le=256, multiple_of=2)
    dice_bins: int = Field(default=20, ge=5, le=100)
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="probability from which a case is called positive"
    )
    operating_point: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description="specificity, or sensitivity, at which the other is read",
    )
    least_cases: int = Field(
        default=10, ge=1, description="of each class; groups with fewer enter no gap"
    )
    noise_multiplier: float | None = Field(
        default=None,
        ge=0.1,
        le=1e6,
        description="under patient-level privacy: noise of the counts, in patients, charged; none: no "
        "counts leave",
    )

    @field_validator("attributes", "manufacturers")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a name stands there twice")
        return names

    @field_validator("manufacturers")
    @classmethod
    def _words(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not name.isidentifier() or name in ("other", "unknown", "withheld"):
                raise ValueError("manufacturers are single words, not other, unknown or withheld")
        return names

    @field_validator("age_cuts")
    @classmethod
    def _known_ages(cls, cuts: tuple[int, ...]) -> tuple[int, ...]:
        if not set(cuts) <= set(AGES) or sorted(set(cuts)) != list(cuts):
            raise ValueError("age_cuts are some of 18, 40, 60 and 80, in this order")
        return cuts


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
    harmonisation: tuple[Component, ...] = Field(
        default=(),
        description="in this order, what is done to images against scanners' differences",
    )
    evaluation: Evaluation = Evaluation()
    fairness: Fairness | None = Field(default=None, description="none: nothing by group")
    privacy: PatientDP | None = None
    codec: Codec | None = None
    secure_aggregation: SecureAggregation | None = None

    @model_validator(mode="after")
    def _enough_hospitals(self) -> Self:
        chosen = self.participation.hospitals
        if chosen is not None and len(chosen) < self.participation.least:
            raise ValueError(
                f"participation.least is {self.participation.least}, but participation.hospitals "
                f"names only {len(chosen)}"
            )
        return self

    @model_validator(mode="after")
    def _left_out_is_measured(self) -> Self:
        name, participation = self.evaluation.leave_out, self.participation
        chosen = participation.hospitals
        if name is None:
            return self
        if chosen is not None and name not in chosen:
            raise ValueError(
                f"evaluation.leave_out is {name!r}, which participation.hospitals does not name: add "
                "it there, since it is asked for figures"
            )
        if chosen is not None and len(chosen) - 1 < participation.least:
            raise ValueError(
                f"participation.least is {participation.least}, but without evaluation.leave_out="
                f"{name} participation.hospitals names only {len(chosen) - 1} that train"
            )
        if not self.evaluates:
            raise ValueError(
                f"evaluation.leave_out={name} is there to be measured, and privacy.metrics=none tells "
                "no figures: choose privacy.metrics=noisy or public, or leave it null"
            )
        if self.privacy is None and self.evaluation.held_out == 0:
            raise ValueError(
                f"evaluation.leave_out={name} is measured on its held-out patients, and "
                "evaluation.held_out=0 leaves none: choose a share such as 0.25"
            )
        return self

    @model_validator(mode="after")
    def _clipped_once(self) -> Self:
        if self.privacy is not None and self.training.gradient_clipping_norm is not None:
            raise ValueError(
                "training.gradient_clipping_norm has no place beside privacy=patient_dp, whose "
                "privacy.clipping_norm bounds each patient's gradient: leave it null"
            )
        return self

    @model_validator(mode="after")
    def _noise_where_there_is_privacy(self) -> Self:
        if self.fairness is None or self.fairness.noise_multiplier is None:
            return self
        if self.privacy is None:
            raise ValueError(
                "fairness.noise_multiplier is noise under privacy=patient_dp, which this experiment "
                "has not: leave it null, as counts are exact without"
            )
        if self.privacy.metrics == "none":
            raise ValueError(
                "fairness.noise_multiplier says how counts leave, and privacy.metrics=none lets no "
                "figure leave: choose privacy.metrics=noisy or public, or leave it null"
            )
        return self

    @property
    def evaluates(self) -> bool:
        """Whether hospitals are asked how good the model is."""
        return self.privacy is None or self.privacy.metrics != "none"

    @property
    def counted(self) -> Fairness | None:
        """How cases are counted by group; None where no counts leave.

        Under patient-level privacy they do with noise alone.
        """
        if self.fairness is None or not self.evaluates:
            return None
        noise = self.fairness.noise_multiplier
        return None if self.privacy is not None and noise is None else self.fairness

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
