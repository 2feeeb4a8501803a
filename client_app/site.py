"""The site: the hospital's own configuration, read from its own disk and never sent.

A closed schema, as the experiment is: an unknown key is refused with the nearest known one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, Field, model_validator

from federation import review, state_version
from federation.schema import Closed, ConfigError, parse

SITE_VARIABLE = "CONSILIUM_SITE"  # path of the site's YAML, in the environment of its processes


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


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hours = Annotated[
    str,
    Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$", examples=["19:00-07:00"]),
]


ReviewerName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
ReviewerKey = Annotated[str, AfterValidator(lambda text: review.line(review.key(text)))]


class Policy(Closed):
    """What this hospital allows. The stricter of experiment and policy wins."""

    tasks: list[str] | None = Field(default=None, description="allowed tasks; none means any")
    models: list[str] | None = Field(default=None, description="allowed models; none means any")
    experiments: list[Sha256] | None = Field(
        default=None, description="approved experiments, by SHA-256; none means any"
    )
    code: Literal["installed", "reviewed", "any"] | list[Sha256] = Field(
        default="installed",
        description="code that may run: as installed here, or what reviewers signed, or bundles by "
        "SHA-256, or any",
    )
    reviewers: dict[ReviewerName, ReviewerKey] = Field(
        default_factory=dict,
        max_length=review.MOST,
        description="whose signatures of a run's code count: name to `ssh-ed25519` line; with them no "
        "code runs that they did not sign",
    )
    least_reviewers: int = Field(
        default=1, ge=1, description="of the reviewers, who must all have signed"
    )
    least_patients: int = Field(
        default=5,
        ge=1,
        description="fewer to train on: refused; of a private run privacy.patients counts",
    )
    most_rounds: int | None = Field(default=None, ge=1, description="longer experiments: refused")
    most_local_steps: int | None = Field(
        default=None, ge=1, description="more are cut to this; of a private run refused"
    )
    most_attempts: int = Field(
        default=3, ge=1, le=100, description="times that a private round is trained anew"
    )
    least_noise_multiplier: float = Field(default=0.5, gt=0, description="less σ: refused")
    most_sampling_rate: float = Field(default=0.5, gt=0, le=1, description="more q: refused")
    most_clipping_norm: float = Field(default=10.0, gt=0, description="more C: refused")
    most_images_per_patient: int = Field(default=16, ge=1, description="more k: refused")
    most_epsilon_a_run: float | None = Field(
        default=None, gt=0, description="ε of one run; more: refused"
    )
    largest_update_norm: float | None = Field(
        default=None, gt=0, description="L2 norm of a parameter update; larger ones are cut to it"
    )
    secure_aggregation: Literal["optional", "required"] = Field(
        default="optional", description="required: no run whose coordinator could read an update"
    )
    least_hospitals: int = Field(
        default=3, ge=3, description="sums in secret that may be opened with fewer in them: refused"
    )
    release: Literal["hospitals", "coordinator"] = Field(
        default="hospitals",
        description="of runs with ckks; coordinator: it may have the final model if the run asks for it",
    )
    smallest_group: int = Field(
        default=5,
        ge=1,
        description="exact figures, or counts by group, of fewer held-out patients do not leave",
    )
    hours: list[Hours] = Field(
        default_factory=list, description="of the day, local time, with requests served; none: all"
    )

    @model_validator(mode="after")
    def _reviewers_fit(self) -> Policy:
        keys = list(self.reviewers.values())
        if len(set(keys)) < len(keys):
            raise ValueError("reviewers: two of them have one key, and would count as two")
        if self.least_reviewers > max(1, len(keys)):
            raise ValueError(
                f"least_reviewers is {self.least_reviewers}, and reviewers has {len(keys)}: no code "
                "could run"
            )
        if self.code == "reviewed" and not keys:
            raise ValueError("code: reviewed needs reviewers, with their keys")
        if self.code == "any" and keys:
            raise ValueError("code: any with reviewers is called reviewed; write code: reviewed")
        return self

    def reviewer_keys(self) -> dict[str, Ed25519PublicKey]:
        """The reviewers' keys, by name."""
        return {name: review.key(text) for name, text in self.reviewers.items()}


class Privacy(Closed):
    """The hospital's promise to its patients, over all runs. With it only private runs are served."""

    patients: int = Field(
        ge=1,
        le=100_000_000,
        description="about how many train here: public, told to the coordinator, chosen once",
    )
    epsilon: float = Field(default=8.0, gt=0, le=1000, description="the budget, for all time")
    delta: float | None = Field(
        default=None, gt=0, le=1e-3, description="none: the smaller of 1e-5 and 1 / (10 patients)"
    )
    accountant: Literal["prv", "rdp"] = Field(
        default="prv", description="prv: the smaller of PRV and RDP; rdp: RDP alone"
    )
    ledger: Path | None = Field(default=None, description="none: ledger.sqlite in the state folder")
    answer_every: float = Field(
        default=5.0,
        ge=0,
        le=3600,
        description="answers leave so many seconds after the request, or a multiple of it",
    )
    public: Data | None = Field(
        default=None, description="public images, of which exact metrics may leave"
    )

    @property
    def budget_delta(self) -> float:
        """δ of the budget; well below 1 / patients, or one patient could be published outright."""
        return self.delta if self.delta is not None else min(1e-5, 1 / (10 * self.patients))


class Predict(Closed):
    """Of `hospital predict`."""

    model: Literal["global", "personal"] = Field(
        default="global",
        description="personal: this hospital's own model, or layers that stayed here",
    )


class Metrics(Closed):
    """Where Prometheus finds this hospital's metrics."""

    port: int = Field(ge=1, le=65535)
    address: str = Field(
        default="127.0.0.1",
        pattern=r"^[A-Za-z0-9.:-]+$",
        description="that the port is bound on; beyond this machine only in a network of your own",
    )


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
    predict: Predict = Predict()
    metrics: Metrics | None = Field(
        default=None, description="where hospital start serves metrics; none: nowhere"
    )
    privacy: Privacy | None = Field(
        default=None, description="the patients' budget; none: private runs are not served"
    )


def read_site(path: Path) -> Site:
    """A site whose state folder this code can open.

    Raises:
        ConfigError: as `parse_site`; or newer code made the state folder, or a restore into it was
            broken off.
    """
    site = parse_site(path)
    state_version.require(site.state, "hospital")
    return site


def parse_site(path: Path) -> Site:
    """A site's YAML; relative paths in it are relative to it.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value out of range.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"there is no site configuration {path}; copy one from configs/site/ and edit it"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    site = parse(Site, content, where=path.name)
    base = path.resolve().parent

    def absolute(relative: Path | None) -> Path | None:
        return None if relative is None else base / relative.expanduser()

    def absolute_data(data: Data) -> Data:
        paths = {key: absolute(getattr(data, key)) for key in ("root", "labels", "patients")}
        return data.model_copy(update=paths)

    privacy = site.privacy
    if privacy is not None:
        public = None if privacy.public is None else absolute_data(privacy.public)
        privacy = privacy.model_copy(update={"ledger": absolute(privacy.ledger), "public": public})
    return site.model_copy(
        update={
            "kit": absolute(site.kit),
            "state": absolute(site.state),
            "data": absolute_data(site.data),
            "privacy": privacy,
        }
    )
