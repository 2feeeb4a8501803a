"""What a terminal shows of plain and of private runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from federation import models, tasks, wire
from federation.figures import Figures
from federation.messages import Arrays, Phase
from federation.schema import Experiment
from federation.secure_aggregation.keys import Cohort, Occasion
from server_app import described
from server_app.progress import RoundsTable, cost_lines, plan_lines, update_bytes
from server_app.state import Checkpoint, RunFolder
from tests.hospitals import Hospitals, content
from tests.in_process import (
    PRIVATE,
    SHARE,
    START,
    InProcessGrid,
    Node,
    adding,
    conductor,
    experiment,
    private,
    sums,
)
from tests.masked import crashing, masked, rows


def shown(content: Experiment, path: Path, *, terminal: bool) -> str:
    """All that is printed of a run that was done."""
    record = {"experiment_sha256": content.sha256(), "task": {"headline": "score"}}
    folder = RunFolder.create(path / "run", content, record)
    noisy = content.privacy is not None and content.privacy.metrics == "noisy"
    told = sums(30, 10, noise=1.0) if noisy else None
    hospitals = [
        private(1.0, tally=told),
        private(2.0, tally=told, budget=0.6),
        private(1.0, tally=told),
    ]
    if content.privacy is None:
        hospitals = [adding(1.0)] * 3
    grid = InProcessGrid([Node(name, each) for name, each in zip("abc", hospitals, strict=True)])
    conductor(grid, folder, tally=SHARE if noisy else None).conduct(Checkpoint(0, START, {}))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=150, color_system=None)
    with RoundsTable(folder, console) as table:
        table.show(folder)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_plain_run_shows_its_loss(terminal: bool, tmp_path: Path) -> None:
    text = shown(experiment(rounds=2), tmp_path, terminal=terminal)
    assert "loss" in text
    assert "1.000" in text
    assert "ε" not in text


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("metrics", ["none", "noisy"])
def test_a_private_run_shows_what_was_spent(metrics: str, terminal: bool, tmp_path: Path) -> None:
    content = experiment(rounds=2, privacy=PRIVATE | {"metrics": metrics})
    text = shown(content, tmp_path, terminal=terminal)
    assert "ε spent" in text
    assert "1.00" in text  # 0.5 a charge, two of them at the hospital that went on
    assert "b (budget_spent)" in text
    assert "loss" not in text
    assert ("0.750" in text) == (metrics == "noisy")


def test_the_cost_is_said_before_a_run_starts() -> None:
    """σ = 1, q = 0.01, 1000 steps: ε = 1.838 by PRV."""
    privacy = {"noise_multiplier": 1.0, "sampling_rate": 0.01}
    training = {"local_steps": 10, "batch_size": 2, "learning_rate": 0.1}
    first, second = cost_lines(experiment(rounds=100, privacy=privacy, training=training))
    assert "ε = 1.84 at δ = 1e-05" in first
    assert "σ = 1, q = 0.01, 1000 steps (100 rounds of 10)" in second
    noisy = experiment(rounds=100, privacy=privacy | {"metrics": "noisy"}, training=training)
    assert "101 times, σ = 10 patients" in cost_lines(noisy)[-1]
    assert cost_lines(experiment()) == []


# --- runs under masks, and codecs ----------------------------------------------------------------


def printed(folder: RunFolder, *, terminal: bool) -> str:
    folder.write_record(folder.record() | {"task": {"headline": "auroc"}})
    console = Console(file=io.StringIO(), force_terminal=terminal, width=150, color_system=None)
    with RoundsTable(folder, console) as table:
        table.show(folder)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_under_masks_shows_the_sum_and_who_is_not_in_it(
    five: Hospitals, trained: list[tuple[str, int]]
) -> None:
    of = masked(rounds=2, weighting="examples")
    folder, leader, start = five.conductor(of, "shown")
    folder.save(start := leader.round(start))
    five.meddle["lake"] = crashing(Phase.WORK)
    folder.save(start := leader.round(start))
    five.meddle.clear()
    leader.final_evaluation(start)
    made = {f"{r['kind']} {r['round']}": r for r in rows(five, "shown")}
    first, second = made["round 1"], made["round 2"]
    after = made["evaluation 1"]

    lines = printed(folder, terminal=False).splitlines()
    auroc, patients = after["overall"]["auroc"], after["held_out_patients"]
    assert (
        f"  after round 1: auroc {auroc:.3f}, of 4 hospitals together ({patients} patients), "
        "left out: lake (crashed)"
    ) in lines
    moved = sum(h["bytes_down"] + h["bytes_up"] for h in first["hospitals"].values()) / 1e6
    told = f"{moved:.1f} MB, loss {first['summed']['loss']:.3f}"
    assert any(line.startswith("round 1: ") and line.endswith(told) for line in lines)
    assert any(
        line.startswith("round 2: ")
        and line.endswith(f"loss {second['summed']['loss']:.3f}, left out: lake (crashed)")
        for line in lines
    )
    assert not any("worst" in line for line in lines)

    table = printed(folder, terminal=True)
    assert "in the sum" in table
    assert "worst" not in table
    row = next(line.split() for line in table.splitlines() if line.split()[:1] == ["2"])
    loss, final = second["summed"]["loss"], made["evaluation 2"]["overall"]["auroc"]
    assert row[3:] == [f"{loss:.3f}", f"{final:.3f}", "4", "lake", "(crashed)"]


def test_what_will_be_readable_is_said_before_a_run_starts(five: Hospitals) -> None:
    reads, up = plan_lines(experiment(), 5)
    assert reads == (
        "the coordinator will be able to read each hospital's update and figures, one by one"
    )
    assert up.startswith("updates go up as float32: ")
    reads, up, down = plan_lines(masked(), 5)
    assert "only sums over at least 3 hospitals (4 where all 5 give keys)" in reads
    assert "of no hospital an update or a figure alone" in reads
    assert "all arrays → integers of 8 bits (16 in the first round) → masked: " in up
    assert "11 bits a value, with room for the sum of 5" in up
    assert "in 8 bits" in down


@pytest.mark.parametrize("bits", [8, 16])
def test_the_bytes_that_are_told_are_those_that_travel(
    bits: int, five: Hospitals, trained: list[tuple[str, int]]
) -> None:
    """To the byte, of what hospitals sent under masks; and at most so many in the open."""
    codec, never = {"quantise": {"name": "integers", "bits": bits}}, {"every": 1000}
    for of in (masked(codec=codec, evaluation=never), content(codec=codec, evaluation=never)):
        five.fresh()
        run = f"bytes-{bits}-{of.secure_aggregation is not None}"
        five.conduct(of, run, rounds=2)
        sent = [len(wire.blob(records)) for _, phase, records in five.heard if phase is Phase.WORK]
        whole, first, then, _ = update_bytes(of, 5)
        assert whole == sum(array.nbytes for array in model_of(of).values())
        if of.secure_aggregation is None:
            assert first * 0.5 < max(sent[:5]) <= first
            assert then * 0.5 < max(sent[5:]) <= then
        else:
            counted = 8 * Figures.of(of, tasks.build(of.task)).length
            assert sent == 5 * [first + counted] + 5 * [then + counted]


def model_of(of: Experiment) -> Arrays:
    return models.arrays_of(models.build(of.model, tasks.build(of.task), seed=of.seed))


@pytest.mark.parametrize("count", range(3, 101))
def test_the_threshold_is_that_of_the_sums(count: int) -> None:
    occasion = Occasion("run", 1, 0, "ab")
    cohort = Cohort(occasion, tuple(range(count)))  # type: ignore[arg-type]
    assert described.threshold(count) == cohort.threshold
    assert 3 * described.threshold(count) > 2 * count >= 3 * (described.threshold(count) - 1)
