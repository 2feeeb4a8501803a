"""A private run's folder: the plain one of `synthetic_run`, with what privacy takes away and adds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tests.server_app.report.synthetic_run import (
    HOSPITALS,
    Line,
    experiment,
    metric_lines,
    write_run,
)

ACCOUNTANT = "smaller of PRV and RDP (opacus 1.6.0)"
BUDGETS = {"north": 8.0, "east": 8.0, "south": 8.0, "west": 3.0}
EARLIER = {"north": 1.2, "east": 0.0, "south": 3.456, "west": 2.1}  # ε of runs before this one
DELTAS = {"north": 1e-5, "east": 1e-5, "south": 2.3529e-6, "west": 1e-5}


def privacy(metrics: str) -> dict[str, Any]:
    return {
        "noise_multiplier": 2.541093,
        "epsilon": 3.0,
        "sampling_rate": 0.15,
        "clipping_norm": 1.25,
        "images_per_patient": 3,
        "augmentations": 2,
        "ema": 0.9,
        "metrics": metrics,
        "metrics_noise_multiplier": 7.5,
    }


def spent(hospital: str, rounds: int, evaluations: int = 0) -> Line:
    """A ledger after so many rounds of this run, and evaluations that were charged on their own.

    ε grows as it does, but not as an accountant reckons it.
    """
    run = 0.41 * math.sqrt(rounds + 0.2 * evaluations)
    before, budget = EARLIER.get(hospital, 0.0), BUDGETS.get(hospital, 8.0)
    return {
        "epsilon": math.hypot(before, run) + (0.05 * before * run),
        "run_epsilon": run,
        "budget": budget,
        "delta": DELTAS.get(hospital, 1e-5),
        "accountant": ACCOUNTANT,
        "charges": round(40 * before) + rounds + evaluations,
    }


def private_lines(
    rounds: int, hospitals: dict[str, float], left: dict[int, dict[str, str]], metrics: str
) -> list[Line]:
    answered = dict.fromkeys(hospitals, 0)
    lines = []
    for line in metric_lines(rounds, hospitals, left):
        if line["kind"] == "round":
            for index, (name, told) in enumerate(line["hospitals"].items()):
                if told["status"] != "ok":
                    continue
                answered[name] += 1
                for exact in ("examples", "loss", "seconds"):
                    del told[exact]
                told |= {"patients": 100 * (index + 1), "spent": spent(name, answered[name])}
        elif metrics == "none":
            continue
        else:
            last = line["round"] == rounds
            away = left.get(line["round"] + (0 if last else 1), {})
            for name, told in line["hospitals"].items():
                if name in away:  # one exchange evaluates a model and trains it on
                    told.clear()
                    told |= {"status": "left out", "reason": away[name], "attempts": 2}
                    continue
                told["spent"] = spent(name, answered[name] + (0 if last else 1))
                if metrics == "noisy":
                    _make_noisy(told)
                    told["spent"] = spent(name, answered[name] + (0 if last else 1), int(last))
            _summarise(line, metrics)
        lines.append(line)
    return lines


def _make_noisy(told: Line) -> None:
    del told["examples"], told["patients"]
    told["intervals"] = {
        metric: [value - 0.09, value + 0.06] for metric, value in told["metrics"].items()
    }


def _summarise(line: Line, metrics: str) -> None:
    """One figure for all hospitals that answered, and the worst of them by the headline."""
    there = {n: told["metrics"] for n, told in line["hospitals"].items() if "metrics" in told}
    line["overall"] = {
        m: sum(values[m] for values in there.values()) / len(there) for m in line["overall"]
    }
    if metrics == "noisy":
        line["overall_intervals"] = {
            m: [value - 0.031, value + 0.027] for m, value in line["overall"].items()
        }
    worst = min(there, key=lambda name: there[name]["auroc"])
    line["worst"] = {"auroc": {"hospital": worst, "value": there[worst]["auroc"]}}


def write_private_run(
    folder: Path,
    *,
    rounds: int = 20,
    hospitals: dict[str, float] = HOSPITALS,
    left: dict[int, dict[str, str]] | None = None,
    metrics: str = "noisy",
    name: str = "2025-05-13-chest-xray-private",
    state: str = "completed",
) -> list[Line]:
    """Write the four files; `west` has spent its budget after two thirds, unless `left` says else."""
    if left is None:
        left = {r: {"west": "budget_spent"} for r in range(2 * rounds // 3 + 1, rounds + 1)}
    ran = experiment(rounds, privacy=privacy(metrics))
    write_run(folder, rounds=rounds, hospitals=hospitals, ran=ran, name=name, state=state)
    lines = private_lines(rounds, hospitals, left, metrics)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines
