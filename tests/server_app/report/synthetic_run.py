"""A run's folder as the coordinator writes it, made of smooth curves and a few accidents."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from federation.schema import Experiment

Line = dict[str, Any]

HOSPITALS = {"north": 0.95, "east": 0.93, "south": 0.9, "west": 0.81}
METRICS = ["auroc", "balanced_accuracy", "sensitivity", "specificity", "loss"]
START = datetime(2025, 5, 12, 9, 0, tzinfo=UTC)


def experiment(rounds: int, **changes: Any) -> Experiment:
    content = {
        "name": "chest-xray-small",
        "seed": 7,
        "rounds": rounds,
        "task": {"name": "chest_xray", "size": 64},
        "model": {"name": "densenet", "growth_rate": 8},
        "strategy": {"name": "fedprox"},
        "training": {"local_steps": 20, "batch_size": 8, "learning_rate": 0.001},
        "participation": {"least": 2, "deadline": 60.0},
    }
    return Experiment.model_validate(content | changes)


def wobble(*parts: object) -> float:
    """A number in [-1, 1] that depends on the parts alone."""
    return math.sin(sum(map(ord, "".join(map(str, parts)))) * 12.9898)


def round_line(number: int, hospitals: dict[str, float], left: dict[str, str]) -> Line:
    """A training round in which the hospitals in `left` left for the given reasons."""
    answers: dict[str, Line] = {}
    for index, name in enumerate(hospitals):
        if name in left:
            answers[name] = {"status": "left out", "reason": left[name], "attempts": 2}
            continue
        answers[name] = {
            "status": "ok",
            "reason": None,
            "attempts": 1,
            "examples": 80 + 31 * index,
            "patients": 41 + 12 * index,
            "loss": 0.69 * math.exp(-number / 9) + 0.12 + 0.03 * wobble(name, number),
            "seconds": 1.1 + 0.4 * index + 0.1 * wobble(number, name),
            "bytes_down": 1_234_560,
            "bytes_up": 1_234_400,
            "update_norm": 0.4 / math.sqrt(number) * (1 + 0.2 * wobble(name, number)),
        }
    return {
        "kind": "round",
        "round": number,
        "started": (START + timedelta(seconds=5 * number)).isoformat(),
        "seconds": 3.1 + 0.5 * wobble("round", number) + (2 if left else 0),
        "norm": 0.25 / math.sqrt(number),
        "hospitals": answers,
    }


def evaluation_line(number: int, hospitals: dict[str, float]) -> Line:
    told: dict[str, Line] = {}
    for name, best in hospitals.items():
        grown = 1 - math.exp(-number / 6)
        auroc = 0.5 + (best - 0.5) * grown + 0.015 * wobble(name, number) * (number > 0)
        sensitivity, specificity = auroc - 0.06, auroc - 0.02
        metrics = {
            "auroc": auroc,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "loss": 0.7 - 0.9 * (auroc - 0.5),
        }
        told[name] = {
            "status": "ok",
            "reason": None,
            "examples": 21,
            "patients": 10,
            "metrics": metrics,
        }
    overall = {m: sum(t["metrics"][m] for t in told.values()) / len(told) for m in METRICS}
    worst = {}
    for metric in METRICS:
        pick = max if metric == "loss" else min
        name = pick(told, key=lambda n: told[n]["metrics"][metric])
        worst[metric] = {"hospital": name, "value": told[name]["metrics"][metric]}
    return {
        "kind": "evaluation",
        "round": number,
        "hospitals": told,
        "overall": overall,
        "worst": worst,
    }


def metric_lines(
    rounds: int, hospitals: dict[str, float], left: dict[int, dict[str, str]]
) -> list[Line]:
    lines = [evaluation_line(0, hospitals)]
    for number in range(1, rounds + 1):
        lines.append(round_line(number, hospitals, left.get(number, {})))
        lines.append(evaluation_line(number, hospitals))
    return lines


def write_run(
    folder: Path,
    *,
    rounds: int = 20,
    hospitals: dict[str, float] = HOSPITALS,
    left: dict[int, dict[str, str]] | None = None,
    name: str = "2025-05-12-chest-xray-small",
    state: str = "completed",
    ran: Experiment | None = None,
) -> list[Line]:
    """Write the four files of a run; returns the lines of metrics.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    ran = ran or experiment(rounds)
    if left is None:
        left = {3: {"west": "not_finite"}, 8: {"south": "unavailable"}, 9: {"south": "late"}}
    recorded = {
        "run": name,
        "experiment_sha256": ran.sha256(),
        "code": {
            "version": "0.1.0",
            "commit": "4f2a9c1",
            "dirty": False,
            "bundle_sha256": "ab" * 32,
        },
        "started": START.isoformat(),
        "user": "coordinator",
        "federation": "lung-alliance",
        "flower_runs": ["9834123450123450123"],
        "task": {"metrics": METRICS, "headline": "auroc", "classes": ["normal", "pneumonia"]},
    }
    status = {
        "state": state,
        "round": rounds,
        "rounds": ran.rounds,
        "message": None,
        "updated": (START + timedelta(seconds=5 * rounds + 5)).isoformat(),
    }
    lines = metric_lines(rounds, hospitals, left)
    (folder / "experiment.json").write_text(ran.canonical())
    (folder / "run.json").write_text(json.dumps(recorded))
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines
