"""A run's folder as frozen dataclasses.

The report must be readable while the run still goes on, after a crash, and for runs of an older
version: any file but one may be missing, any field may be missing or null, fields not known here
are passed over, and a line that was cut off is counted and set aside. Nothing is guessed in its
place: what is not known is `None`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from federation.schema import ConfigError

FILES = ("run.json", "experiment.json", "status.json", "metrics.jsonl")


class RunFolderError(ConfigError):
    """A folder that no report can be made of; the text says why and what to do."""


@dataclass(frozen=True)
class Answer:
    """One hospital's part in one training round.

    Attributes:
        status: `ok`, or in words what happened instead.
        reason: code from the fixed list of reasons, where the hospital left the round.
        examples, patients: trained on.
        loss: mean training loss.
        seconds: of training at the hospital.
        bytes_down, bytes_up: size of the model it got and of the update it sent.
        update_norm: L2 norm of its update.
    """

    hospital: str
    status: str
    reason: str | None = None
    attempts: int | None = None
    examples: int | None = None
    patients: int | None = None
    loss: float | None = None
    seconds: float | None = None
    bytes_down: int | None = None
    bytes_up: int | None = None
    update_norm: float | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class Round:
    """One training round; `norm` is the L2 norm of the step of the global model."""

    number: int
    started: datetime | None
    seconds: float | None
    norm: float | None
    answers: tuple[Answer, ...]

    def total(self, quantity: str) -> float | None:
        """The sum of one of `Answer`'s quantities over hospitals; None where nobody told it."""
        known = [v for a in self.answers if (v := getattr(a, quantity)) is not None]
        return sum(known) if known else None

    def longest(self) -> float | None:
        """Seconds of the slowest hospital's training."""
        known = [answer.seconds for answer in self.answers if answer.seconds is not None]
        return max(known) if known else None


@dataclass(frozen=True)
class Measured:
    """The global model on one hospital's held-out patients."""

    hospital: str
    status: str
    reason: str | None
    examples: int | None
    patients: int | None
    metrics: Mapping[str, float]

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class Worst:
    """The hospital that a model serves worst by a metric."""

    hospital: str
    value: float


@dataclass(frozen=True)
class Evaluation:
    """The global model after a round (round 0: untrained) on all hospitals' held-out patients."""

    round: int
    measured: tuple[Measured, ...]
    overall: Mapping[str, float]
    worst: Mapping[str, Worst]

    def values(self, metric: str) -> dict[str, float]:
        """The metric by hospital, where it is known."""
        return {m.hospital: m.metrics[metric] for m in self.measured if metric in m.metrics}


