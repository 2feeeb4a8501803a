"""A run's folder → a `Run`.

The report must be readable while the run still goes on, after a crash, and for runs of an older
version: any file but one may be missing, any field may be missing or null, fields not known here
are passed over, and a line that was cut off is counted and set aside. Nothing is guessed in its
place: what is not known is `None`.

Of a run under masks nobody knows a single hospital's figures. Should a row have such all the same, they
are passed over here, so that no table or figure can show what nobody can vouch for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import safetensors

from federation.schema import ConfigError
from server_app.report.run import (
    Answer,
    Evaluation,
    Interval,
    Measured,
    Round,
    Run,
    Spent,
    Summed,
    Worst,
)

FILES = ("run.json", "experiment.json", "status.json", "metrics.jsonl")


class RunFolderError(ConfigError):
    """A folder that no report can be made of; the text says why and what to do."""


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
    masked = bool(experiment.get("secure_aggregation"))
    rounds, evaluations, broken_lines = _read_metrics(folder / "metrics.jsonl", masked)
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
        model_bytes=_model_bytes(folder / "model.safetensors"),
    )


def _read_metrics(
    path: Path, masked: bool
) -> tuple[tuple[Round, ...], tuple[Evaluation, ...], int]:
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
            made = _round(number, line)
            rounds[number] = _together(made) if masked or made.summed is not None else made
        elif line.get("kind") == "evaluation":
            told = _evaluation(number, line)
            alone = not masked and told.summed_over is None
            evaluations[number] = told if alone else _measured_together(told)
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
            spent=_spent(told.get("spent")),
        )
        for hospital, told in _by_hospital(line)
    )
    started, seconds = _time(line.get("started")), _number(line.get("seconds"))
    summed = None
    if told := _mapping(line.get("summed")):
        summed = Summed(
            hospitals=_texts(told.get("hospitals")),
            patients=_whole(told.get("patients")),
            examples=_whole(told.get("examples")),
            loss=_number(told.get("loss")),
        )
    steps = {step: took for step, took in _numbers(line.get("steps")).items() if took >= 0}
    return Round(number, started, seconds, _number(line.get("norm")), answers, summed, steps)


def _evaluation(number: int, line: Mapping[str, Any]) -> Evaluation:
    measured = tuple(
        Measured(
            hospital=hospital,
            status=_text(told.get("status")) or "unknown",
            reason=_text(told.get("reason")),
            examples=_whole(told.get("examples")),
            patients=_whole(told.get("patients")),
            metrics=_numbers(told.get("metrics")),
            intervals=_intervals(told.get("intervals")),
            spent=_spent(told.get("spent")),
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
    overall, intervals = _numbers(line.get("overall")), _intervals(line.get("overall_intervals"))
    over = _texts(line["summed_over"]) if isinstance(line.get("summed_over"), list) else None
    held_out = _whole(line.get("held_out_patients"))
    return Evaluation(number, measured, overall, worst, intervals, over, held_out)


def _together(made: Round) -> Round:
    """A round of which the sum is known, and of each hospital what it moved and what its ledger says."""
    unknown: dict[str, Any] = dict.fromkeys(
        ("examples", "patients", "loss", "seconds", "update_norm")
    )
    return replace(made, answers=tuple(replace(answer, **unknown) for answer in made.answers))


def _measured_together(told: Evaluation) -> Evaluation:
    measured = tuple(
        replace(one, examples=None, patients=None, metrics={}, intervals={})
        for one in told.measured
    )
    return replace(told, measured=measured, worst={})


def _model_bytes(path: Path) -> int | None:
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            held = sum(int(file.get_tensor(name).nbytes) for name in file.keys())  # noqa: SIM118
            return held or None  # the hospitals hold it
    except (safetensors.SafetensorError, OSError, TypeError, ValueError):
        return None


def _spent(value: object) -> Spent | None:
    told = _mapping(value)
    if not told:
        return None
    return Spent(
        epsilon=_number(told.get("epsilon")),
        run_epsilon=_number(told.get("run_epsilon")),
        budget=_number(told.get("budget")),
        delta=_number(told.get("delta")),
        accountant=_text(told.get("accountant")),
        charges=_whole(told.get("charges")),
    )


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


def _intervals(value: object) -> dict[str, Interval]:
    """Pairs of finite numbers, low and high."""
    found = {name: tuple(map(_number, _list(item))) for name, item in _mapping(value).items()}
    return {
        name: (pair[0], pair[1])
        for name, pair in found.items()
        if len(pair) == 2 and pair[0] is not None and pair[1] is not None
    }


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
