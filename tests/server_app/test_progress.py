"""What a terminal shows of plain and of private runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from federation.schema import Experiment
from server_app.progress import RoundsTable, cost_lines
from server_app.state import Checkpoint, RunFolder
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
