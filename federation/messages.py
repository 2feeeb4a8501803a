"""What coordinator and hospital say to each other, one plain dataclass each.

How they travel is in `federation.wire`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # it imports torch
    from federation.fairness.layout import Layout

Arrays = dict[str, NDArray[Any]]

_HEADER_ALLOWANCE = 1 << 20  # bytes of names and shapes that a safetensors header may take


class Reason(StrEnum):
    """Why a hospital's answer is not part of a round. Fixed words: none can hold data."""

    # said by the hospital
    REFUSED_TASK = "refused_task"
    REFUSED_MODEL = "refused_model"
    REFUSED_ROUNDS = "refused_rounds"
    REFUSED_EXPERIMENT = "refused_experiment"
    REFUSED_CODE = "refused_code"
    REFUSED_PRIVACY = "refused_privacy"
    PRIVACY_REQUIRED = "privacy_required"
    SECURE_AGGREGATION_REQUIRED = "secure_aggregation_required"
    REFUSED_RELEASE = "refused_release"
    TOO_FEW_HOSPITALS = "too_few_hospitals"
    ROSTER_DIFFERS = "roster_differs"
    BAD_SIGNATURE = "bad_signature"
    BAD_KEY = "bad_key"
    BAD_SHARE = "bad_share"
    SURVIVORS_DIFFER = "survivors_differ"
    BOTH_SHARES = "both_shares"
    NO_KEYS = "no_keys"
    NO_MODEL = "no_model"
    NO_STATE = "no_state"
    OUTSIDE_HOURS = "outside_hours"
    NO_LEDGER = "no_ledger"
    LEDGER_UNUSABLE = "ledger_unusable"
    BUDGET_SPENT = "budget_spent"
    REPLAYED = "replayed"
    TOO_FEW_PATIENTS = "too_few_patients"
    NO_DATA = "no_data"
    BAD_EXPERIMENT = "bad_experiment"
    BAD_SITE = "bad_site"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    INTERNAL_ERROR = "internal_error"
    # found by the coordinator
    ABSENT = "absent"
    SUSPENDED = "suspended"
    UNAVAILABLE = "unavailable"
    CRASHED = "crashed"
    LATE = "late"
    MALFORMED = "malformed"
    WRONG_ROUND = "wrong_round"
    WRONG_NAMES = "wrong_names"
    WRONG_SHAPE = "wrong_shape"
    WRONG_DTYPE = "wrong_dtype"
    TOO_LARGE = "too_large"
    NOT_FINITE = "not_finite"
    NORM_TOO_LARGE = "norm_too_large"


class WireError(Exception):
    """Something that arrived is not what it has to be."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True)
class Lodged:
    """How far a hospital's ledger was when the coordinator last heard of it.

    A ledger without this charge is an older copy. It serves the hospital alone: the coordinator can
    neither read nor change a ledger, and a wrong word of it only stops its own run.

    Attributes:
        charges: how many there were.
        head: SHA-256 of the last, which stands for all before it.
    """

    charges: int
    head: str


class Phase(StrEnum):
    """Steps of a round; where nothing is summed in secret WORK alone. RELEASE comes after the last."""

    ADVERTISE = "advertise"
    SHARE = "share"
    WORK = "work"
    SIGN = "sign"
    OPEN = "open"
    RELEASE = "release"


@dataclass(frozen=True)
class Request:
    """What the coordinator asks of a hospital in one exchange.

    The hospital evaluates the model that it receives (if `evaluate`), then trains it (if `train`);
    one exchange serves both, because each costs seconds on Flower's engine.

    Attributes:
        base: the model comes as a difference to the one after this round; None: as it is.
        counted: the last round whose mean has this hospital's update, 0 before there is one; None where
            the strategy has hospitals remember nothing that the coordinator must agree with.
        scales: int16 little-endian, one exponent a segment (`federation.codec`); empty without codec.
        attempt: of the round's masks; 0 where their keys came with the round before.
        letter: what the phase needs, as `federation.secure_aggregation` writes it.
    """

    run: str
    round: int
    evaluate: bool
    train: bool
    lodged: Lodged | None = None
    base: int | None = None
    counted: int | None = None
    scales: bytes = b""
    phase: Phase = Phase.WORK
    attempt: int = 0
    letter: bytes = b""


@dataclass(frozen=True)
class Trained:
    """A hospital's training of one round: `update` is local model minus global model.

    Attributes:
        update: empty as long as it is only there as `encoded`.
        patients: trained on; under patient-level privacy the public size that the hospital declares.
        examples, loss, seconds: None under patient-level privacy, since none of them has noise.
        encoded: the update as the experiment's codec wrote it.
        steps: optimiser steps that were done; a policy may allow fewer than the experiment asks for.
        loss_before, loss_after: mean task loss of the received and of the trained model on the same
            batches of the training cases, where the strategy asks for it.
        All three are None under patient-level privacy, too.
    """

    update: Arrays
    patients: int
    examples: int | None = None
    loss: float | None = None
    seconds: float | None = None
    encoded: bytes | None = None
    steps: int | None = None
    loss_before: float | None = None
    loss_after: float | None = None


@dataclass(frozen=True)
class Evaluated:
    """The received model on a hospital's held-out patients, or on its public images."""

    metrics: dict[str, float]
    examples: int
    patients: int


