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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors

from federation.schema import ConfigError
from server_app.report.groups import by_group
from server_app.report.lenient import (
    as_intervals,
    as_list,
    as_mapping,
    as_number,
    as_numbers,
    as_text,
    as_texts,
    as_time,
    as_whole,
)
from server_app.report.run import (
    Answer,
    Evaluation,
    LeftOut,
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
    code, task = as_mapping(recorded.get("code")), as_mapping(recorded.get("task"))
    experiment = _json_file(folder / "experiment.json")
    masked = bool(experiment.get("secure_aggregation"))
    rounds, evaluations, broken_lines = _read_metrics(folder / "metrics.jsonl", masked)
    return Run(
        name=as_text(recorded.get("run")) or folder.resolve().name,
        experiment=experiment,
        experiment_text=_read_text(folder / "experiment.json").strip(),
        experiment_sha256=as_text(recorded.get("experiment_sha256")),
        code_version=as_text(code.get("version")),
        code_commit=as_text(code.get("commit")),
        code_dirty=code["dirty"] if isinstance(code.get("dirty"), bool) else None,
        code_bundle_sha256=as_text(code.get("bundle_sha256")),
        started=as_time(recorded.get("started")),
        updated=as_time(status.get("updated")),
        user=as_text(recorded.get("user")),
        federation=as_text(recorded.get("federation")),
        flower_runs=tuple(map(str, as_list(recorded.get("flower_runs")))),
        task_metrics=as_texts(task.get("metrics")),
        task_headline=as_text(task.get("headline")),
        classes=as_texts(task.get("classes")),
        state=as_text(status.get("state")) or "unknown",
        message=as_text(status.get("message")),
        planned_rounds=_first(as_whole(status.get("rounds")), as_whole(experiment.get("rounds"))),
        rounds=rounds,
        evaluations=evaluations,
        broken_lines=broken_lines,
        model_bytes=_model_bytes(folder / "model.safetensors"),
        parameters=_parameters(folder / "model.safetensors"),
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
            line = as_mapping(json.loads(text))
        except (ValueError, RecursionError):
            broken += 1
            continue
        number = as_whole(line.get("round"))
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
            status=as_text(told.get("status")) or "unknown",
            reason=as_text(told.get("reason")),
            attempts=as_whole(told.get("attempts")),
            examples=as_whole(told.get("examples")),
            patients=as_whole(told.get("patients")),
            loss=as_number(told.get("loss")),
            seconds=as_number(told.get("seconds")),
            bytes_down=as_whole(told.get("bytes_down")),
            bytes_up=as_whole(told.get("bytes_up")),
            update_norm=as_number(told.get("update_norm")),
            spent=_spent(told.get("spent")),
        )
        for hospital, told in _by_hospital(line)
        if told.get("role") != "left_out"  # it is measured, and never trains
    )
    started, seconds = as_time(line.get("started")), as_number(line.get("seconds"))
    summed = None
    if told := as_mapping(line.get("summed")):
        summed = Summed(
            hospitals=as_texts(told.get("hospitals")),
            patients=as_whole(told.get("patients")),
            examples=as_whole(told.get("examples")),
            loss=as_number(told.get("loss")),
        )
    steps = {step: took for step, took in as_numbers(line.get("steps")).items() if took >= 0}
    return Round(number, started, seconds, as_number(line.get("norm")), answers, summed, steps)


def _evaluation(number: int, line: Mapping[str, Any]) -> Evaluation:
    measured = tuple(
        Measured(
            hospital=hospital,
            status=as_text(told.get("status")) or "unknown",
            reason=as_text(told.get("reason")),
            examples=as_whole(told.get("examples")),
            patients=as_whole(told.get("patients")),
            metrics=as_numbers(told.get("metrics")),
            intervals=as_intervals(told.get("intervals")),
            spent=_spent(told.get("spent")),
        )
        for hospital, told in _by_hospital(line)
    )
    worst = {}
    for metric, told in as_mapping(line.get("worst")).items():
        hospital, value = (
            as_text(as_mapping(told).get("hospital")),
            as_number(as_mapping(told).get("value")),
        )
        if hospital is not None and value is not None:
            worst[metric] = Worst(hospital, value)
    overall, intervals = (
        as_numbers(line.get("overall")),
        as_intervals(line.get("overall_intervals")),
    )
    over = as_texts(line["summed_over"]) if isinstance(line.get("summed_over"), list) else None
    held_out = as_whole(line.get("held_out_patients"))
    groups, out = by_group(line.get("fairness")), _left_out(line.get("left_out"), measured)
    measured = tuple(one for one in measured if out is None or one.hospital != out.hospital)
    return Evaluation(
        number, measured, overall, worst, intervals, over, held_out, groups, left_out=out
    )


def _left_out(value: object, measured: Iterable[Measured]) -> LeftOut | None:
    """The hospital that never trains, with what its row among the others tells."""
    told = as_mapping(value)
    hospital = as_text(told.get("hospital"))
    if hospital is None:
        return None
    row = next((one for one in measured if one.hospital == hospital), None)
    metrics = as_numbers(told.get("metrics")) or (row.metrics if row else {})
    if row is None:
        return LeftOut(hospital, metrics)
    reason = None if row.ok else row.reason or row.status
    return LeftOut(hospital, metrics, row.examples, row.patients, reason)


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
    groups = None if told.groups is None else replace(told.groups, hospitals={})
    return replace(told, measured=measured, worst={}, groups=groups, left_out=None)


def _model_bytes(path: Path) -> int | None:
    held = _of_arrays(path, lambda array: int(array.nbytes))
    return held or None  # the hospitals hold it


def _parameters(path: Path) -> int | None:
    return _of_arrays(path, lambda array: int(array.size) if array.dtype.kind == "f" else 0) or None


def _of_arrays(path: Path, quantity: Callable[[Any], int]) -> int | None:
    """The sum of a quantity over the file's arrays; None where it cannot be read."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return sum(quantity(file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, TypeError, ValueError):
        return None


def _spent(value: object) -> Spent | None:
    told = as_mapping(value)
    if not told:
        return None
    return Spent(
        epsilon=as_number(told.get("epsilon")),
        run_epsilon=as_number(told.get("run_epsilon")),
        budget=as_number(told.get("budget")),
        delta=as_number(told.get("delta")),
        accountant=as_text(told.get("accountant")),
        charges=as_whole(told.get("charges")),
    )


def _by_hospital(line: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (name, as_mapping(told)) for name, told in sorted(as_mapping(line.get("hospitals")).items())
    ]


def _read_text(path: Path) -> str:
    """The file's text; bytes cut in the middle of a character do not stop the rest."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json_file(path: Path) -> Mapping[str, Any]:
    try:
        return as_mapping(json.loads(_read_text(path) or "{}"))
    except (ValueError, RecursionError):
        return {}


def _first(*candidates: int | None) -> int | None:
    return next((candidate for candidate in candidates if candidate is not None), None)
