"""A run under masks: rows as the coordinator writes them, of hospitals that nobody knows alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from tests.server_app.report.synthetic_private_run import privacy, spent
from tests.server_app.report.synthetic_run import (
    HOSPITALS,
    Line,
    evaluation_line,
    experiment,
    round_line,
    write_run,
)

CODEC = {"quantise": {"name": "integers", "bits": 8}}
MODEL_BYTES = 4 * 250_000
STEPS = {"setup": 1.25, "work": 4.5, "sign": 0.75, "open": 0.375}
OWN = ("patients", "examples", "loss", "seconds", "update_norm", "metrics", "intervals")


def masked_lines(
    rounds: int, left: dict[int, dict[str, str]], *, private: bool, metrics: str
) -> list[Line]:
    lines = []
    for number in range(1, rounds + 1):
        away = left.get(number, {})
        evaluation = evaluation_line(number - 1, HOSPITALS)
        made = round_line(number, HOSPITALS, away)
        for line in (evaluation, made):
            for name, told in line["hospitals"].items():
                if name in away:
                    told.clear()
                    told |= {"status": "left out", "reason": away[name], "attempts": 1}
                for own in OWN:
                    told.pop(own, None)
                told.setdefault("attempts", 1)
                if private and name not in away:
                    told["spent"] = spent(name, number)
            line["hospitals"] = {name: line["hospitals"][name] for name in sorted(HOSPITALS)}
        names = sorted(set(HOSPITALS) - set(away))
        evaluation |= {"summed_over": names, "held_out_patients": 10 * len(names), "worst": {}}
        if private:
            evaluation["overall_intervals"] = {
                metric: [value - 0.03, value + 0.02]
                for metric, value in evaluation["overall"].items()
            }
        summed: Line = {"hospitals": names, "patients": 211 * len(names)}
        if not private:
            summed |= {"examples": 400 * len(names), "loss": 0.7 - 0.04 * number}
        keys_came = number % 2 == 0
        steps = {step: took for step, took in STEPS.items() if step != "setup" or not keys_came}
        for told in made["hospitals"].values():
            there = told["status"] == "ok"
            told |= {"bytes_down": 1_020_000 if number == 1 else 255_000, "answered_after": 3.0}
            told |= {"bytes_up": 320_000 if there else 0}
        made |= {"summed": summed, "steps": steps}
        lines += [evaluation, made] if metrics != "none" else [made]
    return lines


def write_masked_run(
    folder: Path,
    *,
    rounds: int = 6,
    left: dict[int, dict[str, str]] | None = None,
    private: bool = False,
    metrics: str = "noisy",
    weighting: str = "examples",
    secure: Line | None = None,
    model: bool = True,
) -> list[Line]:
    """Write the files of a run; `west` is not in the sum of its third round, unless `left` says else.

    Args:
        model: whether the coordinator has it.

    Returns: the lines of metrics.jsonl.
    """
    secure = secure or {"name": "masks", "least": 3}
    changes: Line = {"codec": CODEC, "secure_aggregation": secure}
    changes["participation"] = {"least": 3, "deadline": 60.0, "weighting": weighting}
    if private:
        changes["privacy"] = privacy(metrics)
    write_run(folder, rounds=rounds, ran=experiment(rounds, **changes), name="2025-06-01-masked")
    left = {3: {"west": "crashed"}} if left is None else left
    lines = masked_lines(rounds, left, private=private, metrics=metrics if private else "exact")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arrays = {"layer.weight": np.zeros((500, 500), np.float32)} if model else {}
    (folder / "model.safetensors").write_bytes(
        safetensors.numpy.save(arrays, {"round": str(rounds)})
    )
    return lines