@dataclass(frozen=True)
class Tallied:
    """A task's tally summed over a hospital's held-out patients, with noise (`federation.tasks.Tally`).

    Attributes:
        values: float64 (size,); negative ones occur, as noise does.
        noise: standard deviation of the noise on each value.
    """

    values: NDArray[np.float64]
    noise: float


@dataclass(frozen=True)
class Spent:
    """What a hospital says of its ledger: nothing in it depends on the patients' data.

    Attributes:
        epsilon: of all charges so far, this request's included.
        run_epsilon: of this run's alone.
        budget: ε that `epsilon` may not pass; both go with `delta`.
        lodged: for the next request.
    """

    epsilon: float
    run_epsilon: float
    budget: float
    delta: float
    accountant: str
    lodged: Lodged


@dataclass(frozen=True)
class Protected:
    """A hospital's part in a secure sum: nothing in it can be read alone.

    Attributes:
        letter: keys, shares or signatures, see `federation.secure_aggregation`.
        blob: its work under masks, or encrypted; empty in the phases without work.
    """

    letter: bytes
    blob: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What a hospital sends back: its round's work, or a reason why there is none.

    Attributes:
        counts: held-out cases by group, int64 (`federation.fairness.layout.Layout.size`,); None where
            nothing was evaluated or the experiment does not count. With noise under patient-level
            privacy, so some may be negative.
    """

    round: int
    trained: Trained | None = None
    evaluated: Evaluated | None = None
    tallied: Tallied | None = None
    counts: NDArray[np.int64] | None = field(default=None, compare=False)
    spent: Spent | None = None
    protected: Protected | None = None
    refused: Reason | None = None


@dataclass(frozen=True)
class Expected:
    """What an answer may hold: all else in it is refused.

    Attributes:
        update: the model's names, dtypes and shapes.
        metrics: the names that the task knows.
        private: whether the run has patient-level privacy: no exact figure comes with training.
        tally: length of the task's tally, where metrics come as noisy sums; else 0.
        encoded: bytes that an update may have at most, where a codec wrote it.
        protected: bytes that a part in a secure sum may have at most, where there is one: no other
            figure comes with it.
        counts: what counts by group are of; None where there are none.
    """

    update: Shape
    metrics: frozenset[str]
    private: bool = False
    tally: int = 0
    encoded: int | None = None
    protected: int | None = None
    counts: Layout | None = None


@dataclass(frozen=True)
class Shape:
    """Names, dtypes and shapes that a model or an update must have."""

    entries: Mapping[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def of(cls, arrays: Arrays) -> Shape:
        return cls({name: (str(array.dtype), array.shape) for name, array in arrays.items()})

    def largest_blob(self) -> int:
        """Bytes that a blob of this shape can take at most."""
        sizes = (
            np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in self.entries.values()
        )
        return sum(sizes) + _HEADER_ALLOWANCE

    def check(self, arrays: Arrays) -> None:
        """Raises:
        WireError: other names, dtypes or shapes than these, or a value that is not finite.
        """
        if arrays.keys() != self.entries.keys():
            raise WireError(Reason.WRONG_NAMES)
        for name, (dtype, shape) in self.entries.items():
            array = arrays[name]
            if str(array.dtype) != dtype:
                raise WireError(Reason.WRONG_DTYPE)
            if array.shape != shape:
                raise WireError(Reason.WRONG_SHAPE)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise WireError(Reason.NOT_FINITE)
