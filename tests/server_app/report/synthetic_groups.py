"""Evaluations by group, made of synthetic cases by the arithmetic that a run uses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from federation.fairness import cases, counts, suppression
from federation.fairness.layout import Layout
from federation.schema import Experiment, Fairness
from federation.tasks import Prediction, Task
from server_app.fairness import Counted
from tests.federation.fairness.drawn import CHEST, hospital, segmented
from tests.server_app.report.synthetic_run import HOSPITALS, Line, experiment, write_run

SMALLEST = 5
PATIENTS = {"north": 260, "east": 180, "south": 120, "west": 45}


def fairness(
    options: Fairness,
    answers: Mapping[str, list[Prediction]],
    *,
    task: Task = CHEST,
    round_: int = 1,
    in_secret: bool = False,
    noise: float = 0.0,
) -> Line:
    """The key `fairness` of these predictions; a hospital of too few patients sends nothing."""
    layout = Layout.of(options, task)
    vectors = {}
    for name, own in answers.items():
        left = suppression.withhold(cases.of_predictions(own, task, layout), layout, SMALLEST)
        if left is not None:
            vectors[name] = counts.count(left, layout)
    found = Counted(layout, seed=7, noise=noise).of_each(vectors, round_) or {}
    return found | {"hospitals": {}} if in_secret else found


def predictions(
    task: Task, round_: int, patients: Mapping[str, int] = PATIENTS
) -> dict[str, list[Prediction]]:
    """Of hospitals whose model is better in later rounds, and for women than for men."""
    grown = 1 - math.exp(-(round_ + 0.2) / 3)
    told = {}
    for index, (name, count) in enumerate(patients.items()):
        generator = np.random.default_rng([11, index])
        told[name] = [
            _answered(one, task, grown, generator) for one in hospital(generator, count, task=CHEST)
        ]
    return told


def _answered(
    drawn: Prediction, task: Task, grown: float, generator: np.random.Generator
) -> Prediction:
    easy = drawn.attributes["sex"] == "female"
    if task.kind == "classification":
        told = drawn.outcome * grown * (1.0 if easy else 0.55)
        return replace(drawn, outcome=told + torch.tensor(generator.normal(0, 0.4, 2)))
    dices = np.clip(generator.normal(0.85 * grown + 0.04 * easy, 0.08, 2), 0, 1)
    one = segmented(dices.tolist(), **drawn.attributes)
    return replace(one, patient=drawn.patient)


def write_run_by_group(
    folder: Path,
    *,
    task: Task = CHEST,
    rounds: int = 4,
    in_secret: bool = False,
    patients: Mapping[str, int] = PATIENTS,
    ran: Experiment | None = None,
    **options: Any,
) -> list[Line]:
    """Write the files of a run whose evaluations are counted by group; the lines of metrics.jsonl."""
    chosen = Fairness(manufacturers=("siemens", "ge", "shimadzu", "agfa"), **options)
    ran = ran or experiment(rounds, fairness=chosen.model_dump(mode="json"))
    lines = write_run(
        folder,
        rounds=rounds,
        hospitals={n: HOSPITALS.get(n, 0.8) for n in patients},
        ran=ran,
        left={},
    )
    for line in lines:
        if line["kind"] == "evaluation":
            answers = predictions(task, line["round"], patients)
            line["fairness"] = fairness(
                chosen, answers, task=task, round_=line["round"], in_secret=in_secret
            )
    write_lines(folder, lines)
    return lines


def write_lines(folder: Path, lines: list[Line]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