@dataclass(frozen=True)
class Run:
    """All that a run's folder tells.

    Attributes:
        experiment: the experiment as plain JSON; empty if the file is missing.
        experiment_text: the same, character for character as it ran.
        experiment_sha256: what the run recorded; compare with `experiment_intact`.
        broken_lines: lines of metrics.jsonl that could not be read.
        evaluations, rounds: by number; of a round that was repeated after a restart, the last.
    """

    name: str
    experiment: Mapping[str, Any] = field(default_factory=dict)
    experiment_text: str = ""
    experiment_sha256: str | None = None
    code_version: str | None = None
    code_commit: str | None = None
    code_dirty: bool | None = None
    code_bundle_sha256: str | None = None
    started: datetime | None = None
    updated: datetime | None = None
    user: str | None = None
    federation: str | None = None
    flower_runs: tuple[str, ...] = ()
    task_metrics: tuple[str, ...] = ()
    task_headline: str | None = None
    classes: tuple[str, ...] = ()
    state: str = "unknown"
    message: str | None = None
    planned_rounds: int | None = None
    rounds: tuple[Round, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    broken_lines: int = 0

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Every hospital that any line names, in alphabetical order."""
        trained = {answer.hospital for r in self.rounds for answer in r.answers}
        return tuple(sorted(trained | {m.hospital for e in self.evaluations for m in e.measured}))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics with at least one value: the task's in its order, headline first, then others."""
        seen = {name for e in self.evaluations for m in e.measured for name in m.metrics}
        seen |= {name for e in self.evaluations for name in e.overall}
        first = (self.task_headline, *self.task_metrics)
        known = [name for name in dict.fromkeys(first) if name in seen and name is not None]
        return (*known, *sorted(seen - set(known)))

    @property
    def headline(self) -> str | None:
        """The metric that models are compared by (larger is better)."""
        return self.task_headline or next(iter(self.metrics), None)

    @property
    def rounds_done(self) -> int:
        return self.rounds[-1].number if self.rounds else 0

    def last_evaluation(self, metric: str | None) -> Evaluation | None:
        """The last evaluation that has a value of the metric from anyone."""
        if metric is None:
            return None
        found = [e for e in self.evaluations if metric in e.overall or e.values(metric)]
        return found[-1] if found else None

    def worst_hospital(self) -> Worst | None:
        """Who is served worst by the last model, by the headline metric: larger is better."""
        return self.worst_by(self.headline, larger_is_better=True)

    def worst_by(self, metric: str | None, *, larger_is_better: bool | None) -> Worst | None:
        """Who is served worst by the last model, by a metric.

        What the run recorded, or else the extreme value; without a direction, nobody.
        """
        evaluation = self.last_evaluation(metric)
        if evaluation is None or metric is None:
            return None
        if metric in evaluation.worst:
            return evaluation.worst[metric]
        values = evaluation.values(metric)
        if larger_is_better is None or not values:
            return None
        extreme = min(values.values()) if larger_is_better else max(values.values())
        return Worst(min(name for name in values if values[name] == extreme), extreme)

    @property
    def experiment_intact(self) -> bool | None:
        """Whether experiment.json has the recorded SHA-256; None if either is missing."""
        if not self.experiment_text or self.experiment_sha256 is None:
            return None
        return hashlib.sha256(self.experiment_text.encode()).hexdigest() == self.experiment_sha256


def read_run(folder: Path) -> Run:
    """Read `experiment.json`, `run.json`, `status.json` and `metrics.jsonl` of a run's folder.

    Raises:
        RunFolderError: no such folder, or none of the four files is in it.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder; give the folder of a run, runs/RUN")
    if not any((folder / name).is_file() for name in FILES):
        raise RunFolderError(
            f"{folder} is not the folder of a run: it holds none of {', '.join(FILES)}"
        )
    recorded = _json_file(folder / "run.json")
    status = _json_file(folder / "status.json")
    code, task = _mapping(recorded.get("code")), _mapping(recorded.get("task"))
    experiment = _json_file(folder / "experiment.json")
    rounds, evaluations, broken_lines = _read_metrics(folder / "metrics.jsonl")
    return Run(
        name=_text(recorded.get("run")) or folder.resolve().name,
        experiment=experiment,
        experiment_text=_read_text(folder / "experiment.json").strip(),
        experiment_sha256=_text(recorded.get("experiment_sha256")),
        code_version=_text(code.get("version")),
        code_commit=_text(code.get("commit")),
        code_dirty=code["dirty"] if isinstance(code.get("dirty"), bool) else None,
        code_bundle_sha256=_text(code.get("bundle_sha256")),
        started=_time(recorded.get("started")),
        updated=_time(status.get("updated")),
        user=_text(recorded.get("user")),
        federation=_text(recorded.get("federation")),
        flower_runs=tuple(map(str, _list(recorded.get("flower_runs")))),
        task_metrics=_texts(task.get("metrics")),
        task_headline=_text(task.get("headline")),
        classes=_texts(task.get("classes")),
        state=_text(status.get("state")) or "unknown",
        message=_text(status.get("message")),
        planned_rounds=_first(_whole(status.get("rounds")), _whole(experiment.get("rounds"))),
        rounds=rounds,
        evaluations=evaluations,
        broken_lines=broken_lines,
    )


def _read_metrics(path: Path) -> tuple[tuple[Round, ...], tuple[Evaluation, ...], int]:
    rounds: dict[int, Round] = {}
    evaluations: dict[int, Evaluation] = {}
    broken = 0
    for text in _read_text(path).split("\n"):  # and at no other separator
        if not text.strip():
            continue
        try:
            line = _mapping(json.loads(text))
        except (ValueError, RecursionError):
            broken += 1
            continue
        number = _whole(line.get("round"))
        if number is None:
            broken += 1
        elif line.get("kind") == "round":
            rounds[number] = _round(number, line)
        elif line.get("kind") == "evaluation":
            evaluations[number] = _evaluation(number, line)
    return (
        tuple(rounds[number] for number in sorted(rounds)),
        tuple(evaluations[number] for number in sorted(evaluations)),
        broken,
    )


def _round(number: int, line: Mapping[str, Any]) -> Round:
    answers = tuple(
        Answer(
            hospital=hospital,
            status=_text(told.get("status")) or "unknown",
            reason=_text(told.get("reason")),
            attempts=_whole(told.get("attempts")),
            examples=_whole(told.get("examples")),
            patients=_whole(told.get("patients")),
            loss=_number(told.get("loss")),
            seconds=_number(told.get("seconds")),
            bytes_down=_whole(told.get("bytes_down")),
            bytes_up=_whole(told.get("bytes_up")),
            update_norm=_number(told.get("update_norm")),
        )
        for hospital, told in _by_hospital(line)
    )
    started, seconds = _time(line.get("started")), _number(line.get("seconds"))
    return Round(number, started, seconds, _number(line.get("norm")), answers)


def _evaluation(number: int, line: Mapping[str, Any]) -> Evaluation:
    measured = tuple(
        Measured(
            hospital=hospital,
            status=_text(told.get("status")) or "unknown",
            reason=_text(told.get("reason")),
            examples=_whole(told.get("examples")),
            patients=_whole(told.get("patients")),
            metrics=_numbers(told.get("metrics")),
        )
        for hospital, told in _by_hospital(line)
    )
    worst = {}
    for metric, told in _mapping(line.get("worst")).items():
        hospital, value = (
            _text(_mapping(told).get("hospital")),
            _number(_mapping(told).get("value")),
        )
        if hospital is not None and value is not None:
            worst[metric] = Worst(hospital, value)
    return Evaluation(number, measured, _numbers(line.get("overall")), worst)


def _by_hospital(line: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (name, _mapping(told)) for name, told in sorted(_mapping(line.get("hospitals")).items())
    ]


def _read_text(path: Path) -> str:
    """The file's text; bytes cut in the middle of a character do not stop the rest."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json_file(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(_read_text(path) or "{}"))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text for item in _list(value) if (text := _text(item)) is not None)


def _number(value: object) -> float | None:
    """A finite number, or None: NaN and infinity are nothing that can be shown or drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _numbers(value: object) -> dict[str, float]:
    pairs = ((name, _number(item)) for name, item in _mapping(value).items())
    return {name: number for name, number in pairs if number is not None}


def _whole(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(_text(value) or "")
    except ValueError:
        return None


def _first(*candidates: int | None) -> int | None:
    return next((candidate for candidate in candidates if candidate is not None), None)
